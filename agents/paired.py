"""Agents that learn from pairs of images of one context: of the policy's own samples, or of a preference dataset."""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.agents.groups import Combine, Comparison, GroupFilter
from srgym.agents.pairs import Pairs, pair_up
from srgym.agents.rows import make_rows, shared
from srgym.agents.timesteps import corrupt, draw_times
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.policies.flow import Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["PAIRS", "PairAgent"]

PAIRS = ("best_worst", "top_n", "offline")


class PairAgent(FlowAgent):
    """What such agents share.

    Offline (`pairs="offline"`), `prepare` takes a TensorDict [N] with `cond`, `seed` and the preferred and the other
    image as `win` and `lose`, [N, 3, H, W] in [0, 1] (or their latents as `win_x0` and `lose_x0`); no environment step
    is made.

    Args:
        policy: what is trained.
        reward: any, for pairs of one's own samples; not used offline.
        group_size: K; None: 8, and 1 offline.
        steps, solver: of the rollout.
        pairs: "best_worst", "top_n" or "offline".
        top: N of "top_n".
        min_gap: a pair whose scores are closer is skipped, and counted.
        draws: times at which each pair is trained in an iteration.
        filter, combine: see `Comparison`.
        epochs: optimiser steps of an iteration, each on all rows, with fresh noise and times.
        ema, provides: see `Agent`.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward | None = None,
        *,
        group_size: int | None = None,
        steps: int = 6,
        solver: str = "dpm2m",
        pairs: str = "best_worst",
        top: int = 2,
        min_gap: float = 0.0,
        draws: int = 1,
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if pairs not in PAIRS:
            raise Refusal(f"pairs is one of {', '.join(PAIRS)}, got '{pairs}'")
        if not (top >= 1 and min_gap >= 0 and draws >= 1):
            raise Refusal(
                f"expected top and draws of at least 1 and min_gap of at least 0, got {top}, {draws} and {min_gap}"
            )
        self.offline = pairs == "offline"
        self.needs = frozenset({Need.PREFERENCES if self.offline else Need.GROUPS})
        size = group_size if group_size is not None else 1 if self.offline else 8
        super().__init__(policy, None if self.offline else reward, group_size=size, **options)
        self.sampling = None if self.offline else Sampling(steps=steps, solver=solver)
        self.pairs, self.top, self.min_gap, self.draws = pairs, top, min_gap, draws
        self.compare = Comparison(reward, size, filter=filter, combine=combine)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        if self.offline:
            count = len(rollout)
            win, lose = (self._latents(rollout, side) for side in ("win", "lose"))
            context = torch.arange(count, device=win.device)
            weight = torch.ones(count, device=win.device)
            seed = rollout["seed"]
            self.stats = {"pairs": float(count)}
        else:
            context, other, weight, _ = self._pair(rollout)
            win, lose = rollout["x0"][context], rollout["x0"][other]
            seed = derive_seeds(0, 0, rollout["seed"][context], rollout["seed"][other], stream="pairs")
        again, draw = self.draws, torch.arange(self.draws, device=context.device)
        return make_rows(
            rollout.select("cond"),
            context.repeat_interleave(again),
            win=win.repeat_interleave(again, 0),
            lose=lose.repeat_interleave(again, 0),
            weight=weight.repeat_interleave(again),
            seed=seed.to(context.device).repeat_interleave(again),
            draw=draw.repeat(len(context)),
        )

    def _pair(self, rollout: TensorDict) -> Pairs:
        """The pairs that a scored rollout holds, where the rollout is."""
        groups = self.compare(rollout)
        top = self.top if self.pairs == "top_n" else None
        pairs = pair_up(groups.score, groups.keep, self.group_size, top=top, min_gap=self.min_gap)
        pairs = pairs.within(groups.own, self.group_size)
        self.stats = groups.stats | {"pairs": float(len(pairs.win)), "pairs_skipped": float(pairs.skipped.sum())}
        return Pairs(*(column.to(rollout["seed"].device) for column in pairs))

    @torch.no_grad()
    def _latents(self, rollout: TensorDict, side: str) -> Tensor:
        latents: Tensor | None = rollout.get(f"{side}_x0", None)
        if latents is not None:
            return latents
        if rollout.get(side, None) is None:
            raise Refusal(
                f"offline {type(self).__name__} trains on pairs of images: expected '{side}' [N, 3, H, W] (or "
                f"'{side}_x0'), got {', '.join(sorted(map(str, rollout.keys())))}; a preference dataset provides them"
            )
        return self.policy.to_latent(rollout[side], rollout["cond"])

    def _noised(self, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor, TensorDict]:
        """Winners before losers, noised alike: v, x_t [2 B, ...], t [2 B] and the conditions."""
        samples, sample = shared(batch)
        x0 = torch.cat([batch["win"], batch["lose"]])
        seeds = derive_seeds(0, self.updates, batch["seed"], batch["draw"], stream=self.name)
        noise = Noise(seeds, x0.device)
        t, eps = draw_times(noise, "logit_normal"), noise.normal(x0.shape[1:], x0.dtype)
        t, eps = torch.cat([t, t]), torch.cat([eps, eps])
        return eps - x0, corrupt(x0, eps, t), t, samples["cond"][sample.repeat(2)]

    def workload(self) -> Workload:
        rows = {"best_worst": 1, "top_n": min(self.top, self.group_size // 2) ** 2, "offline": self.group_size}
        times = 2 * rows[self.pairs] * self.draws / self.group_size  # a row is a winner and a loser
        steps = 0 if self.sampling is None else getattr(self.sampling, "steps", 1)
        return Workload(self.group_size, steps=steps, times=times, epochs=self.epochs)
