"""REFL: the reward's own gradient, through sampling (ImageReward's ReFL, Xu et al. 2023, arXiv 2304.05977; DRaFT-K,
Clark et al. 2023, arXiv 2309.17400; LeapAlign, Liang et al. 2026, arXiv 2604.15311; SRPO's Direct-Align, Shen et al.
2025, arXiv 2509.06942).

ReFL draws a late step m for each sample, integrates to it without gradient, and takes one step with gradient to the
clean estimate x_t - t v_theta. DRaFT-K integrates to the end, the last K steps with gradient. The others reach steps
before the last: see `srgym.agents.paths`.
"""

from collections.abc import Collection

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.agents.paths import KnownNoise, LastSteps, LateStep, Leaps, Path
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.noise import Noise
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["PATHS", "REFL", "refl_loss"]

PATHS = ("last_steps", "leaps", "known_noise")


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
        path: which way the gradient takes: "last_steps" (ReFL, DRaFT), "leaps" (LeapAlign) or "known_noise" (SRPO).
        k_last: of the last steps: 1 for ReFL; K > 1 for DRaFT-K; "all" for the whole trajectory, with checkpointing
            (one more forward a step, and the memory of one).
        late: the share of the schedule that ReFL's step is drawn from, at its end.
        discount, floor: of `Leaps`. span: of `KnownNoise`.
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
        path: str = "last_steps",
        k_last: int | str = 1,
        late: float = 0.25,
        discount: float = 0.3,
        floor: float | None = 0.1,
        span: float = 0.1,
        ceiling: float | None = None,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        _check_gradient(reward)
        self.needs = type(self).needs | ({Need.HR} if reward and "hr" in reward.needs else set())
        super().__init__(policy, reward, group_size=group_size, ema=ema, provides=provides)
        if path not in PATHS:
            raise Refusal(f"path is one of {', '.join(PATHS)}, got '{path}'")
        if k_last != "all" and not (isinstance(k_last, int) and 1 <= k_last <= steps):
            raise Refusal(f"k_last is 1 to the {steps} steps, or 'all', got {k_last!r}")
        if steps < 1 + (path == "leaps") or not 0 < late <= 1:
            raise Refusal(f"expected at least 1 step (2 for leaps) and late in (0, 1], got {steps} and {late}")
        if not 0 <= discount <= 1 or not (floor is None or floor > 0) or not 0 < span <= 1:
            raise Refusal(
                f"expected discount in [0, 1], floor above 0 and span in (0, 1], got {discount}, {floor} and {span}"
            )
        self.steps, self.ceiling = steps, ceiling
        self.path: Path = LateStep(late, policy)
        if k_last != 1:
            self.path = LastSteps(steps if k_last == "all" else int(k_last), recomputed=k_last == "all")
        if path != "last_steps":
            self.path = Leaps(discount, floor) if path == "leaps" else KnownNoise(span)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        """The contexts themselves: each row is sampled inside `loss`."""
        self.stats = {}
        wanted = ("cond", "seed", "index", "lr", "hr")
        return rollout.select(*wanted, strict=False)

    def workload(self) -> Workload:
        before, reward_steps = self.path.forwards(self.steps)
        recomputed = self.path.recomputed
        return Workload(self.group_size, steps=before, reward_steps=reward_steps, recomputed=recomputed)

    def loss(self, batch: TensorDict) -> TensorDict:
        assert self.reward is not None
        noise = Noise(batch["seed"].cpu(), self.policy.device)
        cond = batch["cond"]
        x = self.policy.initial_noise(noise, cond)
        times = self.policy.sigmas(self.steps, cond).to(x.device)
        x0, weight = self.path(self._velocity, x, cond, times, noise)
        context = {name: batch[name] for name in ("lr", "hr", "index") if batch.get(name, None) is not None}
        scored = self.reward(self.policy.decode(x0, cond), **context)
        each = refl_loss(torch.where(scored.valid, scored.total, 0.0), self.ceiling)
        each = each if weight is None else weight * each
        # An invalid row counts as a row without a loss, so that the mean doesn't depend on how the batch was cut.
        terms = {
            "loss_policy": torch.where(scored.valid, each, 0.0).mean(),
            "reward": torch.where(scored.valid, scored.total, 0.0).detach().mean(),
            "invalid": (~scored.valid).float().mean(),
        }
        return TensorDict(terms)


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
