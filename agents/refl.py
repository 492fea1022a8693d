"""REFL: the reward's own gradient, through the last steps of sampling (ImageReward's ReFL, Xu et al. 2023, arXiv
2304.05977; DRaFT-K, Clark et al. 2023, arXiv 2309.17400).

ReFL draws a late step m for each sample, integrates to it without gradient, and takes one step with gradient to the
clean estimate x_t - t v_theta. DRaFT-K integrates to the end, the last K steps with gradient.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.noise import Noise
from srgym.policies.solvers import euler_step
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["REFL", "refl_loss"]


def refl_loss(reward: Tensor, ceiling: float | None = None) -> Tensor:
    """phi(-R) [B]: ReLU(ceiling - R), which leaves images beyond the ceiling alone; -R itself without a ceiling."""
    return -reward if ceiling is None else torch.relu(ceiling - reward)


class REFL(FlowAgent):
    """Direct reward fine-tuning.

    Args:
        policy: with adapters, or trained whole.
        reward: differentiable, and a function of (sr, lr, hr).
        group_size: samples of each context.
        steps: of the sampler.
        k_last: 1 for ReFL; K > 1 for DRaFT-K; "all" for the whole trajectory, with checkpointing (one more forward a
            step, and the memory of one).
        late: the share of the schedule that ReFL's step is drawn from, at its end.
        ceiling: see `refl_loss`.
        ema, provides: see `Agent`.

    Raises:
        Incompatible: for no reward, one without a gradient, one that must see whole groups, or one that needs more
            than images.
    """

    name = "refl"
    needs = frozenset({Need.REWARD_GRADIENT})

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 1,
        steps: int = 6,
        k_last: int | str = 1,
        late: float = 0.25,
        ceiling: float | None = None,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        _check_gradient(reward)
        self.needs = type(self).needs | ({Need.HR} if reward and "hr" in reward.needs else set())
        super().__init__(policy, reward, group_size=group_size, ema=ema, provides=provides)
        if k_last != "all" and not (isinstance(k_last, int) and 1 <= k_last <= steps):
            raise Refusal(f"k_last is 1 to the {steps} steps, or 'all', got {k_last!r}")
        if steps < 1 or not 0 < late <= 1:
            raise Refusal(f"expected at least 1 step and late in (0, 1], got {steps} and {late}")
        self.steps, self.late, self.ceiling = steps, late, ceiling
        self.checkpointed = k_last == "all"
        self.k_last = steps if k_last == "all" else int(k_last)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        """The contexts themselves: each row is sampled inside `loss`."""
        self.stats = {}
        wanted = ("cond", "seed", "index", "lr", "hr")
        return rollout.select(*wanted, strict=False)

    def workload(self) -> Workload:
        late = math.ceil(self.late * self.steps)
        # ReFL's own step is one of the `late` last, each as likely.
        before = self.steps - 1 - (late - 1) / 2 if self.k_last == 1 else self.steps - self.k_last
        return Workload(self.group_size, steps=before, reward_steps=self.k_last, recomputed=self.checkpointed)

    def loss(self, batch: TensorDict) -> TensorDict:
        assert self.reward is not None
        noise = Noise(batch["seed"].cpu(), self.policy.device)
        cond = batch["cond"]
        x = self.policy.initial_noise(noise, cond)
        times = self.policy.sigmas(self.steps, cond).to(x.device)
        if self.k_last == 1:
            late = math.ceil(self.late * self.steps)
            x0 = self._estimate(x, cond, times, self.steps - 1 - noise.integers(late))
        else:
            x0 = self._integrate(x, cond, times)
        context = {name: batch[name] for name in ("lr", "hr", "index") if batch.get(name, None) is not None}
        scored = self.reward(self.policy.decode(x0, cond), **context)
        each = refl_loss(torch.where(scored.valid, scored.total, 0.0), self.ceiling)
        # An invalid row counts as a row without a loss, so that the mean doesn't depend on how the batch was cut.
        terms = {
            "loss_policy": torch.where(scored.valid, each, 0.0).mean(),
            "reward": torch.where(scored.valid, scored.total, 0.0).detach().mean(),
            "invalid": (~scored.valid).float().mean(),
        }
        return TensorDict(terms)

    def _estimate(self, x: Tensor, cond: TensorDict, times: Tensor, last: Tensor) -> Tensor:
        """ReFL: to step `last` (int64 [B], each sample its own) without gradient, then the clean estimate with it."""
        with torch.no_grad():
            # Where the policy is split between processes, a sample goes on without need, to keep step with the others'.
            for i in range(self.steps - 1 if self.policy.sharded else int(last.max())):
                going = (i < last).nonzero().flatten()
                if not len(going):
                    self._velocity(x[:1], times[i].expand(1), cond[:1])
                    continue
                t, t_next = (u.expand(len(going)) for u in (times[i], times[i + 1]))
                x = x.index_copy(0, going, euler_step(self._velocity(x[going], t, cond[going]), x[going], t, t_next))
        t = times[last]
        return euler_step(self._velocity(x, t, cond), x, t, torch.zeros_like(t))

    def _integrate(self, x: Tensor, cond: TensorDict, times: Tensor) -> Tensor:
        """DRaFT-K: to the end, the last `k_last` steps with gradient."""
        for i in range(self.steps):
            t, t_next = (u.expand(len(x)) for u in (times[i], times[i + 1]))
            with torch.set_grad_enabled(i >= self.steps - self.k_last):
                if self.checkpointed:
                    v: Any = checkpoint(self._velocity, x, t, cond, use_reentrant=False)
                else:
                    v = self._velocity(x, t, cond)
                x = euler_step(v, x, t, t_next)
        return x


def _check_gradient(reward: Reward | None) -> None:
    """Refuse a reward that REFL can't follow."""
    others = "DiffusionNFT, FlowGRPO and DPO work with it"
    if reward is None:
        raise Incompatible("REFL follows the gradient of a reward and was given none: give it a differentiable one")
    if not reward.differentiable:
        raise Incompatible(
            f"REFL follows the gradient of its reward, and reward '{reward.name}' isn't differentiable: {others}"
        )
    if reward.group:
        raise Incompatible(f"REFL scores image by image, and reward '{reward.name}' must see whole groups: {others}")
    strange = reward.missing({"lr", "hr"})
    if strange:
        raise Incompatible(
            f"REFL gives a reward sr, lr and hr, and reward '{reward.name}' needs {', '.join(sorted(strange))} "
            f"besides: {others}"
        )
