"""DPO for flow models (Wallace et al. 2023, arXiv 2311.12908), on the policy's own samples or on a preference dataset.

    L = -log sigmoid(-(beta / 2) [(e_theta(w) - e_base(w)) - (e_theta(l) - e_base(l))]),   e = mean (v_hat - v)^2,

winner and loser noised by the same eps to the same t. Pairs of a group: the best and the worst sample, or the top N
against the bottom N with the weights of DP2O-SR (arXiv 2510.18851).

Of a policy that writes, e is minus a document's log-probability, summed over its tokens: DPO as it was for language
(Rafailov et al. 2023, arXiv 2305.18290), whose beta is half of this one.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent, matching_error
from srgym.agents.groups import Combine, GroupFilter, assess, from_config, group_moments
from srgym.agents.rows import make_rows, shared
from srgym.agents.timesteps import corrupt, draw_times
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.tokens import AutoregressivePolicy, TokenSampling
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["DPO", "Pairs", "dpo_loss", "dpo_margin", "pair_up"]

PAIRS = ("best_worst", "top_n", "offline")
_SMOOTHING, _WARM_UP = 0.9, 10  # of accuracy and margin, in updates


def dpo_margin(err_win: Tensor, ref_win: Tensor, err_lose: Tensor, ref_lose: Tensor, *, beta: float) -> Tensor:
    """The implicit reward of the winner over the loser, -(beta / 2) [(e_w - ref_w) - (e_l - ref_l)]: all [B]."""
    return -0.5 * beta * ((err_win - ref_win) - (err_lose - ref_lose))


def dpo_loss(err_win: Tensor, ref_win: Tensor, err_lose: Tensor, ref_lose: Tensor, *, beta: float) -> Tensor:
    """Diffusion-DPO's loss of each pair.

    Args:
        err_win, err_lose: the learner's mean squared errors of the velocity on winner and loser, [B].
        ref_win, ref_lose: the base's.
        beta: the strength of the tie to the base.

    Returns:
        [B].
    """
    return -F.logsigmoid(dpo_margin(err_win, ref_win, err_lose, ref_lose, beta=beta))


class Pairs(NamedTuple):
    """Winners and losers as places in the batch, int64 [P]; the pairs' weights [P]; how many were too close.

    `skipped` counts those of each group, int64 [G].
    """

    win: Tensor
    lose: Tensor
    weight: Tensor
    skipped: Tensor

    def within(self, own: slice, group_size: int) -> "Pairs":
        """The pairs of the groups at these places alone, counted from there."""
        kept = (self.win >= own.start) & (self.win < own.stop)
        skipped = self.skipped[own.start // group_size : own.stop // group_size]
        return Pairs(self.win[kept] - own.start, self.lose[kept] - own.start, self.weight[kept], skipped)


def pair_up(
    score: Tensor,
    keep: Tensor,
    group_size: int,
    *,
    top: int | None = None,
    min_gap: float = 0.0,
) -> Pairs:
    """Pairs inside each group, all of whose scores differ by at least `min_gap` and by more than 0.

    Args:
        score: [N], groups contiguous. keep: bool [N], who may be in a pair.
        group_size: K.
        top: None for the best against the worst, of weight 1; N for the N best against the N worst (fewer in a group
            that hasn't 2 N), N^2 pairs weighted as in DP2O-SR: (gap + 1 - mean gap of the group's pairs) times
            (std of the group + 1 - mean std of the groups).
    """
    win, lose, weight, group = [], [], [], []
    skipped = torch.zeros(len(score) // group_size, dtype=torch.int64)
    for start in range(0, len(score), group_size):
        place = start + keep[start : start + group_size].nonzero().flatten()
        count = min(top or 1, len(place) // 2)
        if not count:
            continue
        order = place[score[place].argsort(descending=True, stable=True)]
        best, worst = order[:count].repeat_interleave(count), order[-count:].repeat(count)
        gap = score[best] - score[worst]
        fit = (gap >= min_gap) & (gap > 0)
        skipped[start // group_size] = (~fit).sum()
        win.append(best[fit])
        lose.append(worst[fit])
        weight.append((gap + 1 - gap[fit].mean())[fit] if top is not None else torch.ones_like(gap[fit]))
        group.append(torch.full_like(best[fit], start // group_size))
    if not win:
        none = torch.zeros(0, dtype=torch.int64, device=score.device)
        return Pairs(none, none, torch.zeros(0, device=score.device), skipped)
    weights = torch.cat(weight)
    if top is not None:
        std, of_group = group_moments(score, group_size, keep)[1].to(score.dtype), torch.cat(group)
        weights = weights * (std[of_group] + 1 - std[torch.unique(of_group)].mean())
    return Pairs(torch.cat(win), torch.cat(lose), weights, skipped)


class DPO(FlowAgent):
    """Diffusion-DPO, and DPO of documents.

    Offline (`pairs="offline"`), `prepare` takes a TensorDict [N] with `cond`, `seed` and the preferred and the other
    image as `win` and `lose`, [N, 3, H, W] in [0, 1] (or their latents as `win_x0` and `lose_x0`); no environment step
    is made.

    Args:
        policy: with adapters; the base is the reference. One that writes has pairs of its own samples alone.
        reward: any, for pairs of one's own samples; not used offline.
        group_size: K; 1 offline unless given.
        steps, solver: of a flow policy's rollout. temperature: of one that writes.
        beta: published code of flows ranges from 100 to 5000; None: 2000, and 0.2 of documents.
        pairs: "best_worst", "top_n" or "offline".
        top: N of "top_n".
        min_gap: a pair whose scores are closer is skipped, and counted.
        draws: times at which each pair is trained in an iteration.
        epochs: optimiser steps of an iteration, each on all rows, with fresh noise and times.
        stop_accuracy, stop_margin: `finished` is set once the smoothed accuracy and the smoothed margin are both
            beyond these: the pairs are told apart, and the margin only grows.
        filter, combine: see `DiffusionNFT`.
        ema, provides: see `Agent`.
    """

    name = "dpo"
    trains: ClassVar[Any] = (FlowPolicy, AutoregressivePolicy)

    def __init__(
        self,
        policy: FlowPolicy | AutoregressivePolicy,
        reward: Reward | None = None,
        *,
        group_size: int | None = None,
        steps: int = 6,
        solver: str = "dpm2m",
        temperature: float = 1.0,
        beta: float | None = None,
        pairs: str = "best_worst",
        top: int = 2,
        min_gap: float = 0.0,
        draws: int = 1,
        epochs: int = 1,
        stop_accuracy: float = 0.98,
        stop_margin: float = 10.0,
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        if pairs not in PAIRS:
            raise Refusal(f"pairs is one of {', '.join(PAIRS)}, got '{pairs}'")
        offline = pairs == "offline"
        self.needs = frozenset({Need.PREFERENCES if offline else Need.GROUPS})
        size = group_size if group_size is not None else 1 if offline else 8
        super().__init__(
            policy, None if offline else reward, group_size=size, epochs=epochs, ema=ema, provides=provides
        )
        self._require_adapters("the base")
        self._writer = policy if isinstance(policy, AutoregressivePolicy) else None
        if self._writer is not None and offline:
            raise Incompatible(
                f"pairs='offline' are pairs of images, and '{policy.name}' learns from whole documents: take "
                "pairs='best_worst' or 'top_n', or a flow policy"
            )
        if beta is None:
            beta = 2000.0 if self._writer is None else 0.2
        if not (beta > 0 and top >= 1 and min_gap >= 0 and draws >= 1):
            raise Refusal(
                "expected beta above 0, top and draws of at least 1 and min_gap of at least 0, got "
                f"{beta}, {top}, {draws} and {min_gap}"
            )
        sampling = Sampling(steps=steps, solver=solver) if self._writer is None else TokenSampling(temperature)
        self.sampling = None if offline else sampling
        self.beta, self.pairs, self.top, self.min_gap, self.draws = beta, pairs, top, min_gap, draws
        self.stop_accuracy, self.stop_margin = stop_accuracy, stop_margin
        kept = from_config(GroupFilter, filter)
        self.filter = kept.for_reward(reward) if kept is not None else None
        self.combine = from_config(Combine, combine)
        self._smooth = {"accuracy": 0.0, "margin": 0.0, "weight": 0.0}

    def prepare(self, rollout: TensorDict) -> TensorDict:
        if self.pairs == "offline":
            count = len(rollout)
            win, lose = (self._latents(rollout, side) for side in ("win", "lose"))
            context = torch.arange(count, device=win.device)
            weight = torch.ones(count, device=win.device)
            seed = rollout["seed"]
            self.stats = {"pairs": float(count)}
        else:
            groups = assess(rollout, self.group_size, filter=self.filter, combine=self.combine)
            top = self.top if self.pairs == "top_n" else None
            pairs = pair_up(groups.score, groups.keep, self.group_size, top=top, min_gap=self.min_gap)
            pairs = pairs.within(groups.own, self.group_size)
            self.stats = groups.stats | {"pairs": float(len(pairs.win)), "pairs_skipped": float(pairs.skipped.sum())}
            seeds = rollout["seed"]
            context, other, weight = (column.to(seeds.device) for column in (pairs.win, pairs.lose, pairs.weight))
            if self._writer is not None:
                return make_rows(rollout.select("tokens", "place", "cond"), context, lose=other, weight=weight)
            x0 = rollout["x0"]
            win, lose = x0[context], x0[other]
            seed = derive_seeds(0, 0, seeds[context], seeds[other], stream="pairs")
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

    @torch.no_grad()
    def _latents(self, rollout: TensorDict, side: str) -> Tensor:
        latents: Tensor | None = rollout.get(f"{side}_x0", None)
        if latents is not None:
            return latents
        if rollout.get(side, None) is None:
            raise Refusal(
                f"offline DPO trains on pairs of images: expected '{side}' [N, 3, H, W] (or '{side}_x0'), got "
                f"{', '.join(sorted(map(str, rollout.keys())))}; a preference dataset provides them"
            )
        return self.policy.to_latent(rollout[side], rollout["cond"])

    def loss(self, batch: TensorDict) -> TensorDict:
        errors = self._flow_errors(batch) if self._writer is None else self._document_errors(self._writer, batch)
        (err_win, err_lose), (ref_win, ref_lose) = (each.chunk(2) for each in errors)
        each = dpo_loss(err_win, ref_win, err_lose, ref_lose, beta=self.beta)
        margin = dpo_margin(err_win, ref_win, err_lose, ref_lose, beta=self.beta).detach()
        return TensorDict(
            {
                "loss_policy": (batch["weight"] * each).mean(),
                "margin": margin.mean(),
                "accuracy": (margin > 0).to(margin.dtype).mean(),
            }
        )

    def _document_errors(self, policy: AutoregressivePolicy, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """The learner's errors and the base's, winners before losers: [2 B] each."""
        samples, sample = shared(batch)
        both = torch.cat([sample, batch["lose"]])
        document = (samples["tokens"][both], samples["place"][both], samples["cond"][both])
        with torch.no_grad(), policy.adapter(None):
            reference = -policy.log_prob(*document).log_prob.sum(1)
        return -policy.log_prob(*document).log_prob.sum(1), reference

    def _flow_errors(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """As `_document_errors`."""
        samples, sample = shared(batch)
        x0 = torch.cat([batch["win"], batch["lose"]])
        seeds = derive_seeds(0, self.updates, batch["seed"], batch["draw"], stream="dpo")
        noise = Noise(seeds, x0.device)
        t, eps = draw_times(noise, "logit_normal"), noise.normal(x0.shape[1:], x0.dtype)
        t, eps = torch.cat([t, t]), torch.cat([eps, eps])
        cond = samples["cond"][sample.repeat(2)]
        x_t, v = corrupt(x0, eps, t), eps - x0
        reference = matching_error(self._velocity_of(None, x_t, t, cond), v)
        return matching_error(self._velocity(x_t, t, cond), v), reference

    def observe(self, terms: Mapping[str, float]) -> None:
        now = {"accuracy": terms["accuracy"], "margin": terms["margin"], "weight": 1.0}
        self._smooth = {k: _SMOOTHING * held + (1 - _SMOOTHING) * now[k] for k, held in self._smooth.items()}

    @property
    def finished(self) -> bool:
        """Whether winners and losers are told apart almost always and the margin still grows: time to stop."""
        weight = max(self._smooth["weight"], 1e-12)
        accuracy, margin = self._smooth["accuracy"] / weight, self._smooth["margin"] / weight
        return self.updates >= _WARM_UP and accuracy >= self.stop_accuracy and margin >= self.stop_margin

    def workload(self) -> Workload:
        rows = {"best_worst": 1, "top_n": min(self.top, self.group_size // 2) ** 2, "offline": self.group_size}
        times = 2 * rows[self.pairs] * self.draws / self.group_size  # a row is a winner and a loser
        steps = 0 if self.sampling is None else getattr(self.sampling, "steps", 1)
        return Workload(self.group_size, steps=steps, times=times, epochs=self.epochs, beside={None: 1.0})

    def state(self) -> dict[str, Tensor | float | int]:
        return super().state() | {f"smooth_{name}": value for name, value in self._smooth.items()}

    def load_state(self, state: Mapping[str, Tensor | float | int]) -> None:
        super().load_state(state)
        self._smooth = {name: float(state[f"smooth_{name}"]) for name in self._smooth}
