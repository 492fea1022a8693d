"""Agents that train on the forward process: samples of any solver, noised anew at the sampler's own times."""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.ema import old_decay
from srgym.agents.flow import FlowAgent
from srgym.agents.groups import Combine, Comparison, GroupFilter
from srgym.agents.rows import make_rows, shared
from srgym.agents.timesteps import corrupt, schedule_steps, share_of_steps
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.solvers import DPM2M, SOLVERS, Euler
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["ForwardAgent"]


class ForwardAgent(FlowAgent):
    """What such agents share: `old` collects, groups are compared, each sample is a row at each of some times.

    Args:
        policy: with adapters: `default` learns, `old` collects, the base is what the KL term holds on to.
        reward: any.
        group_size: K.
        steps, solver: of the collecting rollout, deterministic and without guidance.
        kl: the weight of mean (v_theta - v_base)^2; at 0 the base isn't run.
        old: how `old` follows the learner, once an iteration: a schedule's name or a constant d, see `old_decay`.
        time_share: of the sampler's times, how many each sample is trained at: int(share * steps).
        std, filter, combine: see `Comparison`.
        epochs: optimiser steps of an iteration, each on all rows, with fresh noise.
        ema, provides: see `Agent`.
    """

    needs = frozenset({Need.GROUPS})
    sampler = "old"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 24,
        steps: int = 6,
        solver: str = "dpm2m",
        kl: float = 0.0,
        old: str | float = "on_policy",
        time_share: float = 0.99,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, group_size=group_size, **options)
        self._require_adapters("the policy that sampled")
        if not (kl >= 0 and 0 < time_share <= 1):
            raise Refusal(f"expected kl of at least 0 and time_share in (0, 1], got {kl} and {time_share}")
        if SOLVERS.get(solver) not in (Euler, DPM2M):
            raise Refusal(f"expected a deterministic solver (euler, dpm2m), got {solver}")
        old_decay(old, 0)
        self.sampling = Sampling(steps=steps, solver=solver)
        self.kl, self.old, self.time_share = kl, old, time_share
        self.compare = Comparison(reward, group_size, std=std, filter=filter, combine=combine)

    @property
    def asks_base(self) -> bool:
        """Whether `loss` runs the base."""
        return self.kl > 0

    def prepare(self, rollout: TensorDict) -> TensorDict:
        assert self.sampling is not None
        groups = self.compare(rollout)
        self.stats = groups.stats
        samples = rollout.select("x0", "cond")
        keep, advantage = (column[groups.own].to(samples["x0"].device) for column in (groups.keep, groups.advantage))
        kept = keep.nonzero().flatten()
        seed = self._seeds(rollout)[kept]
        times = self.policy.sigmas(self.sampling.steps, rollout["cond"])[: self.sampling.steps].to(kept.device)
        drawn = schedule_steps(seed, self.sampling.steps, self.time_share).to(kept.device)
        count = drawn.shape[1]
        sample = kept.repeat_interleave(count)
        return make_rows(
            samples,
            sample,
            t=times[drawn.flatten()],
            advantage=advantage[sample],
            seed=seed.repeat_interleave(count),
            draw=torch.arange(count, device=kept.device).repeat(len(kept)),
        )

    def _seeds(self, rollout: TensorDict) -> Tensor:
        """What each sample's times and noise follow from: [N]."""
        seeds: Tensor = rollout["seed"]
        return seeds

    def _noised(self, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor, TensorDict]:
        """Of a batch of rows: samples x0, noise that is the update's own, x_t [B, ...] each, and the conditions."""
        samples, sample = shared(batch)
        x0 = samples["x0"][sample]
        seeds = derive_seeds(0, self.updates, batch["seed"], batch["draw"], stream=self.name)
        eps = Noise(seeds, x0.device).normal(x0.shape[1:], x0.dtype)
        return x0, eps, corrupt(x0, eps, batch["t"]), samples["cond"][sample]

    def _velocities(self, x_t: Tensor, t: Tensor, cond: TensorDict) -> tuple[Tensor, Tensor, Tensor | None]:
        """The learner's velocity, with its graph, the old policy's, and the base's where `asks_base`."""
        # The base first: its activations are gone before the learner's graph is built.
        v_base = self._velocity_of(None, x_t, t, cond) if self.asks_base else None
        v = self._velocity(x_t, t, cond)
        return v, self._velocity_beside(v, "old", x_t, t, cond), v_base

    def _held(self, v: Tensor, v_base: Tensor | None) -> dict[str, Tensor]:
        """The KL term."""
        if v_base is None or not self.kl > 0:
            return {}
        drift = (v - v_base).square().mean()
        return {"loss_kl": self.kl * drift, "kl": drift.detach()}

    def old_decay(self) -> float:
        return old_decay(self.old, self.updates)

    def workload(self) -> Workload:
        assert self.sampling is not None
        steps = self.sampling.steps
        # Where `old` is the learner itself an iteration's first pass needs no forward of it.
        old = 1 - 1 / self.epochs if self.old in ("on_policy", 0) else 1.0
        beside = {"old": old} | ({None: 1.0} if self.asks_base else {})
        times = share_of_steps(steps, self.time_share)
        return Workload(self.group_size, steps=steps, times=times, epochs=self.epochs, beside=beside)
