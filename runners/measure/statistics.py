"""Intervals and comparisons that reports are made of: plain numpy and scipy, fixed seeds, no data frames.

Two situations, and they are not the same:

- One policy on held-out contexts. Crops of one photograph are alike, so the photograph is what is sampled and its
  crops are nested in it: `nested_interval`, `paired_interval`.
- One algorithm over several training seeds, scored on the same contexts. The seed is what is sampled, within each
  context: `stratified_interval`, `probability_of_improvement`, `performance_profile` (Agarwal et al. 2021, "Deep
  reinforcement learning at the edge of the statistical precipice", arXiv 2108.13264).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "Band", "Interval", "cost_to_reach", "curve_band", "gain_over_start", "iqm", "nested_bootstrap", "nested_interval",
    "paired_interval", "performance_profile", "probability_of_improvement", "ratio_interval", "stratified_bootstrap",
    "stratified_interval",
]  # fmt: skip

Floats = NDArray[np.float64]

LEVEL = 0.95
_CHUNK = 4_000_000  # random numbers held at once


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval; the bounds are NaN where one can't be given.

    Attributes:
        value, low, high: in the units of what was measured.
        units: how many independent units (photographs, or training seeds) it rests on.
    """

    value: float
    low: float
    high: float
    units: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0


@dataclass(frozen=True)
class Band:
    """A curve with its interval: `x`, `value`, `low`, `high`, each [P]; `units` seeds."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats
    units: int


# Contexts: photographs, and crops nested in them


def nested_bootstrap(values: ArrayLike, cluster: Sequence[object], *, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Draws of the mean under resampling of photographs, and then of the crops within each one drawn.

    The mean is the mean over photographs of each one's mean over crops, so a photograph with more crops counts no more.

    Args:
        values: [N], one a crop; no NaN.
        cluster: [N], which photograph each belongs to.

    Returns:
        [resamples].
    """
    table, sizes = _by_cluster(np.asarray(values, dtype=np.float64), cluster)
    count, widest = table.shape
    generator = np.random.default_rng(seed)
    draws = []
    step = max(1, _CHUNK // (count * widest))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        photograph = generator.integers(0, count, (rows, count))
        size = sizes[photograph]
        if widest == 1:
            drawn = table[photograph, 0]
        else:
            crop = (generator.random((rows, count, widest)) * size[..., None]).astype(np.int64)
            used = np.arange(widest) < size[..., None]
            drawn = (table[photograph[..., None], crop] * used).sum(-1) / size
        draws.append(drawn.mean(1))
    return np.concatenate(draws)


def _by_cluster(values: Floats, cluster: Sequence[object]) -> tuple[Floats, NDArray[np.int64]]:
    """Values as a table [clusters, widest], padded with zeros, and the clusters' sizes."""
    if len(values) != len(cluster):
        raise ValueError(f"expected a cluster for each of {len(values)} values, got {len(cluster)}")
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("expected at least one value, and no NaN among them")
    _, place = np.unique(np.asarray([str(name) for name in cluster]), return_inverse=True)
    sizes = np.bincount(place)
    table = np.zeros((len(sizes), sizes.max()))
    for i in range(len(sizes)):
        table[i, : sizes[i]] = values[place == i]
    return table, sizes


def nested_interval(
    values: ArrayLike,
    cluster: Sequence[object],
    *,
    level: float = LEVEL,
    resamples: int = 10_000,
    seed: int = 0,
    small_sample: bool = True,
) -> Interval:
    """The mean with its bootstrap interval over photographs and the crops nested in them.

    A percentile interval of a few photographs is too narrow: of 3 it held the truth in 79-91% of simulated cases, of 5
    in 87-94%. `small_sample` widens the percentiles as Student's t would (the expanded percentile interval: Hesterberg
    2015, "What teachers should know about the bootstrap").

    Args:
        values: [N], one a crop; NaN (no valid score) is left out.
        cluster: [N], which photograph each belongs to.

    Returns:
        The interval over as many photographs as have a value. Of one photograph there is no interval: NaN bounds; of
        none, a NaN value too.
    """
    given = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(given)
    names = [name for name, keep in zip(cluster, kept, strict=True) if keep]
    if not names:
        return Interval(np.nan, np.nan, np.nan, 0)
    table, sizes = _by_cluster(given[kept], names)
    value, count = float((table.sum(1) / sizes).mean()), len(sizes)
    if count == 1:
        return Interval(value, np.nan, np.nan, 1)
    draws = nested_bootstrap(given[kept], names, resamples=resamples, seed=seed)
    tail = (1 - level) / 2
    if small_sample:
        tail = float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf(tail, count - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), count)


def paired_interval(
    values: ArrayLike, others: ArrayLike, cluster: Sequence[object], *, level: float = LEVEL, seed: int = 0
) -> Interval:
    """`nested_interval` of the differences values - others of the same crops [N]; a pair without both is left out."""
    return nested_interval(np.asarray(values) - np.asarray(others), cluster, level=level, seed=seed)


# Algorithms: training seeds, within each context


def iqm(scores: ArrayLike, axis: int | None = None) -> Floats:
    """The interquartile mean: the mean of the middle half."""
    result: Floats = np.asarray(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=axis))
    return result


def _iqm_of_draws(drawn: Floats) -> Floats:
    return iqm(drawn.reshape(len(drawn), -1), axis=1)


def gain_over_start(scores: ArrayLike, start: ArrayLike, *, in_spreads: bool = False) -> Floats:
    """Scores normalised so that the starting policy is 0 on every context.

    Args:
        scores: [R, T], seeds by contexts. start: [T], the starting policy's on the same contexts.
        in_spreads: divide by the standard deviation of `start` over contexts, so that metrics of other units compare.

    Raises:
        ValueError: where the starting policy scores the same on all contexts and there is no spread to divide by.
    """
    own, origin = _runs(scores), np.asarray(start, dtype=np.float64)
    if origin.shape != own.shape[1:]:
        raise ValueError(f"expected the start's scores on {own.shape[1]} contexts, got {origin.shape}")
    gain: Floats = own - origin
    if not in_spreads:
        return gain
    spread = float(np.nanstd(origin))
    if spread <= 0:
        raise ValueError("the starting policy scores the same on all contexts: its spread can't be a unit")
    return gain / spread


def _runs(scores: ArrayLike) -> Floats:
    own = np.asarray(scores, dtype=np.float64)
    if own.ndim != 2 or own.size == 0:
        raise ValueError(f"expected scores [seeds, contexts], got {own.shape}")
    return own


def _resample_runs(scores: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """[resamples, R, T]: the seeds of each context drawn with replacement, contexts independent of each other."""
    runs, contexts = scores.shape
    drawn = generator.integers(0, runs, (resamples, runs, contexts))
    return scores[drawn, np.arange(contexts)]


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[[Floats], Floats] = _iqm_of_draws,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """Draws of a statistic under resampling of seeds within each context.

    Args:
        scores: [R, T], no NaN.
        statistic: from draws [B, R, T] to [B, ...]; the interquartile mean of all by default.

    Returns:
        [resamples, ...].
    """
    own, generator = _runs(scores), np.random.default_rng(seed)
    step = max(1, _CHUNK // own.size)
    parts = [
        statistic(_resample_runs(own, min(step, resamples - start), generator)) for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def stratified_interval(
    scores: ArrayLike,
    statistic: Callable[[Floats], Floats] = _iqm_of_draws,
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of [R, T] scores with its stratified bootstrap interval over seeds.

    Contexts that lack a valid score for some seed are left out. Of one seed there is no interval: NaN bounds.
    """
    own = _complete(_runs(scores))
    if own.shape[1] == 0:
        return Interval(np.nan, np.nan, np.nan, len(own))
    value = float(statistic(own[None])[0])
    if len(own) == 1:
        return Interval(value, np.nan, np.nan, 1)
    draws = stratified_bootstrap(own, statistic, resamples=resamples, seed=seed)
    return _percentiles(value, draws, level, len(own))


def _complete(scores: Floats) -> Floats:
    return scores[:, np.isfinite(scores).all(0)]


def _percentiles(value: float, draws: Floats, level: float, units: int) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), units)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How likely a run of X beats a run of Y on a context: mean over contexts of P(X > Y) + P(X = Y)/2.

    Args:
        x, y: [R, T] and [Q, T], the same contexts; a context that lacks a valid score in either is left out.
    """
    a, b = _runs(x), _runs(y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected the same contexts, got {a.shape[1]} and {b.shape[1]}")
    both = np.isfinite(a).all(0) & np.isfinite(b).all(0)
    a, b = a[:, both], b[:, both]
    if a.shape[1] == 0:
        return Interval(np.nan, np.nan, np.nan, min(len(a), len(b)))
    # Which run beats which is settled once; a resample then only weighs the pairs by how often both were drawn.
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
    value, units = float(wins.mean()), min(len(a), len(b))
    if units == 1:
        return Interval(value, np.nan, np.nan, 1)
    generator = np.random.default_rng(seed)
    weights = [_run_weights(len(scores), a.shape[1], resamples, generator) for scores in (a, b)]
    draws = np.einsum("nrt,nqt,rqt->n", weights[0], weights[1], wins) / a.shape[1]
    return _percentiles(value, draws, level, units)


def _run_weights(runs: int, contexts: int, resamples: int, generator: np.random.Generator) -> Floats:
    """[resamples, R, T]: the share of each seed in a resample of each context."""
    drawn = generator.multinomial(runs, np.full(runs, 1 / runs), (resamples, contexts))
    return np.moveaxis(drawn, 1, 2) / runs


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, level: float = LEVEL, resamples: int = 2000, seed: int = 0
) -> Band:
    """The share of (seed, context) scores above each threshold, with its interval.

    Args:
        scores: [R, T], normalised. thresholds: [P].
    """
    own, taus = _complete(_runs(scores)), np.asarray(thresholds, dtype=np.float64)

    def shares(drawn: Floats) -> Floats:
        flat = drawn.reshape(len(drawn), -1)
        return np.stack([(flat > tau).mean(1) for tau in taus], 1)

    value = shares(own[None])[0]
    if len(own) == 1:
        nothing = np.full_like(value, np.nan)
        return Band(taus, value, nothing, nothing, 1)
    draws = stratified_bootstrap(own, shares, resamples=resamples, seed=seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(taus, value, low, high, len(own))


# Learning curves


def curve_band(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    points: int = 60,
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """The mean of several seeds' curves with its bootstrap interval over seeds.

    Args:
        curves: (x, y) of each seed, x rising; y is interpolated linearly on the range that all have in common.
    """
    pairs = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in curves]
    low = max(x.min() for x, _ in pairs)
    high = min(x.max() for x, _ in pairs)
    grid = np.linspace(low, high, points)
    rows = np.stack([np.interp(grid, x, y) for x, y in pairs])
    nothing = np.full(points, np.nan)
    if len(rows) == 1:
        return Band(grid, rows[0], nothing, nothing, 1)
    drawn = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    bounds = np.quantile(rows[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(grid, rows.mean(0), bounds[0], bounds[1], len(rows))


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


def ratio_interval(
    costs: ArrayLike, others: ArrayLike, *, level: float = LEVEL, resamples: int = 2000, seed: int = 0
) -> Interval:
    """mean(costs) / mean(others) with its bootstrap interval over the seeds of both.

    Args:
        costs, others: [R] and [Q], positive and finite.
    """
    a, b = np.asarray(costs, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (b > 0).all()):
        raise ValueError("a ratio of costs needs runs that all reached the target, at a cost above zero")
    value, units = float(a.mean() / b.mean()), min(len(a), len(b))
    if units == 1:
        return Interval(value, np.nan, np.nan, 1)
    generator = np.random.default_rng(seed)
    top = a[generator.integers(0, len(a), (resamples, len(a)))].mean(1)
    bottom = b[generator.integers(0, len(b), (resamples, len(b)))].mean(1)
    return _percentiles(value, top / bottom, level, units)
