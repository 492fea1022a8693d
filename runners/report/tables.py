"""Tables of a report: methods by metrics with intervals, differences, published figures beside ours, costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from srgym.runners.loop.progress import duration
from srgym.runners.measure.published import LOWER_IS_BETTER, OURS, PublishedTable
from srgym.runners.measure.statistics import Interval
from srgym.runners.report.document import Table
from srgym.runners.report.numbers import amount, interval_text, signed
from srgym.runners.report.summary import difference, level

__all__ = ["cost_table", "difference_table", "levels_table", "metric_title", "published_table", "wins_table"]


def metric_title(metric: str, record: Mapping[str, Any] | None = None) -> str:
    """A metric's name with its unit."""
    unit = (record or {}).get("metrics", {}).get(metric, {}).get("unit", "")
    return f"{metric} ({unit})" if unit else metric


def levels_table(
    frame: pd.DataFrame,
    methods: Sequence[str],
    metrics: Sequence[str],
    record: Mapping[str, Any] | None = None,
    caption: str = "",
    strong: Sequence[str] = (),
) -> Table:
    """Methods (rows) by metrics (columns): means with 95% intervals."""
    rows = [
        [method, *(interval_text(level(frame, method, metric), more=1) for metric in metrics)] for method in methods
    ]
    marked = frozenset(i for i, method in enumerate(methods) if method in strong)
    return Table(["method", *(metric_title(metric, record) for metric in metrics)], rows, caption, marked)


def difference_table(
    frame: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    record: Mapping[str, Any] | None = None,
    caption: str = "",
) -> Table:
    """Metrics (rows) by paired differences (columns), each with its 95% interval; one clear of zero is in bold."""
    rows = []
    for metric in metrics:
        cells = [_marked(difference(frame, label, other, metric)) for label, other in pairs]
        rows.append([metric_title(metric, record), *cells])
    return Table(["metric", *(f"{label} − {other}" for label, other in pairs)], rows, caption)


def wins_table(
    frame: pd.DataFrame,
    methods: Sequence[str],
    against: str,
    metrics: Sequence[str],
    record: Mapping[str, Any] | None = None,
) -> Table:
    """Methods (rows) by metrics (columns): on how many photographs, and what share of the images, a method is better
    than another; seeds are averaged, and a photograph's images."""
    valid = frame[frame["valid"]]
    scores = valid.groupby(["metric", "method", "photograph", "crop"])["value"].mean()

    def cell(method: str, metric: str) -> str:
        if not {(metric, method), (metric, against)} <= {key[:2] for key in scores.index}:
            return "—"
        gain = (scores[metric, method] - scores[metric, against]).dropna()
        gain = -gain if metric.endswith(".distance") else gain
        whole = gain.groupby("photograph").mean()
        return f"{(whole > 0).sum()} of {len(whole)}, {(gain > 0).mean():.0%}"

    rows = [[method, *(cell(method, metric) for metric in metrics)] for method in methods if method != against]
    caption = f"Photographs on which a method is better than {against}, and the share of images."
    return Table(["method", *(metric_title(metric, record) for metric in metrics)], rows, caption)


def _marked(interval: Interval) -> str:
    text = signed(interval)
    return f"**{text}**" if interval.above_zero or interval.below_zero else text


def published_table(table: PublishedTable, frame: pd.DataFrame, methods: Sequence[str], protocol: str) -> Table:
    """One paper's table with our rows on top. A column of ours is filled where we measured what the paper did.

    Args:
        protocol: a sentence on how ours were measured.
    """
    columns = [f"{metric.upper()}{' ↓' if metric in LOWER_IS_BETTER else ''}" for metric in table.metrics]
    rows = []
    for method in methods:
        cells = [_ours(frame, method, OURS.get(metric, metric)) for metric in table.metrics]
        rows.append([method, "this evaluation", *cells])
    ours = frozenset(range(len(rows)))
    for method, values in table.rows.items():
        rows.append([method, f"published ({table.source})", *(values.get(metric, "-") for metric in table.metrics)])
    caption = (
        f"{table.dataset}. Rows marked published are copied from {table.source}, not recomputed; ours: {protocol} "
        "Protocols differ between papers, so no two papers share a table."
    )
    return Table(["method", "source", *columns], rows, caption, ours)


def _ours(frame: pd.DataFrame, method: str, metric: str) -> str:
    if not ((frame["method"] == method) & (frame["metric"] == metric)).any():
        return "-"
    return interval_text(level(frame, method, metric))


def cost_table(costs: Mapping[str, Mapping[str, float]], caption: str = "") -> Table:
    """What each stage or run cost: seconds, images scored, updates, forwards, model FLOPs."""
    columns = ["", "wall clock", "images scored", "updates", "forwards", "model FLOPs"]
    rows = []
    for name, cost in costs.items():
        cells = [amount(cost[key]) if key in cost else "-" for key in ("images", "updates", "forwards", "flops")]
        rows.append([name, duration(cost["seconds"]) if "seconds" in cost else "-", *cells])
    return Table(columns, rows, caption)
