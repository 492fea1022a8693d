"""Intervals and comparisons that reports are made of: plain numpy and scipy, fixed seeds, no data frames.

Scores are [R, T], seeds by contexts; `resampling.py` says what an interval of them means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from srgym.errors import Refusal
from srgym.runners.measure.resampling import (
    LEVEL,
    Band,
    Estimate,
    Floats,
    Interval,
    Spread,
    as_runs,
    complete,
    spread_of,
    student_band,
    student_interval,
    weighed,
)

__all__ = [
    "Band", "Components", "Interval", "cost_to_reach", "crossed_difference", "crossed_interval", "curve_band",
    "detection_power", "gain_over_start", "holm", "iqm", "performance_profile", "probability_of_improvement",
    "ratio_interval", "resampled_intervals", "seed_interval", "units_needed", "variance_components",
]  # fmt: skip

Statistic = Literal["mean", "iqm"]


def _seeds(*runs: int) -> int:
    """How many seeds a comparison rests on: a single run, as the start is, isn't sampled."""
    several = [count for count in runs if count > 1]
    return min(several) if several else 1


def crossed_interval(
    scores: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    statistic: Statistic = "mean",
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean score of an algorithm, with its interval over training seeds and photographs together.

    Args:
        scores: [R, T], seeds by contexts; a context that lacks a valid score (NaN) for some seed is left out.
        cluster: [T], the photograph of each context; a photograph with more crops counts no more. None: each its own.
        statistic: "mean", or "iqm", the mean of the middle half of all scores.

    Returns:
        Of one photograph and one seed, of two seeds, or of scores without any spread: NaN bounds.
    """
    (own,), names = complete(scores, cluster=cluster)
    units = len(set(names))
    if not units:
        return Interval(np.nan, np.nan, np.nan, 0, len(own))
    spread = spread_of(_of_scores(own, statistic), [len(own)], names, resamples, seed)
    return student_interval(spread, 0.0, level, units, len(own))


def crossed_difference(
    x: ArrayLike, y: ArrayLike, cluster: ArrayLike | None = None, *, level: float = LEVEL, resamples: int = 2000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """mean(X) - mean(Y) on the same contexts, with its interval over the seeds of both and the photographs.

    Args:
        x, y: [R, T] and [Q, T]; a single run of either (the start) is taken as it is.
        cluster: see `crossed_interval`.
    """
    (a, b), names = complete(x, y, cluster=cluster)
    units, seeds = len(set(names)), _seeds(len(a), len(b))
    if not units:
        return Interval(np.nan, np.nan, np.nan, 0, seeds)

    def difference(runs: Sequence[Floats], contexts: Floats) -> Floats:
        return weighed(a, runs[0], contexts) - weighed(b, runs[1], contexts)

    return student_interval(spread_of(difference, [len(a), len(b)], names, resamples, seed), 0.0, level, units, seeds)


def resampled_intervals(
    estimate: Callable[[Floats, Floats], Floats], runs: int, photographs: int, *, null: float = 0.0,
    level: float = LEVEL, resamples: int = 1000, seed: int = 0,
) -> list[Interval]:  # fmt: skip
    """Intervals of any statistics of runs (or raters) on photographs, over both together.

    Args:
        estimate: from weights [B, runs] and [B, photographs], each row of sum 1 and one of the two of a single row, to
            the statistics [B, N].
        null: what `p` is against.

    Returns:
        N intervals; without bounds for two runs, see the module.
    """

    def both(weights: Sequence[Floats], contexts: Floats) -> Floats:
        return estimate(weights[0], contexts)

    spread = spread_of(both, [runs], np.arange(photographs), resamples, seed)
    each = zip(spread.value, spread.error, spread.freedom, strict=True)
    return [student_interval(Spread(*one), null, level, photographs, runs) for one in each]


def _of_scores(scores: Floats, statistic: Statistic) -> Estimate:
    if statistic == "mean":
        return lambda runs, contexts: weighed(scores, runs[0], contexts)
    order = np.argsort(scores, axis=None)
    ranked = scores.ravel()[order]

    def middle(runs: Sequence[Floats], contexts: Floats) -> Floats:
        weights = (runs[0][:, :, None] * contexts[:, None, :]).reshape(max(len(runs[0]), len(contexts)), -1)[:, order]
        upto = np.cumsum(weights, 1)
        inside = np.clip(upto, 0.25, 0.75) - np.clip(upto - weights, 0.25, 0.75)
        result: Floats = inside @ ranked / 0.5
        return result

    return middle


def seed_interval(scores: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The mean with Student's interval over training seeds alone, on these contexts as they are.

    Args:
        scores: [R, T]; contexts that lack a score are left out.
    """
    (own,), names = complete(scores, cluster=None)
    means, units = own.mean(1), len(names)
    if len(means) < 3 or not units or not means.std() > 0:
        return Interval(float(means.mean()) if units else np.nan, np.nan, np.nan, units, len(means))
    error = means.std(ddof=1) / np.sqrt(len(means))
    spread = Spread(means.mean(), error, np.asarray(len(means) - 1.0))
    return student_interval(spread, 0.0, level, units, len(means))


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: the mean of the middle half."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def gain_over_start(scores: ArrayLike, start: ArrayLike, *, in_spreads: bool = False) -> Floats:
    """Scores normalised so that the starting policy is 0 on every context.

    Args:
        scores: [R, T], seeds by contexts. start: [T], the starting policy's on the same contexts.
        in_spreads: divide by the standard deviation of `start` over contexts, so that metrics of other units compare.

    Raises:
        ValueError: where the starting policy scores the same on all contexts and there is no spread to divide by.
    """
    own, origin = as_runs(scores), np.asarray(start, dtype=np.float64)
    if origin.shape != own.shape[1:]:
        raise Refusal(f"expected the start's scores on {own.shape[1]} contexts, got {origin.shape}")
    gain: Floats = own - origin
    if not in_spreads:
        return gain
    spread = float(np.nanstd(origin))
    if spread <= 0:
        raise Refusal("the starting policy scores the same on all contexts: its spread can't be a unit")
    return gain / spread


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, cluster: ArrayLike | None = None, *, level: float = LEVEL, resamples: int = 2000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """How likely a run of X beats a run of Y on a context: mean over contexts of P(X > Y) + P(X = Y)/2 (Agarwal et al.
    2021, arXiv 2108.13264), with its interval over the seeds of both and the photographs, cut to [0, 1].

    Args:
        x, y: [R, T] and [Q, T]. cluster: see `crossed_interval`. `p` is against one half.
    """
    (a, b), names = complete(x, y, cluster=cluster)
    units, seeds = len(set(names)), min(len(a), len(b))
    if not units:
        return Interval(np.nan, np.nan, np.nan, 0, seeds)
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])

    def chance(runs: Sequence[Floats], contexts: Floats) -> Floats:
        count = max(len(runs[0]), len(runs[1]), len(contexts))
        ours, its, where = (np.broadcast_to(w, (count, w.shape[1])) for w in (*runs, contexts))
        result: Floats = np.einsum("br,bq,bt,rqt->b", ours, its, where, wins, optimize=True)
        return result

    spread = spread_of(chance, [len(a), len(b)], names, resamples, seed)
    # Chances pile up at 0 and 1, which a few seeds' resamples don't show: the fewest of anything decides.
    fewest = min([count - 1 for count in (len(a), len(b), units) if count > 1], default=1)
    whole = student_interval(Spread(spread.value, spread.error, np.asarray(float(fewest))), 0.5, level, units, seeds)
    if seeds < 3:
        return Interval(whole.value, np.nan, np.nan, units, seeds)
    low, high = (float(np.clip(bound, 0, 1)) for bound in (whole.low, whole.high))
    return Interval(whole.value, low, high, units, seeds, whole.p)


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, cluster: ArrayLike | None = None, *, level: float = LEVEL,
    resamples: int = 1000, seed: int = 0,
) -> Band:  # fmt: skip
    """The share of (seed, context) scores above each threshold, with its interval, cut to [0, 1].

    Args:
        scores: [R, T], normalised. thresholds: [P]. cluster: see `crossed_interval`.
    """
    (own,), names = complete(scores, cluster=cluster)
    taus = np.asarray(thresholds, dtype=np.float64)
    above = (own[None] > taus[:, None, None]).astype(np.float64)

    def shares(runs: Sequence[Floats], contexts: Floats) -> Floats:
        return np.stack([weighed(each, runs[0], contexts) for each in above], 1)

    band = student_band(taus, spread_of(shares, [len(own)], names, resamples, seed), level, len(own))
    return Band(taus, band.value, np.clip(band.low, 0, 1), np.clip(band.high, 0, 1), len(own))


# Several numbers, and how many photographs and seeds they need


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; one that is NaN stays so and isn't counted."""
    known = sorted((value, i) for i, value in enumerate(p) if value == value)
    adjusted, least = [float("nan")] * len(p), 0.0
    for rank, (value, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * value))
        adjusted[i] = least
    return adjusted


@dataclass(frozen=True)
class Components:
    """Variances of a score: between seeds, between photographs, and of what is left of a (seed, photograph) mean."""

    seed: float
    photograph: float
    rest: float

    def of_mean(self, seeds: int, photographs: int) -> float:
        """The variance of the mean over so many of each."""
        return self.seed / seeds + self.photograph / photographs + self.rest / (seeds * photographs)


def variance_components(scores: ArrayLike, cluster: ArrayLike | None = None) -> Components:
    """The two-way layout's moment estimates, none below zero, from [R, T] scores of at least 2 seeds and photographs.

    With a single seed the seeds' share isn't known: it is NaN, and the rest counts as the photographs'.
    """
    (own,), names = complete(scores, cluster=cluster)
    means = np.stack([own[:, names == name].mean(1) for name in dict.fromkeys(names)], 1)
    runs, photographs = means.shape
    if photographs < 2:
        return Components(np.nan, np.nan, np.nan)
    if runs < 2:
        return Components(np.nan, float(means.var(ddof=1)), 0.0)
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    inner = float((rest**2).sum() / ((runs - 1) * (photographs - 1)))
    between_seeds = float(means.mean(1).var(ddof=1)) - inner / photographs
    between_photographs = float(means.mean(0).var(ddof=1)) - inner / runs
    return Components(max(0.0, between_seeds), max(0.0, between_photographs), inner)


def detection_power(
    effect: float, components: Components, seeds: int, photographs: int, *, level: float = LEVEL
) -> float:
    """How likely an interval over so many seeds (or raters) and photographs is clear of zero, where the truth is
    `effect` away: of Student's noncentral t."""
    parts = [(components.photograph + components.rest / seeds) / photographs]
    freedoms = [photographs - 1]
    if seeds > 1 and components.seed == components.seed:
        parts.append((components.seed + components.rest / photographs) / seeds)
        freedoms.append(seeds - 1)
    total = sum(parts)
    if not total > 0:
        return float(effect != 0)
    freedom = total**2 / sum(part**2 / f for part, f in zip(parts, freedoms, strict=True))
    limit, shift = stats.t.ppf((1 + level) / 2, freedom), abs(effect) / np.sqrt(total)
    return float(stats.nct.sf(limit, freedom, shift))


def units_needed(
    effect: float, components: Components, seeds: int, photographs: int, *, level: float = LEVEL, power: float = 0.8
) -> tuple[int | None, int | None]:
    """How many photographs (with these seeds), and how many seeds (with these photographs), would show an effect.

    Returns:
        The least numbers by which the interval is clear of zero with probability `power`; None above 1,000, where more
        of the one alone doesn't help.
    """

    def shows(runs: int, pictures: int) -> bool:
        return detection_power(effect, components, runs, pictures, level=level) >= power

    def least(fits: Callable[[int], bool], start: int) -> int | None:
        if not fits(1000):
            return None
        low, high = start - 1, 1000
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    more_seeds = least(lambda n: shows(n, photographs), 3) if seeds > 1 and photographs > 1 else None
    return least(lambda n: shows(seeds, n), 2), more_seeds


# Learning curves


def curve_band(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    cluster: ArrayLike | None = None,
    points: int = 60,
    *,
    level: float = LEVEL,
    resamples: int = 1000,
    seed: int = 0,
) -> Band:
    """The mean of several seeds' curves with its interval over seeds and photographs.

    Args:
        curves: (x [N], y [N, T]) of each seed, x rising, y on T contexts; y is interpolated linearly on the range that
            all have in common.
        cluster: [T], the photograph of each context.
    """
    pairs = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in curves]
    grid = np.linspace(max(x.min() for x, _ in pairs), min(x.max() for x, _ in pairs), points)
    rows = np.stack([np.stack([np.interp(grid, x, each) for each in y.T]) for x, y in pairs])  # [R, T, points]
    names = np.arange(rows.shape[1]) if cluster is None else np.asarray(cluster)

    def means(runs: Sequence[Floats], contexts: Floats) -> Floats:
        return np.stack([weighed(rows[..., i], runs[0], contexts) for i in range(points)], 1)

    return student_band(grid, spread_of(means, [len(rows)], names, resamples, seed), level, len(rows))


def cost_to_reach(cost: ArrayLike, value: ArrayLike, target: float) -> float:
    """The cost at which a curve first reaches a target, linearly between its points; infinite if it never does."""
    spent, reached = np.asarray(cost, dtype=np.float64), np.asarray(value, dtype=np.float64)
    there = np.flatnonzero(reached >= target)
    if len(there) == 0:
        return float("inf")
    i = int(there[0])
    if i == 0:
        return float(spent[0])
    share = (target - reached[i - 1]) / (reached[i] - reached[i - 1])
    return float(spent[i - 1] + share * (spent[i] - spent[i - 1]))


def ratio_interval(costs: ArrayLike, others: ArrayLike, *, level: float = LEVEL) -> Interval:
    """mean(costs) / mean(others) with Student's interval over the seeds of both, made on the logarithm (delta method).

    Args:
        costs, others: [R] and [Q], positive and finite.

    Returns:
        The ratio; its `error` and `freedom` are those of the logarithm.
    """
    a, b = np.asarray(costs, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise Refusal("a ratio of costs needs runs that all reached the target, at a cost above zero")
    value, seeds = float(a.mean() / b.mean()), min(len(a), len(b))
    if seeds < 3:
        return Interval(value, np.nan, np.nan, seeds, seeds)
    parts = [own.var(ddof=1) / len(own) / own.mean() ** 2 for own in (a, b)]
    if not sum(parts) > 0:
        return Interval(value, np.nan, np.nan, seeds, seeds)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, (a, b), strict=True))
    error, freedom = float(np.sqrt(sum(parts))), float(freedom)
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    low, high = float(value * np.exp(-reach)), float(value * np.exp(reach))
    return Interval(value, low, high, seeds, seeds, error=error, freedom=freedom)
