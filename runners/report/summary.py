"""From an evaluation's rows to intervals: of one method, of a difference, of several training seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srgym.runners.measure.statistics import Interval, nested_interval, paired_interval

__all__ = ["by_crop", "difference", "level", "metric_names", "present", "run_matrix"]

_CROP = ["photograph", "crop"]


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


def level(frame: pd.DataFrame, method: str, metric: str) -> Interval:
    """A method's mean with its interval over photographs and crops nested in them."""
    values = by_crop(frame, method, metric)
    return nested_interval(values.to_numpy(), list(values.index.get_level_values(0)))


def difference(frame: pd.DataFrame, method: str, other: str, metric: str) -> Interval:
    """method - other on the same crops, with its interval; over nothing where one of them isn't there."""
    both = pd.concat([by_crop(frame, method, metric), by_crop(frame, other, metric)], axis=1, join="inner")
    values = both.to_numpy()
    return paired_interval(values[:, 0], values[:, 1], list(both.index.get_level_values(0)))


# Several training seeds


def run_matrix(
    frame: pd.DataFrame, method: str, metric: str, contexts: "pd.MultiIndex | None" = None
) -> "tuple[NDArray[np.float64], pd.MultiIndex]":
    """Scores [training seeds, contexts] and the contexts' (photograph, crop); column `run` holds the training seed."""
    rows = frame[(frame["method"] == method) & (frame["metric"] == metric)]
    table = rows.pivot_table(index="run", columns=_CROP, values="value", aggfunc="mean", dropna=False, sort=True)
    if contexts is not None:
        table = table.reindex(columns=contexts)
    return table.to_numpy(dtype=np.float64), table.columns
