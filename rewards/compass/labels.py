"""COMPASS-20K's annotation pipeline as pure functions: exhaustive ranking inside a group, then calibration.

OARS (arXiv 2603.12811) labels perceptual quality in three stages: an absolute scorer anchors every candidate on [1, 5],
all pairs of a group are compared, and a linear map puts the ranking on the anchor's scale.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal

__all__ = [
    "MOST_INVERTED", "Calibration", "bradley_terry", "calibrate", "calibrate_groups", "median_slope", "min_max",
    "outcomes_from_scores", "ranks", "tie_margins", "win_rates",
]  # fmt: skip

MOST_INVERTED = 0.15
"""Share of groups whose ranking the anchor contradicts, above which the anchor is noise: of groups of twelve it is .14
at a correlation of .3 between anchor and ranking, .02 at .5."""


def outcomes_from_scores(score: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """Every ordered comparison of a group by a score [N]: 1 wins, 0 loses, 0.5 within `margin` (of all, or of each pair
    [N, N]): [N, N].

    The diagonal is 0.5.
    """
    gap = score[:, None] - score[None, :]
    return torch.where(gap.abs() <= margin, 0.5, (gap > 0).to(torch.float64))


def tie_margins(score: Tensor, families: Tensor, share: float) -> Tensor:
    """How far apart two scores must be not to be a tie: a share of the usual gap among their like.

    The samples of one policy differ a thirtieth of what candidates do, so that one margin for all ties every pair of
    them or none of the others.

    Args:
        score: [N]. families: int64 [N], which candidates come of one method. share: of the median gap.

    Returns:
        [N, N]: `share` times the median gap among the samples of a method for two of them, among all for other pairs.
    """
    gap = (score[:, None] - score[None, :]).abs()
    apart = ~torch.eye(len(score), dtype=torch.bool)
    margin = torch.full_like(gap, share * _median(gap[apart]))
    for family in set(families.tolist()):
        own = families == family
        inside = own[:, None] & own[None, :]
        margin[inside] = share * _median(gap[inside & apart])
    return margin


def _median(gaps: Tensor) -> float:
    known = gaps[gaps.isfinite()]
    return float(known.median()) if len(known) else 0.0


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


def bradley_terry(outcome: Tensor, alpha: float = 0.1) -> Tensor:
    """Strengths under Bradley and Terry's model, of comparisons that aren't complete: [N, N] to [N], their mean 0.

    Args:
        outcome: NaN where two weren't compared; 0.5 counts as half a win of either.
        alpha: of the regularisation, above 0: without it a candidate that never loses has no finite strength.

    Raises:
        MissingFile: without the package choix.
    """
    if find_spec("choix") is None:
        raise MissingFile(
            'ranking incomplete comparisons needs choix, which isn\'t installed: pip install "srgym[judge]"'
        )
    import choix

    n = len(outcome)
    wins = outcome.nan_to_num(0.0) + (1 - outcome.T).nan_to_num(0.0)
    wins.fill_diagonal_(0)
    strength = choix.ilsr_pairwise_dense(wins.numpy(), alpha=alpha) if n > 1 else [0.0]
    return torch.as_tensor(strength, dtype=torch.float64)


def ranks(outcome: Tensor) -> Tensor:
    """r of a group's comparisons [N, N], in [0, 1].

    Of win rates where every pair was compared, as simulations find best, else of Bradley and Terry's strengths.
    """
    apart = ~torch.eye(len(outcome), dtype=torch.bool)
    whole = bool(outcome[apart].isfinite().all())
    return min_max(win_rates(outcome.nan_to_num(0.5)) if whole else bradley_terry(outcome))


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
            where it would have turned the ranking round and another slope took its place, "clamped" where the ends of
            the scale made one score of several ranks.
        offset: beta.
    """

    score: Tensor
    slope: float
    flag: str
    offset: float = 0.0


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
        return Calibration(anchor.mean().expand_as(anchor).clone(), 0.0, "tied", float(anchor.mean()))
    slope = float((centred * (anchor - anchor.mean())).mean() / variance)
    flag = ""
    if slope <= 0:
        slope, flag = fallback_slope or 0.0, "inverted"
    score = (slope * centred + anchor.mean()).clamp(1, 5)
    if not flag and len(set(score.tolist())) < len(set(r.tolist())):
        flag = "clamped"
    return Calibration(score, slope, flag, float(anchor.mean() - slope * r.mean()))


def calibrate_groups(
    groups: list[tuple[Tensor, Tensor]], inverted: str = "median", most: float = MOST_INVERTED
) -> list[Calibration | None]:
    """Calibrate the groups of a set, (r [N], anchor [N]) each.

    Args:
        inverted: what becomes of a group whose slope isn't positive: "median", the median positive slope of the others;
            or "drop", and it is None.
        most: share of such groups above which the set is refused.

    Raises:
        Refusal: for an anchor that contradicts the ranking in too many groups, or another `inverted`.
    """
    if inverted not in ("median", "drop"):
        raise Refusal(f"expected inverted groups to take the median slope or to be dropped, got '{inverted}'")
    fallback = median_slope(groups)
    made = [calibrate(r, anchor, fallback) for r, anchor in groups]
    fitted = [own for own in made if own.flag != "tied"]
    turned = sum(own.flag == "inverted" for own in fitted)
    if fitted and turned > most * len(fitted):
        raise Refusal(
            f"in {turned} of {len(fitted)} groups the anchor rates worse what comparisons rank better, more than "
            f"{most:.0%}: such an anchor is noise. Take another, or average more of its answers"
        )
    return [None if own.flag == "inverted" and inverted == "drop" else own for own in made]


def median_slope(groups: list[tuple[Tensor, Tensor]]) -> float | None:
    """The median positive slope over groups of (r, anchor); None where no group has one."""
    slopes = [calibrate(r, anchor).slope for r, anchor in groups]
    positive = [slope for slope in slopes if slope > 0]
    return float(torch.tensor(positive).median()) if positive else None
