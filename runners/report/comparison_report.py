"""The report of a comparison: who gains what over the same start, at what cost, and whether to believe it."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srgym.runners.measure.statistics import (
    Band,
    Interval,
    gain_over_start,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from srgym.runners.report.comparison_folder import START, Comparison, read_comparison, read_pictures, save_tables
from srgym.runners.report.curve_data import COSTS, band, cost_tables, path
from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Table, Text
from srgym.runners.report.evaluation_report import INTERVALS, record_tables
from srgym.runners.report.numbers import interval_text, signed
from srgym.runners.report.panels import make_panels
from srgym.runners.report.plots import curves, forest, plane, profiles
from srgym.runners.report.summary import by_crop, difference, level, metric_names, present, run_matrix
from srgym.runners.report.tables import cost_table, difference_table, levels_table, metric_title
from srgym.runners.report.verdicts import against_baselines, compared, hacking_alert

__all__ = ["compare_document", "plane_axes", "write_compare_report"]

_SEEDS = "95% stratified bootstrap intervals over training seeds, with the contexts and the start as they are"


def write_compare_report(folder: str | Path) -> Path:
    """Write `report.html`, `report.md`, `results` and `curves` into a comparison's folder, from its finished cells.

    Returns:
        The path of `report.html`.
    """
    comparison = read_comparison(Path(folder))
    save_tables(comparison)
    return compare_document(comparison, read_pictures(comparison)).save(comparison.folder)


def compare_document(comparison: Comparison, pictures: Sequence[Mapping[str, Any]] = ()) -> Document:
    """The report as a document."""
    frame, plan = comparison.frame, comparison.plan
    crops = len(frame[["photograph", "crop"]].drop_duplicates())
    seeds = frame[frame["role"] == "agent"]["run"].nunique()
    document = Document(
        f"Comparison: {', '.join(comparison.agents)}",
        f"{seeds} training seeds each; {crops} test crops of {frame['photograph'].nunique()} photographs, none of "
        f"which was trained on. All start from one policy. Settings of all: `{' '.join(plan['fixed']) or 'defaults'}`.",
    )
    document.add(Heading("In short"), *_verdicts(comparison))
    document.add(Heading("Gain over the starting policy"), *_gains(comparison))
    document.add(Heading("Learning curves"), *_learning(comparison))
    document.add(*_planes(comparison))
    document.add(Heading("How sure"), *_how_sure(comparison))
    methods = [START, *comparison.baselines, *comparison.agents, *_controls(comparison)]
    document.add(
        Heading("Scores, and what costs no reinforcement learning"),
        levels_table(frame, methods, _columns(comparison), comparison.record, strong=comparison.agents),
        Text(f"The mean prediction and the samples of fewer steps are the starting policy's. {INTERVALS}"),
    )
    if pictures:
        shown = make_panels(pictures, f"The first seed of each, at full size; LR enlarged. {START}: before training.")
        document.add(Heading("Pictures"), shown)
    document.add(*_costs(comparison), Heading("What was measured"), *record_tables(comparison.record))
    return document


def _controls(comparison: Comparison) -> list[str]:
    return [control for label in comparison.agents if (control := comparison.control(label)) is not None]


def _totals(comparison: Comparison) -> list[str]:
    """The rewards, then the metrics, without parts."""
    return [m for m in metric_names(comparison.frame) if m in comparison.record["metrics"]]


def _columns(comparison: Comparison) -> list[str]:
    kept = ("fidelity", "q_sr", "texture")
    totals = _totals(comparison)
    return [m for m in metric_names(comparison.frame) if m in totals or m.rpartition(".")[2] in kept]


# In short


def _verdicts(comparison: Comparison) -> list[Block]:
    found: list[Block] = []
    for label in comparison.agents:
        found += _verdict(comparison, label)
    for cell, error in comparison.failed.items():
        found.append(Callout("warning", f"The run `{cell}` did not end well: {error}"))
    return found


def _verdict(comparison: Comparison, label: str) -> list[Block]:
    frame, reward = comparison.frame, comparison.reward(label)
    gain, control = difference(frame, label, START, reward), comparison.control(label)
    said = f"**{label}**: {reward} {signed(gain)} over the start; {compared(gain)}."
    if control is None:
        said += " It has no control with a random reward, so the gain can't be told from what any training does."
        good = False
    else:
        above = difference(frame, label, control, reward)
        said += f" Over its random-reward control: {signed(above)}; {compared(above)}."
        good = gain.above_zero and above.above_zero
    beside = against_baselines(frame, label, comparison.baselines, reward)
    said = f"{said} {beside}".strip()
    kind: Literal["good", "bad", "neutral"] = "good" if good else "bad" if control is not None else "neutral"
    others = {metric: difference(frame, label, START, metric) for metric in comparison.plan["held_out"]}
    alert = hacking_alert(label, gain, others)
    tag = "Raises its reward" if good else "No gain shown" if control is not None else "Without a control"
    return [Callout(kind, said, tag), *([alert] if alert is not None else [])]


# Gains


def _gains(comparison: Comparison) -> list[Block]:
    frame, labels = comparison.frame, comparison.agents
    metrics = metric_names(frame)
    rows = [[metric_title(m, comparison.record), *(_iqm_gain(comparison, a, m) for a in labels)] for m in metrics]
    pairs = [(label, START) for label in (*labels, *_controls(comparison))]
    trained = "trained on" if len(comparison.rewards) == 1 else "trained on by some"
    caption = (
        f"Interquartile mean of the gain over the start, by seed and context; {_SEEDS}. Bold: clear of zero. "
        f"{', '.join(comparison.rewards)} and its parts: {trained}."
    )
    mean = (
        "Mean gain, the seeds averaged, with its interval over photographs and the crops nested in them: what it says "
        "of other photographs. Bold: clear of zero."
    )
    return [
        Table(["metric", *labels], rows, caption),
        difference_table(frame, pairs, metrics, comparison.record, mean),
    ]


def _matrix(comparison: Comparison, label: str, metric: str) -> tuple[Any, Any]:
    """Scores [seeds, contexts] of a label, and the start's [contexts]."""
    start = by_crop(comparison.frame, START, metric)
    scores, _ = run_matrix(comparison.frame, label, metric, start.index)
    return scores, start.to_numpy()


def _iqm_gain(comparison: Comparison, label: str, metric: str) -> str:
    one = stratified_interval(gain_over_start(*_matrix(comparison, label, metric)))
    text = signed(one)
    return f"**{text}**" if one.above_zero or one.below_zero else text


# Curves and paths


def _learning(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for reward in comparison.rewards:
        labels = [label for label in comparison.agents if comparison.reward(label) == reward]
        shown = [*labels, *[c for label in labels if (c := comparison.control(label)) is not None]]
        figures = [_curve(comparison, shown, reward, cost) for cost in COSTS]
        held_out = comparison.plan["held_out"][:3]
        figures += [_curve(comparison, shown, metric, "images") for metric in held_out]
        drawn = [figure for figure in figures if figure is not None]
        if drawn:
            blocks += [Figures(drawn)]
    if not blocks:
        return [Text("No run was evaluated while it was trained.")]
    said = (
        "On held-out photographs while training, mean over seeds with 95% bootstrap intervals over them (none of a "
        "single seed, as the controls have). Seconds leave out the evaluations; runs beside each other on shared cores "
        "slow each other down."
    )
    tables = cost_tables(comparison, comparison.rewards[0]) if len(comparison.rewards) == 1 else []
    costs: list[Block] = [Heading("What a level of the reward costs", 3), *tables] if tables else []
    return [Text(said), *blocks, *costs]


def _curve(comparison: Comparison, labels: Sequence[str], metric: str, cost: str) -> Figure | None:
    bands = {label: one for label in labels if (one := band(comparison, label, metric, cost)) is not None}
    if not bands:
        return None
    title = f"{metric} against {COSTS[cost]}"
    return curves(bands, COSTS[cost], f"held-out {metric_title(metric, comparison.record)}", title)


def plane_axes(metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (fidelity, perception) of metrics to draw paths in: judged with the ground truth, then by the scorer."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in metrics), None)

    scorer = next((name for name in metrics if name.endswith(".q_sr")), None)
    pairs = [
        (first(["psnr_y", "ssim_y"]), first(["appearance", "structure_texture.texture", "lpips"])),
        (first(["structure_texture", "psnr_y", "ssim_y"]), scorer),
    ]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _planes(comparison: Comparison) -> list[Block]:
    frame, figures = comparison.frame, []
    for x, y in plane_axes(metric_names(frame)):
        shown = [*comparison.agents, *_controls(comparison)]
        paths = {label: one for label in shown if (one := path(comparison, label, x, y)) is not None}
        if not paths:
            continue
        points = {
            name: (level(frame, name, x).value, level(frame, name, y).value)
            for name in (comparison.baselines if _same_contexts(comparison) else [])
        }
        x_label, y_label = (metric_title(name, comparison.record) for name in (x, y))
        caption = "From the start to the arrow, mean over seeds. A path that bends left trades fidelity for the reward."
        figures.append(plane(paths, points, x_label, y_label, f"{y} against {x}", caption))
    return [Heading("Perception against fidelity"), Figures(figures)] if figures else []


def _same_contexts(comparison: Comparison) -> bool:
    """Whether the curves were drawn on the contexts of the final scores, so that points and paths share a plane."""
    keys = ["photograph", "crop"]
    seen = [set(map(tuple, frame[keys].astype(str).to_numpy())) for frame in (comparison.frame, comparison.curves)]
    return seen[0] == seen[1]


# How sure


def _how_sure(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for metric in [*present(comparison.frame, comparison.rewards), *comparison.plan["held_out"][:1]]:
        figures = [*_improvement(comparison, metric), *_profile(comparison, metric)]
        if figures:
            blocks.append(Figures(figures))
    said = f"Probability of improvement: how likely a run of one beats a run of the other on a context; {_SEEDS}."
    return [Text(said), *blocks]


def _improvement(comparison: Comparison, metric: str) -> list[Figure]:
    chances: dict[str, Interval] = {}
    for one, other in combinations(comparison.agents, 2):
        x, y = (_matrix(comparison, label, metric)[0] for label in (one, other))
        chances[f"{one} > {other}"] = probability_of_improvement(x, y)
    if not chances:
        return []
    text = "; ".join(f"{pair}: {interval_text(chance)}" for pair, chance in chances.items())
    return [
        forest(chances, "probability of improvement", f"Improvement in {metric}", text, line=0.5, limits=(-0.02, 1.02))
    ]


def _profile(comparison: Comparison, metric: str) -> list[Figure]:
    start = by_crop(comparison.frame, START, metric)
    if not np.nanstd(start.to_numpy()) > 0:
        return []
    gains = {
        label: gain_over_start(*_matrix(comparison, label, metric), in_spreads=True) for label in comparison.agents
    }
    values = np.concatenate([gain[np.isfinite(gain)] for gain in gains.values()])
    taus = np.linspace(min(values.min(), 0.0), max(values.max(), 0.0), 60)
    bands: dict[str, Band] = {label: performance_profile(gain, taus) for label, gain in gains.items()}
    caption = "The starting policy is at 0; one unit is its standard deviation over contexts."
    return [profiles(bands, f"gain in {metric} (spreads of the start)", f"Performance profile, {metric}", caption)]


# Costs


def _costs(comparison: Comparison) -> list[Block]:
    costs: dict[str, dict[str, float]] = {}
    for name, cell in comparison.plan["cells"].items():
        if name in comparison.costs and comparison.costs[name].get("seconds") is not None:
            costs[f"{cell['label']}, seed {cell['seed']}"] = dict(comparison.costs[name])
    whole = sum(cost.get("whole", 0.0) for cost in comparison.costs.values())
    return [
        Heading("What it cost"),
        cost_table(costs),
        Text(f"All runs together, evaluations included: {whole:.0f} process seconds."),
    ]
