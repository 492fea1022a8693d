"""Measuring a judge, or a reward in its place: how often it orders candidates as a set's labels do; the ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.rewards.compass.formula import compass
from srgym.runners.judges.benchmark import (
    ORIGINAL,
    SUBSETS,
    Accuracy,
    Scores,
    accuracy,
    by_gap,
    difference,
    leave_method_out,
    method_mean,
    original_best,
    pairs_in,
)
from srgym.runners.judges.leakage import shared_methods
from srgym.runners.judges.material import Material
from srgym.runners.judges.rating import Rated, Rater, rate, truths
from srgym.runners.measure.statistics import Interval
from srgym.settings import Count, check_arguments

__all__ = ["CONFLICT", "GAMMAS", "EvaluateSettings", "evaluate"]

GAMMAS = (5.0, 7.0, 9.0)
CONFLICT = 1.5
_MEAN, _HELD_OUT = "mean of the method", "mean of the method on the other scenes"


@dataclass(frozen=True)
class EvaluateSettings:
    """How a judge is measured.

    Attributes:
        table: 1, the accuracy beside baselines and published rows; 3, the ablation of the reward besides.
        split: of the set. limit: groups of it; all when None.
        against: rewards to be compared with on the same pairs, by name or mapping.
        uncalibrated: folder of a judge trained on the anchor's labels (labels=anchor), for table 3.
        engine: who answers for a judge's folder: transformers (also {}) or vllm with their options, in this process.
    """

    table: Literal[1, 3] = 1
    split: str = "test"
    limit: Count | None = None
    against: Sequence[str | Mapping[str, Any]] = ()
    uncalibrated: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arguments(EvaluateSettings, vars(self), "")


def evaluate(
    name: str, raters: Mapping[str, Rater], material: Material, folder: Path, *, ablation: bool = False,
    uncalibrated: str | None = None, learnt: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Ask, measure and write `folder`/evaluation.json; answers are kept in `folder`/ratings, and not asked for again.

    Args:
        name: of the judge, one of the raters; the others are compared with it.
        ablation: put the reward's forms beside each other (table 3), of a judge that gives F and Q.
        uncalibrated: the rater that learnt from the anchor's labels.
        learnt: the methods whose candidates the judge was trained on.

    Returns:
        What is written: accuracies by subset, of baselines and of the others, differences on the same pairs, and where
        the judge is right.

    Raises:
        Refusal: for groups without labels or pairs, or an ablation of a judge without F and Q.
    """
    truth = truths(material.groups)
    subsets = [subset for subset in SUBSETS if pairs_in(truth, subset)] if _original(truth) else ["All"]
    if not pairs_in(truth, "All"):
        raise Refusal(f"the split '{material.about['split']}' of this set has no two candidates of unlike labels")
    rated = {
        label: rate(rater, material, folder / "ratings" / f"{_file(label)}.jsonl") for label, rater in raters.items()
    }
    pictures = {group.name: group.picture or group.name for group in material.groups}
    scores = {label: _totals(material, own) for label, own in rated.items()}
    base, own = scores[name], rated[name]
    fixed = {_MEAN: method_mean(truth), _HELD_OUT: method_mean(truth, held_out=True)}
    result: dict[str, Any] = {
        "judge": name, "on": dict(material.about), "groups": len(truth), "subsets": subsets,
        "accuracy": {label: _by_subset(truth, said, subsets, pictures) for label, said in {**scores, **fixed}.items()},
        "original_best": {s: list(original_best(truth, s)) for s in subsets} if _original(truth) else None,
        "difference": {
            label: {s: _bounds(difference(truth, base, said, s, pictures)) for s in subsets}
            for label, said in {**scores, **fixed}.items() if label != name
        },
        "by_gap": by_gap(truth, base), "left_out": leave_method_out(truth, base),
        "by_kind": _by_kind(material, truth, base, pictures), "conflict": _conflict(material, own),
        "flips": _mean(own, "flips"), "unread": _mean(own, "unread"), "methods": _methods(material),
        "shared": shared_methods(learnt, _methods(material)),
    }  # fmt: skip
    if ablation:
        result["ablation"] = _ablation(truth, own, base, scores.get(uncalibrated or ""), material, subsets, pictures)
    write_json(folder / "evaluation.json", result)
    return result


def _methods(material: Material) -> list[str]:
    return list(dict.fromkeys(method for group in material.groups for method in group.methods if method != ORIGINAL))


def _file(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in label)


def _original(truth: Scores) -> bool:
    return any(ORIGINAL in own for own in truth.values())


def _totals(material: Material, rated: Mapping[str, Rated], part: str = "total") -> Scores:
    return {g.name: dict(zip(g.labels, rated[g.name][part], strict=True)) for g in material.groups}


def _bounds(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _figures(found: Accuracy) -> dict[str, Any]:
    return {
        "accuracy": _bounds(found.interval), "error": found.error, "pairs": found.pairs, "ties": found.ties,
        "unrated": found.unrated,
    }  # fmt: skip


def _by_subset(truth: Scores, said: Scores, subsets: Sequence[str], pictures: Mapping[str, str]) -> dict[str, Any]:
    return {subset: _figures(accuracy(truth, said, subset, pictures)) for subset in subsets}


def _by_kind(material: Material, truth: Scores, said: Scores, pictures: Mapping[str, str]) -> dict[str, Any]:
    """Accuracy on inputs that were made of a picture, and on real ones."""
    found = {}
    for kind in dict.fromkeys(group.kind for group in material.groups):
        own = {group.name: truth[group.name] for group in material.groups if group.kind == kind}
        if pairs_in(own, "All"):
            found[kind] = _figures(accuracy(own, said, pictures=pictures))
    return found


def _conflict(material: Material, rated: Mapping[str, Rated]) -> float | None:
    """Share of the described candidates whose description speaks of another quality than the judge's score, by more
    than `CONFLICT`; None where none is described, or the judge tells no quality."""
    apart = [
        abs(verdict - score) > CONFLICT
        for group in material.groups
        for verdict, score in zip(group.verdicts, rated[group.name].get("q_sr", []), strict=False)
        if np.isfinite(verdict) and np.isfinite(score)
    ]
    return float(np.mean(apart)) if apart else None


def _mean(rated: Mapping[str, Rated], part: str) -> float | None:
    values = [own[part][0] for own in rated.values() if part in own]
    return float(np.nanmean(values)) if values else None


def _ablation(
    truth: Scores, rated: Mapping[str, Rated], base: Scores, uncalibrated: Scores | None, material: Material,
    subsets: Sequence[str], pictures: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The forms of the reward (OARS, table 3) on the same answers; without calibration, of another judge."""
    if not all({"fidelity", "q_lr", "q_sr"} <= set(own) for own in rated.values()):
        raise Refusal("table=3 takes fidelity and the qualities apart, which only a judge of recipe=compass tells")

    def formed(gamma: float, explicit: bool = True) -> Scores:
        totals = {}
        for name, own in rated.items():
            f, q_lr, q_sr = (torch.tensor(own[part]) for part in ("fidelity", "q_lr", "q_sr"))
            total = compass(f if explicit else torch.ones_like(f), q_lr, q_sr, gamma)
            totals[name] = {"total": total.tolist()}
        return _totals(material, totals)

    rows = {f"gamma {gamma:g}": formed(gamma) for gamma in GAMMAS}
    rows["without fidelity"] = formed(7.0, explicit=False)
    if uncalibrated is not None:
        rows["without calibration"] = uncalibrated
    return {
        label: {
            "accuracy": _by_subset(truth, said, subsets, pictures),
            "difference": {s: _bounds(difference(truth, said, base, s, pictures)) for s in subsets},
        }
        for label, said in rows.items()
    }
