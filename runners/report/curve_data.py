"""Learning curves of a comparison: means over held-out contexts, bands over seeds, and what a target costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srgym.runners.measure.statistics import Band, Interval, cost_to_reach, curve_band, ratio_interval
from srgym.runners.report.comparison_folder import Comparison
from srgym.runners.report.document import Table
from srgym.runners.report.numbers import amount, interval_text

__all__ = ["COSTS", "band", "cost_tables", "path", "seed_curves", "targets"]

# What a curve may be drawn against: the column, and how an axis is labelled.
COSTS = {"images": "images scored", "seconds": "training seconds (one thread)", "flops": "model FLOPs"}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def seed_curves(comparison: Comparison, label: str, metric: str, cost: str) -> list[Curve]:
    """(cost, mean over held-out contexts) of each seed."""
    frame = comparison.curves
    if frame.empty:
        return []
    rows = frame[(frame["method"] == label) & (frame["metric"] == metric)]
    curves: list[Curve] = []
    for _, own in rows.groupby("run"):
        points = own.groupby("iteration").agg({cost: "first", "value": "mean"}).dropna()
        if len(points) > 1:
            curves.append((points[cost].to_numpy(dtype=float), points["value"].to_numpy(dtype=float)))
    return curves


def band(comparison: Comparison, label: str, metric: str, cost: str) -> Band | None:
    """The mean curve over seeds and held-out contexts with its interval; None where there is no curve."""
    frame = comparison.curves
    if frame.empty:
        return None
    rows = frame[(frame["method"] == label) & (frame["metric"] == metric)]
    keys = ["photograph", "crop"]
    tables = []
    for _, own in rows.groupby("run"):
        spent = own.groupby("iteration")[cost].first()
        table = own.pivot_table(index="iteration", columns=keys, values="value", aggfunc="mean", dropna=False)
        tables.append((spent, table))
    complete = [table.columns[table.notna().all()] for _, table in tables if len(table) > 1]
    if not complete:
        return None
    contexts = complete[0]
    for columns in complete[1:]:
        contexts = contexts.intersection(columns)
    if not len(contexts):
        return None
    curves = [(spent.to_numpy(float), table[contexts].to_numpy(float)) for spent, table in tables if len(table) > 1]
    return curve_band(curves, [str(name) for name in contexts.get_level_values(0)])


def path(comparison: Comparison, label: str, x: str, y: str) -> tuple[list[float], list[float]] | None:
    """The mean path of a label's seeds through the plane of two metrics, over training."""
    frame = comparison.curves
    if frame.empty:
        return None
    rows = frame[(frame["method"] == label) & frame["metric"].isin([x, y])]
    points = rows.pivot_table(index="iteration", columns="metric", values="value", aggfunc="mean")
    if x not in points or y not in points or len(points) < 2:
        return None
    points = points.dropna()
    return points[x].tolist(), points[y].tolist()


def targets(comparison: Comparison, metric: str) -> dict[str, float]:
    """Levels of the training reward to reach: shares of the best agent's mean gain, by how they are called."""
    gains, start = [], []
    for label in comparison.agents:
        curves = seed_curves(comparison, label, metric, "images")
        if curves:
            gains.append(np.mean([y[-1] - y[0] for _, y in curves]))
            start.append(np.mean([y[0] for _, y in curves]))
    if not gains or max(gains) <= 0:
        return {}
    shares: Sequence[float] = comparison.plan["settings"]["targets"]
    return {f"{share:.0%} of the best gain": float(np.mean(start) + share * max(gains)) for share in shares}


def cost_tables(comparison: Comparison, metric: str) -> list[Table]:
    """What each agent spends to reach each target, and how often that is what the first agent spends."""
    levels, rows, ratios = targets(comparison, metric), list[list[str]](), list[list[str]]()
    for name, target in levels.items():
        spent = {label: _spent(comparison, label, metric, target) for label in comparison.agents}
        for label, costs in spent.items():
            reached = int(np.isfinite(costs["images"]).sum())
            cells = [_mean(costs[cost]) for cost in COSTS]
            rows.append([f"{name} ({target:.4g})", label, f"{reached} of {len(costs['images'])}", *cells])
        first, *others = comparison.agents
        ratios += [
            [name, f"{other} / {first}", *(_ratio(spent[other][c], spent[first][c]) for c in COSTS)] for other in others
        ]
    if not rows:
        return []
    titles = list(COSTS.values())
    caption = f"Held-out {metric} during training; means over the seeds that reached the target."
    tables = [Table(["target", "agent", "seeds that reached it", *titles], rows, caption)]
    if ratios:
        text = "Ratios of means with 95% intervals over seeds; a dash where a seed of either didn't reach it."
        tables.append(Table(["target", "ratio", *titles], ratios, text))
    return tables


def _spent(comparison: Comparison, label: str, metric: str, target: float) -> dict[str, Any]:
    curves = {cost: seed_curves(comparison, label, metric, cost) for cost in COSTS}
    return {cost: np.array([cost_to_reach(x, y, target) for x, y in own]) for cost, own in curves.items()}


def _mean(costs: NDArray[np.float64]) -> str:
    reached = costs[np.isfinite(costs)]
    return amount(float(reached.mean())) if len(reached) else "-"


def _ratio(costs: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    if not (np.isfinite(costs).all() and np.isfinite(others).all() and (others > 0).all()) or not len(costs):
        return "-"
    ratio: Interval = ratio_interval(costs, others)
    return interval_text(ratio)
