"""The verdicts of an audit: each a pure function from what was measured to one line, with its threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from srgym.rewards.audit.faults import SEEN_BESIDE_A_REFERENCE
from srgym.rewards.check import CheckReport
from srgym.runners.measure.statistics import Interval, crossed_interval

__all__ = [
    "MARGINS", "Line", "above_truth", "attack_line", "bicubic_over_nearest", "contract", "fault_line",
    "floor_line", "group_correlations", "weight_at_gain", "overoptimisation", "signal_line", "truth_first",
]  # fmt: skip

Floats = NDArray[np.float64]

ABOVE_TRUTH = 0.05  # samples that may score above the truth
ATTACKED_ABOVE_TRUTH = 0.10  # of those that were changed by two grey levels
RANKS_KEPT = 0.90  # mean rank correlation with what nobody would see a difference from
ORDERED = 0.95  # pairs of whole images that everybody would order alike
NOTICED = 0.75  # faults on 15% of the area
SHARE_OF_GAIN = 0.8  # of the reward's gain, at which no judge may lie below the start

# How far below the start a judge may lie: what its readers call the same.
MARGINS = {
    "psnr_y": 0.1, "psnr_chroma": 0.1, "ssim_y": 0.005, "ms_ssim": 0.005, "structure_texture": 0.005,
    "lite0_features": 0.01, "lite0_statistics": 0.01, "flip": 0.002, "ssimulacra2": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One verdict.

    Attributes:
        part: what of the audit it belongs to. name: what was asked.
        holds: the answer; None where it can't be asked of this reward, and `measured` says why.
        measured, wanted: in words, with numbers.
    """

    part: str
    name: str
    holds: bool | None
    measured: str
    wanted: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _share(holds: ArrayLike) -> float:
    return float(np.mean(np.asarray(holds, dtype=np.float64)))


# Signal inside a group


def above_truth(samples: ArrayLike, truth: ArrayLike) -> Line:
    """Samples [N, K] of one policy, and the truth [N]: how many of them does the reward put above it?"""
    share = _share(np.asarray(samples) > np.asarray(truth)[:, None])
    return Line(
        "signal", "samples below the truth", share <= ABOVE_TRUTH,
        f"{share:.0%} of samples score above the truth", f"at most {ABOVE_TRUTH:.0%}",
    )  # fmt: skip


def group_correlations(a: ArrayLike, b: ArrayLike) -> Floats:
    """Spearman's rank correlation of scores [N, K] inside each group: [N]; NaN where either is constant or invalid."""
    correlations = []
    for x, y in zip(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), strict=True):
        there = np.isfinite(x) & np.isfinite(y)
        steady = there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0
        correlations.append(np.nan if steady else stats.spearmanr(x[there], y[there]).statistic)
    return np.asarray(correlations)


def floor_line(nuisance: str, samples: ArrayLike, disturbed: ArrayLike) -> Line:
    """Whether a change that nobody would see leaves the ranks of samples [N, K] alone."""
    rho = group_correlations(samples, disturbed)
    name, wanted = f"ranks kept under {nuisance}", f"rank correlation of at least {RANKS_KEPT:g}"
    if np.isnan(rho).all():
        return Line("signal", name, False, "no group whose samples it tells apart", wanted)
    mean = float(np.nanmean(rho))
    return Line("signal", name, mean >= RANKS_KEPT, f"mean rank correlation {mean:.2f}", wanted)


def signal_line(judge: str, samples: ArrayLike, judged: ArrayLike, photographs: Sequence[str]) -> Line:
    """Whether samples [N, K] of one context rank against a fidelity measure of them, significantly."""
    rho = crossed_interval(group_correlations(samples, judged)[None], photographs)
    return Line(
        "signal", f"ranks not against {judge}", None if rho.value != rho.value else not rho.below_zero,
        f"rank correlation in groups {rho.value:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]",
        "not below zero, over photographs",
    )  # fmt: skip


# Sanity


def truth_first(truth: ArrayLike, others: Mapping[str, ArrayLike]) -> Line:
    """Whether the truth [N] scores above other makers' images of the same contexts, [N] each."""
    shares = {name: _share(np.asarray(truth) > np.asarray(score)) for name, score in others.items()}
    words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    holds = min(shares.values()) >= ORDERED
    return Line("sanity", "truth first", holds, f"the truth scores above {words}", f"at least {ORDERED:.0%} each")


def bicubic_over_nearest(bicubic: ArrayLike, nearest: ArrayLike) -> Line:
    """Whether the smooth enlargement [N] scores above pixels drawn as squares [N]."""
    share = _share(np.asarray(bicubic) > np.asarray(nearest))
    return Line("sanity", "bicubic over nearest", share >= ORDERED, f"{share:.0%} of contexts", f"{ORDERED:.0%}")


def fault_line(kind: str, clean: ArrayLike, whole: ArrayLike, part: ArrayLike, reference: bool) -> Line:
    """Whether images lose by a fault.

    Args:
        clean: [N]. whole, part: [N, strengths], spoilt everywhere, and on 15% of the area.
        reference: whether the reward is shown what the image should be.
    """
    base = np.asarray(clean)[:, None]
    everywhere, somewhere = _share(np.asarray(whole) < base), _share(np.asarray(part) < base)
    wanted = f"noticed in {ORDERED:.0%} everywhere, in {NOTICED:.0%} on 15% of the area"
    if kind in SEEN_BESIDE_A_REFERENCE and not reference:
        return Line("sanity", kind, None, "it sees no reference to know this by", wanted)
    holds = everywhere >= ORDERED and somewhere >= NOTICED
    return Line("sanity", kind, holds, f"{everywhere:.0%} everywhere, {somewhere:.0%} on 15% of the area", wanted)


# Attack


def attack_line(scores: Mapping[int, ArrayLike], truth: ArrayLike, way: str) -> Line:
    """Whether samples stay below the truth [N] under attack: scores [N] by grey levels allowed."""
    shares = {levels: _share(np.asarray(score) > np.asarray(truth)) for levels, score in sorted(scores.items())}
    words = ", ".join(f"{share:.0%} within {levels}" for levels, share in shares.items())
    return Line(
        "attack", "attacked samples stay below the truth", shares[2] <= ATTACKED_ABOVE_TRUTH,
        f"above the truth by {way}: {words} grey levels", f"at most {ATTACKED_ABOVE_TRUTH:.0%} within 2",
    )  # fmt: skip


# Over-optimisation


def weight_at_gain(weights: Sequence[float], reward: ArrayLike, share: float = SHARE_OF_GAIN) -> float | None:
    """The least weight of the LoRA at which the mean reward [W] has made `share` of its gain at weight 1.

    Linear between weights; None where training raised nothing.
    """
    curve, at = np.asarray(reward, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    gain = curve[list(weights).index(1.0)] - curve[0]
    if not gain > 0:
        return None
    grid = np.linspace(0, 1, 401)
    return float(grid[np.flatnonzero(np.interp(grid, at, curve) - curve[0] >= share * gain - 1e-12)[0]])


def overoptimisation(
    judge: str, weights: Sequence[float], reward: ArrayLike, judged: ArrayLike, photographs: Sequence[str]
) -> tuple[Line, float | None]:
    """Whether a judge has fallen where most of the reward's gain is made, and the weight to stop at for it.

    Args:
        weights: [W] of the LoRA, from 0. reward: [W], its mean. judged: [W, N], a judge's scores of each context.

    Returns:
        The line; and the greatest weight up to which the judge isn't below the start by more than its margin (0: it
        falls at once), None where training raised nothing.
    """
    scores, margin = np.asarray(judged, dtype=np.float64), MARGINS.get(judge, 0.0)
    change = scores - scores[0]
    name, wanted = f"{judge} at {SHARE_OF_GAIN:.0%} of the gain", f"not below the start by more than {margin:g}"
    at = weight_at_gain(weights, reward)
    if at is None:
        return Line("over-optimisation", name, None, "the short training didn't raise the reward", wanted), None
    moved = np.stack([np.interp(at, weights, column) for column in change.T])
    there = crossed_interval(moved[None], photographs)
    stop = 0.0
    for weight, column in zip(weights, change, strict=True):
        if _fallen(crossed_interval(column[None], photographs), margin):
            break
        stop = float(weight)
    line = Line(
        "over-optimisation", name, not _fallen(there, margin),
        f"{there.value:+.4f} [{there.low:+.4f}, {there.high:+.4f}] over the start", wanted,
    )  # fmt: skip
    return line, stop


def _fallen(change: Interval, margin: float) -> bool:
    return change.below_zero and change.value < -margin


# Contract


def contract(report: CheckReport) -> Line:
    """What `srgym rewards check` found."""
    failed = [finding.check for finding in report.findings if finding.status == "fails"]
    words = f"fails: {', '.join(failed)}" if failed else "batch, order, range, direction, repeat, gradient as declared"
    return Line("contract", "keeps a reward's contract", report.ok, words, "`srgym rewards check` finds nothing")
