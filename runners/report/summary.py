"""From an evaluation's rows to intervals: of one method, of a difference, over training seeds and photographs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srgym.runners.measure.statistics import (
    Interval,
    crossed_difference,
    crossed_interval,
    units_needed,
    variance_components,
)  # fmt: skip
from srgym.runners.report.numbers import signed

__all__ = ["by_crop", "difference", "level", "metric_names", "power", "present", "scores"]

_CROP = ["photograph", "crop"]
_NOTHING = Interval(np.nan, np.nan, np.nan, 0)


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The metrics in the order of their first row."""
    return list(dict.fromkeys(frame["metric"]))


def present(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of `names` that the frame has rows of."""
    return [name for name in names if (frame["metric"] == name).any()]


def by_crop(frame: pd.DataFrame, method: str, metric: str) -> "pd.Series[Any]":
    """One method's values by (photograph, crop), the mean over noise seeds; NaN where no seed has a valid score."""
    rows = frame[(frame["method"] == method) & (frame["metric"] == metric)]
    return rows.groupby(_CROP, sort=True)["value"].mean()


def scores(
    frame: pd.DataFrame, method: str, metric: str, contexts: "pd.MultiIndex | None" = None
) -> "tuple[NDArray[np.float64], pd.MultiIndex]":
    """Scores [training seeds, contexts] and the contexts' (photograph, crop), means over noise seeds.

    The column `run` holds the training seed; a frame without it is of one run.
    """
    rows = frame[(frame["method"] == method) & (frame["metric"] == metric)]
    rows = rows if "run" in rows else rows.assign(run=0)
    table = rows.pivot_table(index="run", columns=_CROP, values="value", aggfunc="mean", dropna=False, sort=True)
    table = table if contexts is None else table.reindex(columns=contexts)
    return table.to_numpy(dtype=np.float64), table.columns


def level(frame: pd.DataFrame, method: str, metric: str) -> Interval:
    """A method's mean with its interval over training seeds and photographs."""
    own, contexts = scores(frame, method, metric)
    return crossed_interval(own, _photographs(contexts)) if own.size else _NOTHING


def difference(frame: pd.DataFrame, method: str, other: str, metric: str) -> Interval:
    """method - other on the same contexts, with its interval; over nothing where one of them isn't there."""
    (x, contexts), (y, others) = (scores(frame, name, metric) for name in (method, other))
    if not x.size or not y.size:
        return _NOTHING
    both = contexts.intersection(others)
    own, its = (scores(frame, name, metric, both)[0] for name in (method, other))
    return crossed_difference(own, its, _photographs(both)) if own.size else _NOTHING


def power(frame: pd.DataFrame, method: str, other: str, metric: str) -> str:
    """How many photographs, and seeds, would show half of the difference seen; empty where it can't be told."""
    seen = difference(frame, method, other, metric)
    own, contexts = scores(frame, method, metric)
    start = by_crop(frame, other, metric).reindex(contexts)
    if seen.units < 2 or not np.isfinite(seen.value):
        return ""
    components = variance_components(own - start.to_numpy(), _photographs(contexts))
    photographs, seeds = units_needed(seen.value / 2, components, len(own), seen.units)
    text = f"with {_counted(len(own), 'seed')}, {photographs or 'more than 1000'} photographs"
    if len(own) > 1:
        text += f"; with {seen.units} photographs, {seeds or 'more than 1000'} seeds"
    return f"To show half of {metric} {signed(seen)} with a power of 80%: {text}."


def _photographs(contexts: "pd.MultiIndex") -> list[str]:
    return [str(name) for name in contexts.get_level_values(0)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
