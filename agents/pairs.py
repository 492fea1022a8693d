"""Pairs of a group's samples: a better one and a worse one."""

from typing import NamedTuple

import torch
from torch import Tensor

from srgym.agents.groups import group_moments

__all__ = ["Pairs", "pair_up"]


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
