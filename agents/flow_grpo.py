"""Flow-GRPO: policy gradients through a stochastic sampler (Liu et al. 2025, arXiv 2505.05470), and its kin.

The sampler's step is made Gaussian, x' ~ N(mu_theta(x, t), q^2), so that a trajectory has likelihoods; each step of a
sample of advantage A takes the clipped objective

    max(-A rho, -A clip(rho, 1 - e, 1 + e)),   rho = p_theta(x') / p_old(x').

Kin, behind one option each: `fast` (noise in a short window of steps alone; Flow-GRPO-Fast), `solver="cps"` (Flow-CPS,
arXiv 2509.05952), `solver="dance"` (DanceGRPO, arXiv 2505.07818), `guard` (GRPO-Guard, arXiv 2510.22319).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.agents.groups import STDS, Combine, GroupFilter, assess, from_config
from srgym.agents.rows import make_rows, shared
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.noise import derive_seeds
from srgym.policies.solvers import SOLVERS, STOCHASTIC, Stochastic, Transition
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["FlowGRPO", "grpo_loss"]

ADVANTAGE_CLIP = 5.0
RATIO_TOLERANCE = 1e-6
OLD_LOG_PROBS = ("sampled", "recomputed")


def grpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) with rho = exp(log_prob - old_log_prob).

    Args:
        log_prob, old_log_prob: of the same step under the learner and the sampler, [B].
        advantage: A, [B].
        clip: e.

    Returns:
        [B].
    """
    ratio = torch.exp(log_prob - old_log_prob.detach())
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


class FlowGRPO(FlowAgent):
    """Flow-GRPO.

    Args:
        policy: with adapters where `kl` or `guard` asks for another policy to compare with.
        reward: any.
        group_size: K.
        steps: T of the collecting rollout. The last step is deterministic and not trained: there is no noise left.
        solver: "sde", "cps" or "dance".
        noise_level: a of "sde" and "cps" (0.7), eta of "dance" (0.3); None: these.
        fast: noise in `window` steps alone, from a start drawn anew each iteration from the first half.
        window: how many (2 to 4 in the paper).
        guard: normalise the ratio by the step's noise, and weigh steps by 1 / (-dt).
        clip: e; None: 1e-4, 1e-5 when fast, 2e-6 under the guard.
        kl: beta, the weight of mean (mu - mu_base)^2 / (2 s_t^2); None: 0.04, but 0 when
            fast and under "cps", whose score lacks the 1 / s_t^2 that would balance it.
        guidance: of the policy's classifier-free guidance, where it has one.
        updates_per_iteration: optimiser steps that the samples of an iteration are dealt out to.
        epochs: how often that is done.
        std, filter, combine: see `DiffusionNFT`.
        old_log_prob: what rho's denominator is: "sampled", recorded by the rollout, which costs nothing and is right in
            float32; or "recomputed" by the policy that sampled, as it was, on the very rows that are trained on, which
            costs a forward of each row after the first update. Half precision needs that: its kernels round as the
            batch is cut. None: recomputed where the policy's weights aren't in float32.
        ratio_tolerance: how far rho may be from 1 before the first update, of a sampled denominator.
        seed: of the windows.
        ema, provides: see `Agent`.
    """

    name = "flow_grpo"
    needs = frozenset({Need.GROUPS})

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 24,
        steps: int = 10,
        solver: str = "sde",
        noise_level: float | None = None,
        fast: bool = False,
        window: int = 2,
        guard: bool = False,
        clip: float | None = None,
        kl: float | None = None,
        guidance: float = 1.0,
        updates_per_iteration: int = 2,
        epochs: int = 1,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        old_log_prob: str | None = None,
        ratio_tolerance: float = RATIO_TOLERANCE,
        seed: int = 0,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(policy, reward, group_size=group_size, epochs=epochs, ema=ema, provides=provides)
        kind = SOLVERS.get(solver)
        if kind is None or not issubclass(kind, Stochastic):
            raise Incompatible(
                f"FlowGRPO needs the likelihood of a stochastic step and can't use solver '{solver}': expected one of "
                f"{', '.join(STOCHASTIC)}; DiffusionNFT and DPO work with deterministic solvers"
            )
        if guard and not kind.gaussian:
            raise Incompatible(
                f"guard corrects the ratio of two Gaussian densities, and solver '{solver}' scores without one: "
                "use solver 'sde' or 'dance'"
            )
        if steps < 2 or (fast and not 1 <= window < steps) or updates_per_iteration < 1 or std not in STDS:
            raise Refusal(
                "expected at least 2 steps, a window of 1 to steps - 1, at least 1 update and std of "
                f"{STDS}, got {steps}, {window}, {updates_per_iteration} and {std}"
            )
        self.clip = clip if clip is not None else 2e-6 if guard else 1e-5 if fast else 1e-4
        self.kl = kl if kl is not None else 0.0 if fast or not kind.gaussian else 0.04
        if not (self.clip > 0 and self.kl >= 0 and ratio_tolerance > 0):
            raise Refusal(
                f"expected clip and ratio_tolerance above 0 and kl of at least 0, got {self.clip}, {ratio_tolerance} "
                f"and {self.kl}"
            )
        if self.kl > 0:
            self._require_adapters("the base (kl above 0)")
        if old_log_prob not in (None, *OLD_LOG_PROBS):
            raise Refusal(f"expected old_log_prob of {OLD_LOG_PROBS} or None, got '{old_log_prob}'")
        half = next(policy.core.parameters()).dtype in (torch.float16, torch.bfloat16)
        self.old_log_prob = old_log_prob or ("recomputed" if half and policy.has_adapters else "sampled")
        if guard:
            self._require_adapters("the policy that sampled (guard)")
        if self.old_log_prob == "recomputed":
            self._require_adapters("the policy that sampled (old_log_prob='recomputed')")
        self._solver = kind(kind.usual_level if noise_level is None else noise_level)
        self.fast, self.window, self.guard, self.seed = fast, window, guard, seed
        self.updates_per_iteration, self.ratio_tolerance, self.std = updates_per_iteration, ratio_tolerance, std
        kept = from_config(GroupFilter, filter)
        self.filter = kept.for_reward(reward) if kept is not None else None
        self.combine = from_config(Combine, combine)
        self._plan = Sampling(
            steps=steps, solver=solver, noise_level=self._solver.noise_level, record=True, guidance=guidance
        )
        self._first = True

    @property
    def sampling(self) -> Sampling:
        """The rollout of this iteration: its window moves when `fast`."""
        steps = self._plan.steps
        if not self.fast:
            return replace(self._plan, window=(0, steps - 1))
        starts = min(steps // 2, steps - 1 - self.window) + 1
        drawn = int(derive_seeds(self.seed, self.iterations, 0, stream="window")) % starts
        return replace(self._plan, window=(drawn, self.window))

    def prepare(self, rollout: TensorDict) -> TensorDict:
        groups = assess(rollout, self.group_size, std=self.std, filter=self.filter, combine=self.combine)
        advantage = groups.advantage.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
        keep = groups.keep & (advantage != 0)
        part = (keep.cumsum(0) - 1) % self.updates_per_iteration  # dealt out over the samples of all groups
        part, keep, advantage = (column[groups.own].to(rollout["x0"].device) for column in (part, keep, advantage))
        kept = keep.nonzero().flatten()
        self.stats = groups.stats | {"samples_without_advantage": float(groups.keep[groups.own].sum()) - len(kept)}
        start, length = self.sampling.window or (0, self.sampling.steps)
        self._first = True
        if self._asks_old:
            self.policy.sync("default", "old")  # `old` remembers who sampled, for the updates after the first
        sample = kept.repeat_interleave(length)
        step = torch.arange(start, start + length, device=kept.device).repeat(len(kept))
        return make_rows(
            rollout.select("latents", "t", "log_prob", "cond"),
            sample,
            step=step,
            advantage=advantage[sample],
            part=part[sample],
        )

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for _ in range(self.epochs):
            for part in range(self.updates_per_iteration):
                yield rows[rows["part"] == part]

    def workload(self) -> Workload:
        steps = self._plan.steps
        # `old` is the learner until the first of the iteration's updates.
        old = {"old": 1 - 1 / (self.updates_per_iteration * self.epochs)} if self._asks_old else {}
        return Workload(
            self.group_size, steps=steps, times=self.window if self.fast else steps - 1, epochs=self.epochs,
            beside=old | ({None: 1.0} if self.kl > 0 else {}), guided=self._plan.guidance != 1.0,
        )  # fmt: skip

    def loss(self, batch: TensorDict) -> TensorDict:
        samples, sample = shared(batch)
        step, cond = batch["step"], samples["cond"][sample]
        x, x_next = samples["latents"][sample, step], samples["latents"][sample, step + 1]
        t, t_next, t_cap = samples["t"][sample, step], samples["t"][sample, step + 1], samples["t"][sample, 1]
        at = (x, t, t_next, t_cap)
        mu_base = self._solver.transition(self._velocity_of(None, x, t, cond), *at).mean if self.kl else None
        v = self._velocity(x, t, cond)
        now = self._solver.transition(v, *at)
        log_prob, old_log_prob = self._solver.score(now, x_next), samples["log_prob"][sample, step]
        before = self._solver.transition(self._velocity_beside(v, "old", x, t, cond), *at) if self._asks_old else None
        moved = {}
        if before is not None and self.old_log_prob == "recomputed":
            anew = self._solver.score(before, x_next)
            moved = {"anchor_shift": (anew - old_log_prob).abs().mean()}
            old_log_prob = anew
        self._check_ratio(log_prob, old_log_prob)
        each = self._objective(log_prob, old_log_prob, batch["advantage"], now, before, t - t_next)
        change = (log_prob - old_log_prob).detach()
        terms = {
            "loss_policy": each.mean(),
            "ratio_error": torch.expm1(change).abs().mean(),
            "clipped": (torch.expm1(change).abs() > self.clip).float().mean(),
            **moved,
        }
        if mu_base is not None:
            drift = (_mean((now.mean - mu_base).square()) / (2 * self._solver.level(now, t, t_next).square())).mean()
            terms |= {"loss_kl": self.kl * drift, "kl": drift.detach()}
        return TensorDict(terms)

    @property
    def _asks_old(self) -> bool:
        """Whether `loss` needs the policy that sampled."""
        return self.guard or self.old_log_prob == "recomputed"

    def _objective(
        self,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantage: Tensor,
        now: Transition,
        before: Transition | None,
        dt: Tensor,
    ) -> Tensor:
        """Of each row [B]; `before` is the transition of the policy that sampled, where it is asked for (`_asks_old`).

        GRPO-Guard: rho = exp[(dlogp + mean(dmu^2) / (2 q^2)) q], whose mean over the noise is 1; loss / (-dt).
        """
        if before is None or not self.guard:
            return grpo_loss(log_prob, old_log_prob, advantage, clip=self.clip)
        q = now.std.flatten()
        guarded = (log_prob - old_log_prob + divergence(now, before)) * q
        return grpo_loss(guarded, torch.zeros_like(q), advantage, clip=self.clip) / dt

    def _velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        if self._plan.guidance == 1.0:
            return super()._velocity(x, t, cond)
        return self.policy.guided_velocity(x, t, cond, self._plan.guidance)

    def _check_ratio(self, log_prob: Tensor, old_log_prob: Tensor) -> None:
        """Before the first update the learner is the sampler; a ratio that isn't 1 means that something else is."""
        if not self._first:
            return
        error = float(torch.expm1(log_prob.detach() - old_log_prob).abs().max())
        if not error <= self.ratio_tolerance:
            raise Refusal(
                f"FlowGRPO: before the first update the ratio of likelihoods must be 1, and it is off by {error:.1e} "
                f"(at most {self.ratio_tolerance:.0e} was expected): the policy that is trained isn't the one that "
                "sampled. Look for dropout or weights changed in between; half precision, autocast too, needs "
                "old_log_prob='recomputed'"
            )

    def after_update(self) -> None:
        super().after_update()
        self._first = False


def divergence(now: Transition, before: Transition) -> Tensor:
    """The KL divergence of two Gaussian steps of one spread q, a mean over elements: mean (dmu^2) / (2 q^2), [B]."""
    return _mean((now.mean - before.mean).square()) / (2 * now.std.flatten().square())


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)
