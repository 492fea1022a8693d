"""How often a judge orders two super-resolutions of one scene as people, or labels, do: SRIQA-Bench's accuracy.

Pairs are all those of a scene's images. A pair that the judge rates alike, or can't rate, counts as wrong; one that the
truth rates alike isn't asked. The figure is the mean over scenes: what would vary, were it asked again, is the scene,
so intervals resample scenes, each with all its pairs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from srgym.errors import Refusal
from srgym.runners.measure.statistics import Interval, crossed_difference, crossed_interval

__all__ = [
    "ORIGINAL", "REGRESSION", "SUBSETS", "Accuracy", "Scores", "accuracy", "by_gap", "difference", "hits",
    "leave_method_out", "method_mean", "order_flips", "original_best", "pairs_in",
]  # fmt: skip

Floats = NDArray[np.float64]
Scores = Mapping[str, Mapping[str, float]]
"""Scene to method to score; NaN where there is none."""

ORIGINAL = "Original"
REGRESSION = frozenset({"SwinIR", "RealESRNet"})

SUBSETS: Mapping[str, Callable[[str], bool]] = {
    "Reg": lambda method: method in REGRESSION or method == ORIGINAL,
    "Gen": lambda method: method not in REGRESSION,
    "All": lambda method: True,
}
"""SRIQA-Bench's, by which methods belong: regression, generation (both with the original), all of them."""


@dataclass(frozen=True)
class Accuracy:
    """A judge's accuracy on a subset.

    Attributes:
        interval: of the mean over scenes. error: its standard error. pairs: how many. ties, unrated: shares of the
            pairs that the judge rated alike, and that it couldn't rate.
    """

    interval: Interval
    error: float
    pairs: int
    ties: float
    unrated: float


def _pairs(truth: Mapping[str, float], subset: str) -> list[tuple[str, str]]:
    if subset not in SUBSETS:
        raise Refusal(f"expected a subset of {', '.join(SUBSETS)}, got '{subset}'")
    methods = [method for method in truth if SUBSETS[subset](method)]
    return [(a, b) for a, b in combinations(methods, 2) if truth[a] != truth[b]]


def pairs_in(truth: Scores, subset: str) -> int:
    """How many pairs a subset has."""
    return sum(len(_pairs(own, subset)) for own in truth.values())


def _gaps(truth: Scores, predicted: Scores, subset: str) -> dict[str, tuple[Floats, Floats]]:
    """Of every scene with a pair: the gaps of its pairs in truth, and as predicted."""
    made = {}
    for scene, own in truth.items():
        if pairs := _pairs(own, subset):
            said = predicted.get(scene, {})
            gaps = [(own[a] - own[b], said.get(a, np.nan) - said.get(b, np.nan)) for a, b in pairs]
            made[scene] = tuple(np.asarray(gaps, dtype=np.float64).T)
    return made


def hits(truth: Scores, predicted: Scores, subset: str = "All") -> dict[str, Floats]:
    """Of every scene: 1 for a pair in the right order, 0 for one in the wrong order, rated alike or not rated."""
    gaps = _gaps(truth, predicted, subset)
    return {scene: (np.sign(real) == np.sign(said)).astype(np.float64) for scene, (real, said) in gaps.items()}


def _means(hit: Mapping[str, Floats]) -> Floats:
    return np.array([own.mean() for own in hit.values()])


def accuracy(
    truth: Scores, predicted: Scores, subset: str = "All", pictures: Mapping[str, str] | None = None
) -> Accuracy:
    """A judge's accuracy on a subset, in [0, 1].

    Args:
        pictures: what each scene is a piece of, where several are of one; these are resampled, with all their scenes.

    Raises:
        Refusal: if the subset has no pair.
    """
    gaps = _gaps(truth, predicted, subset)
    if not gaps:
        raise Refusal(f"the subset {subset} of these scenes has no pair to be ordered")
    per, names = _means(hits(truth, predicted, subset)), _names(gaps, pictures)
    said = np.concatenate([own for _, own in gaps.values()])
    return Accuracy(
        crossed_interval(per[None], names),
        _error(per, names),
        len(said),
        float(np.mean(said == 0)),
        float(np.mean(np.isnan(said))),
    )


def _names(scenes: Iterable[str], pictures: Mapping[str, str] | None) -> list[str]:
    return [(pictures or {}).get(scene, scene) for scene in scenes]


def _error(per: Floats, names: Sequence[str]) -> float:
    """Standard error of a mean over pictures, each the mean of its scenes."""
    means = np.array([per[[own == name for own in names]].mean() for name in dict.fromkeys(names)])
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else np.nan


def difference(
    truth: Scores, one: Scores, other: Scores, subset: str = "All", pictures: Mapping[str, str] | None = None
) -> Interval:
    """Accuracy of one judge over another's, on the same pairs of the same scenes; see `accuracy`."""
    ours, theirs = (hits(truth, predicted, subset) for predicted in (one, other))
    return crossed_difference(_means(ours)[None], _means(theirs)[None], _names(ours, pictures))


def by_gap(truth: Scores, predicted: Scores, parts: int = 4) -> list[tuple[float, float, float, int]]:
    """Accuracy by how far apart the truth puts a pair: (least gap, largest gap, accuracy, pairs) of every quantile."""
    gaps = _gaps(truth, predicted, "All")
    real = np.abs(np.concatenate([own for own, _ in gaps.values()]))
    right = np.concatenate(list(hits(truth, predicted).values()))
    order = np.argsort(real, kind="stable")
    split = [part for part in np.array_split(order, parts) if len(part)]
    return [(float(real[p[0]]), float(real[p[-1]]), float(right[p].mean()), len(p)) for p in split]


def _method(label: str) -> str:
    """What made a candidate; a method's further samples are called `method #2` and so on."""
    return label.partition(" #")[0]


def leave_method_out(truth: Scores, predicted: Scores) -> dict[str, tuple[float, float]]:
    """Of every method: the accuracy on pairs without it, and on pairs with it; NaN where there are none."""
    rows: dict[str, tuple[list[float], list[float]]] = {}
    right = hits(truth, predicted)
    for scene, own in right.items():
        for pair, hit in zip(_pairs(truth[scene], "All"), own, strict=True):
            of = {_method(label) for label in pair}
            for method in {_method(label) for label in truth[scene]}:
                rows.setdefault(method, ([], []))[method in of].append(float(hit))
    return {
        method: (float(np.mean(without)) if without else np.nan, float(np.mean(with_)) if with_ else np.nan)
        for method, (without, with_) in rows.items()
    }


# What needs no judge


def method_mean(truth: Scores, held_out: bool = False) -> Scores:
    """Every image rated by the mean truth of its method: over all scenes, or, `held_out`, over the others."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for scene, own in truth.items():
        for label, value in own.items():
            by_method.setdefault(_method(label), {}).setdefault(scene, []).append(value)

    def mean(label: str, scene: str) -> float:
        own = by_method[_method(label)]
        kept = [value for name, values in own.items() if not (held_out and name == scene) for value in values]
        return float(np.mean(kept)) if kept else np.nan

    return {scene: {label: mean(label, scene) for label in own} for scene, own in truth.items()}


def original_best(truth: Scores, subset: str = "All") -> tuple[float, float]:
    """Accuracy, and its standard error, of whoever takes the original for the best and tosses a coin otherwise."""
    per = []
    for own in truth.values():
        if pairs := _pairs(own, subset):
            best = {a: float(a == ORIGINAL) for pair in pairs for a in pair}
            right = [0.5 if best[a] == best[b] else float((best[a] > best[b]) == (own[a] > own[b])) for a, b in pairs]
            per.append(float(np.mean(right)))
    return float(np.mean(per)), _error(np.asarray(per), [str(i) for i in range(len(per))])


def order_flips(compared: Mapping[tuple[int, int], float]) -> float:
    """Share of pairs whose answer follows the order of asking: o(a, b) of both orders, 1 if a is better, that differ.

    Args:
        compared: (first shown, second shown) to 1, 0.5 or 0 for the first.
    """
    both = [(o, compared[b, a]) for (a, b), o in compared.items() if a < b and (b, a) in compared]
    return float(np.mean([o != 1 - other for o, other in both])) if both else np.nan
