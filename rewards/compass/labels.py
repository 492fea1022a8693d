"""COMPASS-20K's annotation pipeline as pure functions: exhaustive ranking inside a group, then calibration.

OARS (arXiv 2603.12811) labels perceptual quality in three stages: an absolute scorer anchors every candidate on [1, 5],
all pairs of a group are compared, and a linear map puts the ranking on the anchor's scale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from srgym.errors import Refusal

__all__ = ["Calibration", "calibrate", "median_slope", "min_max", "outcomes_from_scores", "win_rates"]


def outcomes_from_scores(score: Tensor, margin: float = 0.0) -> Tensor:
    """Every ordered comparison of a group by a score [N]: 1 wins, 0 loses, 0.5 within `margin`: [N, N].

    The diagonal is 0.5.
    """
    gap = score[:, None] - score[None, :]
    return torch.where(gap.abs() <= margin, 0.5, (gap > 0).to(torch.float64))


def outcomes(compare: Callable[[int, int], float], n: int) -> Tensor:
    """Every ordered comparison of a group of n by a judge: both orders are asked, since judges prefer positions.

    Args:
        compare: (i, j) to 1 if the first shown is better, 0 if the second, 0.5 if neither.
    """
    result = torch.full((n, n), 0.5, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            if i != j:
                result[i, j] = compare(i, j)
    return result


def win_rates(outcome: Tensor) -> Tensor:
    """Each candidate's mean outcome against the others, over both orders: [N, N] to [N] in [0, 1].

    Raises:
        ValueError: if the outcomes aren't a square matrix of values in [0, 1].
    """
    if outcome.dim() != 2 or outcome.shape[0] != outcome.shape[1]:
        raise Refusal(f"outcomes of a group of N are an [N, N] matrix, got {tuple(outcome.shape)}")
    if bool(((outcome < 0) | (outcome > 1)).any()):
        raise Refusal("outcomes are between 0 (loses) and 1 (wins), got values outside")
    n = len(outcome)
    if n == 1:
        return outcome.new_full((1,), 0.5)
    both = 0.5 * (outcome + 1 - outcome.T)
    return (both.sum(1) - both.diagonal()) / (n - 1)


def min_max(rate: Tensor) -> Tensor:
    """r = (c - min c) / (max c - min c), and 0.5 throughout where all are equal: [N] to [N] in [0, 1]."""
    low, high = rate.min(), rate.max()
    return (rate - low) / (high - low) if bool(high > low) else torch.full_like(rate, 0.5)


@dataclass(frozen=True)
class Calibration:
    """Calibrated scores of one group.

    Attributes:
        score: Q^ = slope * r + offset, [N], in [1, 5].
        slope: alpha.
        flag: "" where the fit stands, "tied" where it can't be made (one candidate, or all rated alike), "inverted"
            where it would have turned the ranking round and another slope took its place.
    """

    score: Tensor
    slope: float
    flag: str


def calibrate(r: Tensor, anchor: Tensor, fallback_slope: float | None = None) -> Calibration:
    """The least-squares line of anchor scores on ranks: alpha = cov(r, Q) / var(r), beta = mean Q - alpha mean r.

    Args:
        r: ranks in [0, 1], [N].
        anchor: absolute scores in [1, 5], [N].
        fallback_slope: what replaces a slope that isn't positive (the median positive slope over groups). None leaves
            such a group at its mean.
    """
    if r.shape != anchor.shape or r.dim() != 1:
        raise Refusal(f"ranks and anchors are both [N], got {tuple(r.shape)} and {tuple(anchor.shape)}")
    centred = r - r.mean()
    variance = centred.square().mean()
    if len(r) == 1 or float(variance) == 0.0:
        return Calibration(anchor.mean().expand_as(anchor).clone(), 0.0, "tied")
    slope = float((centred * (anchor - anchor.mean())).mean() / variance)
    flag = ""
    if slope <= 0:
        slope, flag = fallback_slope or 0.0, "inverted"
    return Calibration((slope * centred + anchor.mean()).clamp(1, 5), slope, flag)


def median_slope(groups: list[tuple[Tensor, Tensor]]) -> float | None:
    """The median positive slope over groups of (r, anchor); None where no group has one."""
    slopes = [calibrate(r, anchor).slope for r, anchor in groups]
    positive = [slope for slope in slopes if slope > 0]
    return float(torch.tensor(positive).median()) if positive else None
