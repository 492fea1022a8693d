"""How sure a number is that was measured over training seeds and photographs: both resampled, and Student's t.

Scores are [R, T]: R training seeds on the same T contexts, which are crops of photographs. One seed's policy meets all
contexts, and a photograph's crops are alike, so what is sampled is the seed and the photograph: both are resampled,
each whole, and neither inside the other. The variances that the two give are added, and the interval is Student's t
with the degrees of freedom of Welch and Satterthwaite, so that few seeds, or few photographs, widen it.

A single run (R = 1) says nothing of other seeds: its interval is over photographs alone. Two seeds show a direction,
and no interval is made of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from srgym.errors import Refusal
from srgym.notebook import table

__all__ = [
    "LEVEL", "Band", "Estimate", "Floats", "Interval", "Spread", "as_runs", "complete", "spread_of", "student_band",
    "student_interval", "weighed",
]  # fmt: skip

Floats = NDArray[np.float64]

LEVEL = 0.95
_ROUNDING = 1e-12  # of a weighted mean, relative: below it there is no spread


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval; the bounds are NaN where one can't be given.

    Attributes:
        value, low, high: in the units of what was measured.
        units: how many photographs it rests on. seeds: how many training seeds.
        p: two-sided, against no difference; NaN where there is no interval.
        error, freedom: of Student's t that the interval is made of; NaN where there is none.
    """

    value: float
    low: float
    high: float
    units: int
    seeds: int = 1
    p: float = np.nan
    error: float = np.nan
    freedom: float = np.nan

    def __repr__(self) -> str:
        return f"Interval({', '.join(f'{name}={text}' if name else text for name, text in self._told())})"

    def _repr_html_(self) -> str:
        told = dict(self._told())
        return table(["estimate", *filter(None, told)], [list(told.values())])

    def _told(self) -> list[tuple[str, str]]:
        known = self.low == self.low
        bounds = f"[{self.low:.4g}, {self.high:.4g}]" if known else "without bounds"
        units = [("photographs", f"{self.units}"), ("seeds", f"{self.seeds}")]
        return [("", f"{self.value:.4g} {bounds}"), *units, *([("p", f"{self.p:.2g}")] if self.p == self.p else [])]

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


# From the weights of each algorithm's seeds [B, R] and of the contexts [B, T] to what is estimated, [B, ...].
Estimate = Callable[[Sequence[Floats], Floats], Floats]


@dataclass(frozen=True)
class Spread:
    """An estimate with its standard error and degrees of freedom, each [...]; NaN where nothing can be resampled."""

    value: Floats
    error: Floats
    freedom: Floats


def spread_of(estimate: Estimate, runs: Sequence[int], cluster: ArrayLike, resamples: int, seed: int) -> Spread:
    """Resample the seeds of each algorithm and the photographs, one after the other, and add up what each varies."""
    _, place = np.unique(np.asarray([str(name) for name in np.asarray(cluster)]), return_inverse=True)
    sizes = np.bincount(place)
    even = [np.full((1, count), 1 / count) for count in runs]
    contexts = (1 / (len(sizes) * sizes[place]))[None]
    generator = np.random.default_rng(seed)

    def weights(count: int) -> Floats:
        drawn: Floats = generator.multinomial(count, np.full(count, 1 / count), resamples) / count
        return drawn

    value = estimate(even, contexts)[0]
    variances, freedoms = [], []
    for i, count in enumerate(runs):
        if count > 1:
            drawn = estimate([weights(count) if j == i else even[j] for j in range(len(runs))], contexts)
            variances.append(drawn.var(0) * count / (count - 1))
            freedoms.append(count - 1)
    if len(sizes) > 1:
        drawn = estimate(even, weights(len(sizes))[:, place] / sizes[place])
        variances.append(drawn.var(0) * len(sizes) / (len(sizes) - 1))
        freedoms.append(len(sizes) - 1)
    if not variances:
        return Spread(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    total = np.sum(variances, 0)
    total = np.where(total > _ROUNDING**2 * np.maximum(1.0, value**2), total, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / np.sum([v**2 / f for v, f in zip(variances, freedoms, strict=True)], 0)
    return Spread(value, np.sqrt(total), freedom)


def student_interval(spread: Spread, null: float, level: float, units: int, seeds: int) -> Interval:
    """Student's interval of a spread, and its p against `null`; NaN bounds without any spread, and of two seeds."""
    value, error = float(spread.value), float(spread.error)
    if not error > 0 or seeds == 2:  # no spread at all is no certainty, and two seeds show a direction alone
        return Interval(value, np.nan, np.nan, units, seeds)
    freedom = float(spread.freedom)
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value - null) / error, freedom))
    return Interval(value, value - reach, value + reach, units, seeds, p, error, freedom)


def student_band(x: Floats, spread: Spread, level: float, seeds: int) -> Band:
    """The same at every point of a curve."""
    error = np.where((spread.error > 0) & (seeds != 2), spread.error, np.nan)
    reach = stats.t.ppf((1 + level) / 2, spread.freedom) * error
    return Band(x, spread.value, spread.value - reach, spread.value + reach, seeds)


def as_runs(scores: ArrayLike) -> Floats:
    """Scores [R, T] in float64. Raises ValueError for another shape, or for none at all."""
    own = np.asarray(scores, dtype=np.float64)
    if own.ndim != 2 or own.size == 0:
        raise Refusal(f"expected scores [seeds, contexts], got {own.shape}")
    return own


def complete(*scores: ArrayLike, cluster: ArrayLike | None) -> tuple[list[Floats], NDArray[np.str_]]:
    """Scores of the same contexts without those that lack a valid one for some seed, and the contexts' clusters."""
    all_runs = [as_runs(own) for own in scores]
    count = all_runs[0].shape[1]
    names = np.arange(count) if cluster is None else np.asarray([str(name) for name in np.asarray(cluster)])
    if len(names) != count or any(own.shape[1] != count for own in all_runs):
        raise Refusal(
            f"expected the same contexts everywhere, each with its cluster, got {[own.shape[1] for own in all_runs]} "
            f"contexts and {len(names)} clusters"
        )
    there = np.all([np.isfinite(own).all(0) for own in all_runs], 0)
    return [own[:, there] for own in all_runs], names[there].astype(str)


def weighed(scores: Floats, runs: Floats, contexts: Floats) -> Floats:
    """Weighted means of [R, T] scores under weights [B or 1, R] and [B or 1, T]: [B]."""
    result: Floats = ((runs @ scores) * contexts).sum(1)
    return result
