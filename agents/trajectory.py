"""Agents that train on the steps of a stochastic sampler, each of which has a likelihood.

The sampler's step is made Gaussian, x' ~ N(mu_theta(x, t), q^2); a step of a sample of advantage A is a row.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.flow import FlowAgent, matching_error
from srgym.agents.groups import ADVANTAGE_CLIP
from srgym.agents.ratio import RatioAgent
from srgym.agents.rows import make_rows, shared
from srgym.agents.steps import Steps
from srgym.agents.windows import Windows
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.solvers import SOLVERS, STOCHASTIC, Stochastic
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["TrajectoryAgent"]


class TrajectoryAgent(RatioAgent, FlowAgent):
    """What such agents share.

    Args:
        policy, reward: see `RatioAgent`; the base is what the KL term holds on to.
        group_size: K.
        steps: T of the collecting rollout. The last step is deterministic and not trained: there is no noise left.
        solver: "sde", "cps" or "dance".
        noise_level: a of "sde" and "cps" (0.7), eta of "dance" (0.3); None: these.
        window, fast, slide, branch, seed: noise in a window of steps alone, see `Windows`; 2 to 4 steps in the papers.
        spread: how far the samples of a group begin from one another, see `Sampling`; None: 0, one place, for branches
            of one path, else 1.
        kl: beta, the weight of mean (mu - mu_base)^2 / (2 s_t^2); None: 0.04, but 0 when the window moves and under
            "cps", whose score lacks the 1 / s_t^2 that would balance it.
        guidance: of the policy's classifier-free guidance, where it has one.
        guidance_detached: whether the unconditional velocity carries no gradient, as in the published code.
        updates_per_iteration, options: see `RatioAgent`.
    """

    compares_means: bool = False
    """Whether the objective looks at the mean of the policy that sampled."""

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 24,
        steps: int = 10,
        solver: str = "sde",
        noise_level: float | None = None,
        window: int = 2,
        fast: bool = False,
        slide: int | None = None,
        branch: bool = False,
        spread: float | None = None,
        kl: float | None = None,
        guidance: float = 1.0,
        guidance_detached: bool = True,
        updates_per_iteration: int = 2,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            policy, reward, group_size=group_size, updates_per_iteration=updates_per_iteration, **options
        )  # fmt: skip
        kind = SOLVERS.get(solver)
        if kind is None or not issubclass(kind, Stochastic):
            raise Incompatible(
                f"{type(self).__name__} needs the likelihood of a stochastic step and can't use solver '{solver}': "
                f"expected one of {', '.join(STOCHASTIC)}; DiffusionNFT and DPO work with deterministic solvers"
            )
        self.windows = Windows(steps, window, fast, slide, branch, seed)
        self.kl = kl if kl is not None else 0.0 if self.windows.moves or not kind.gaussian else 0.04
        if not self.kl >= 0:
            raise Refusal(f"expected kl of at least 0, got {self.kl}")
        if self.kl > 0:
            self._require_adapters("the base (kl above 0)")
        self.guidance, self.guidance_detached = guidance, guidance_detached
        self._solver = kind(kind.usual_level if noise_level is None else noise_level)
        spread = spread if spread is not None else 0.0 if branch else 1.0
        self._plan = Sampling(
            steps=steps, solver=solver, noise_level=self._solver.noise_level, record=True, guidance=guidance,
            means=self.compares_means and not self.recomputes, starts=self.windows.starts, spread=spread,
            group=group_size if branch or spread < 1 else 1,
        )  # fmt: skip

    @property
    def sampling(self) -> Sampling:
        """The rollout of this iteration."""
        return replace(self._plan, window=self.windows.at(self.iterations))

    def prepare(self, rollout: TensorDict) -> TensorDict:
        groups = self.compare(rollout)
        advantage = groups.advantage.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
        keep = groups.keep & (advantage != 0)
        part = (keep.cumsum(0) - 1) % self.updates_per_iteration  # dealt out over the samples of all groups
        part, keep, advantage = (column[groups.own].to(rollout["x0"].device) for column in (part, keep, advantage))
        kept = keep.nonzero().flatten()
        self.stats = groups.stats | {"samples_without_advantage": float(groups.keep[groups.own].sum()) - len(kept)}
        self._begin()
        length = self.windows.trained
        step = rollout["begin"][kept][:, None] + torch.arange(length, device=kept.device)
        sample = kept.repeat_interleave(length)
        return make_rows(
            rollout.select("latents", "t", "log_prob", "means", "cond", strict=False),
            sample,
            step=step.flatten(),
            advantage=advantage[sample],
            part=part[sample],
        )

    @abstractmethod
    def objective(self, steps: Steps) -> tuple[Tensor, Tensor]:
        """The loss of each row, [B], and whether it is stopped there, bool [B]."""

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
        old_mean = samples["means"][sample, step] if self._plan.means else None
        terms = {}
        if self.recomputes:
            before = self._solver.transition(self._velocity_beside(v, "old", x, t, cond), *at)
            anew, old_mean = self._solver.score(before, x_next), before.mean
            terms = {"anchor_shift": (anew - old_log_prob).abs().mean()}
            old_log_prob = anew
        self._check_ratio(log_prob, old_log_prob)
        each, stopped = self.objective(
            Steps(log_prob, old_log_prob, batch["advantage"], samples["t"][sample], step, now, old_mean)
        )
        terms |= {
            "loss_policy": each.mean(),
            "ratio_error": torch.expm1((log_prob - old_log_prob).detach()).abs().mean(),
            "clipped": stopped.float().mean(),
        }
        if mu_base is not None:
            level = self._solver.level(now, t, t_next)
            drift = (matching_error(now.mean, mu_base) / (2 * level.square())).mean()
            terms |= {"loss_kl": self.kl * drift, "kl": drift.detach()}
        return TensorDict(terms)

    def _velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        if self.guidance == 1.0:
            return super()._velocity(x, t, cond)
        return self.policy.guided_velocity(x, t, cond, self.guidance, detached=self.guidance_detached)

    def workload(self) -> Workload:
        guided = self.guidance != 1.0
        return Workload(
            self.group_size, steps=self._plan.steps, times=self.windows.trained, epochs=self.epochs,
            beside=self._beside() | ({None: 1.0} if self.kl > 0 else {}), guided=guided,
            detached=guided and self.guidance_detached,
        )  # fmt: skip
