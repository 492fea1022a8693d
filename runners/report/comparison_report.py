"""The report of a comparison: who gains what over the same start, at what cost, and whether to believe it."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srgym.runners.measure.statistics import (
    Band,
    Interval,
    crossed_interval,
    gain_over_start,
    holm,
    performance_profile,
    probability_of_improvement,
    seed_interval,
)
from srgym.runners.report.comparison_folder import Comparison, read_comparison, read_pictures, save_tables
from srgym.runners.report.curve_data import COSTS, band, cost_tables, path
from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Table, Text
from srgym.runners.report.evaluation_report import INTERVALS, record_tables
from srgym.runners.report.numbers import interval_text, signed
from srgym.runners.report.panels import make_panels
from srgym.runners.report.plots import curves, forest, plane, profiles
from srgym.runners.report.summary import by_crop, difference, level, metric_names, power, present, scores
from srgym.runners.report.tables import cost_table, difference_table, levels_table, metric_title
from srgym.runners.report.verdicts import against_baselines, compared, hacking_alert
from srgym.runners.report.writing import write
from srgym.settings import leaves

__all__ = ["compare_document", "plane_axes", "write_compare_report"]

_CROSSED = "95% intervals over training seeds and photographs together"


def write_compare_report(folder: str | Path) -> Path:
    """Write `report.html`, `report.md`, `results` and `curves` into a comparison's folder, from its finished cells.

    Returns:
        The path of `report.html`.
    """
    comparison = read_comparison(Path(folder))
    save_tables(comparison)
    return write(compare_document(comparison, read_pictures(comparison)), comparison.folder)


def compare_document(comparison: Comparison, pictures: Sequence[Mapping[str, Any]] = ()) -> Document:
    """The report as a document."""
    frame, plan = comparison.frame, comparison.plan
    crops = len(frame[["photograph", "crop"]].drop_duplicates())
    seeds, photographs = frame[frame["role"] == "agent"]["run"].nunique(), frame["photograph"].nunique()
    document = Document(
        f"Comparison: {', '.join(comparison.agents)}",
        f"{seeds} training seed{'s' if seeds != 1 else ''} each; {crops} test crops of {photographs} photographs, none "
        f"of which was trained on. All start from one policy. Settings of all: "
        f"`{' '.join(plan['fixed']) or 'defaults'}`.",
    )
    document.add(Heading("In short"), *_verdicts(comparison))
    document.add(Heading("Gain over the starting policy"), *_gains(comparison))
    document.add(Heading("Learning curves"), *_learning(comparison))
    document.add(*_planes(comparison))
    document.add(Heading("How sure"), *_how_sure(comparison))
    starts = dict.fromkeys(map(comparison.start, comparison.agents))
    methods = [*starts, *comparison.baselines, *comparison.agents, *_controls(comparison)]
    document.add(
        Heading("Scores, and what costs no reinforcement learning"),
        levels_table(frame, methods, _columns(comparison), comparison.record, strong=comparison.agents),
        Text(f"The mean prediction and the samples of fewer steps are the starting policy's. {INTERVALS}"),
    )
    if pictures:
        shown = make_panels(pictures, "The first seed of each, at full size; LR enlarged. start: before training.")
        document.add(Heading("Pictures"), shown)
    document.add(*_settings(comparison), *_costs(comparison))
    document.add(Heading("What was measured"), *record_tables(comparison.record))
    return document


def _settings(comparison: Comparison) -> list[Block]:
    """The hyperparameters of every entry, what differs and what is shared, and the command that runs it again."""
    entries = {label: entry.get("hyperparameters") for label, entry in comparison.plan["entries"].items()}
    if any(own is None for own in entries.values()):
        return []
    flat = {label: dict(leaves(own)) for label, own in entries.items() if own is not None}
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    rows = [[key, *(str(own.get(key, "-")) for own in flat.values())] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    shared = ", ".join(f"{row[0]} {row[1]}" for row in rows if len(set(row[1:])) == 1)
    folders = ", ".join(f"[{name}](cells/{name}/run)" for name in comparison.plan["cells"])
    command = shlex.join(comparison.plan.get("command", []))
    text = f"Run again: `{command}`. {_versions(comparison)} Runs: {folders}."
    return [
        Heading("Settings"), Table(["setting", *flat], differing, "What differs. A dash: the agent hasn't got it."),
        Text(f"Shared by all: {shared or 'nothing'}."), Text(text),
    ]  # fmt: skip


def _versions(comparison: Comparison) -> str:
    facts = comparison.plan.get("made_with") or {}
    return f"{', '.join(f'{name} {value}' for name, value in facts.items())}." if facts else ""


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
    contrasts = _contrasts(comparison)
    adjusted = dict(zip(contrasts, holm([contrast.p for contrast in contrasts.values()]), strict=True))
    blocks: list[Block] = []
    for label in comparison.agents:
        blocks += _verdict(comparison, label, contrasts, adjusted)
    rows = []
    for first, second in combinations(comparison.agents, 2):
        if comparison.reward(first) == comparison.reward(second):
            gap = difference(comparison.frame, first, second, comparison.reward(first))
            rows.append([f"**{first} over {second}**", f"{comparison.reward(first)} {signed(gap)}", compared(gap)])
    if rows:
        blocks.append(Table(["who is better", "by", "in words"], rows, words=True))
    tuned = {label: entry.get("tuned") for label, entry in comparison.plan["entries"].items()}
    if len(set(tuned.values())) > 1:
        defaults = ", ".join(label for label, was in tuned.items() if not was)
        blocks.append(
            Callout(
                "warning", f"{defaults} ran on defaults, beside entries whose settings were chosen.", "Unequal effort"
            )
        )
    for cell, error in comparison.failed.items():
        blocks.append(Callout("warning", f"The run `{cell}` did not end well: {error}"))
    lines = [
        power(comparison.frame, label, comparison.start(label), comparison.reward(label)) for label in comparison.agents
    ]
    return [*blocks, Text(" ".join(f"{label}: {line}" for label, line in zip(comparison.agents, lines) if line))]


def _contrasts(comparison: Comparison) -> dict[tuple[str, str], Interval]:
    """The primary contrasts: every entry's reward over the start, and over its control."""
    pairs = {}
    for label in comparison.agents:
        for other in (comparison.start(label), comparison.control(label)):
            if other is not None:
                pairs[label, other] = difference(comparison.frame, label, other, comparison.reward(label))
    return pairs


def _verdict(
    comparison: Comparison,
    label: str,
    contrasts: Mapping[tuple[str, str], Interval],
    adjusted: Mapping[tuple[str, str], float],
) -> list[Block]:
    frame, reward = comparison.frame, comparison.reward(label)
    start, control = comparison.start(label), comparison.control(label)
    gain = contrasts[label, start]
    text = f"**{label}**: {reward} {signed(gain)} over the start; {compared(gain)}{_p(adjusted[label, start])}."
    good = gain.above_zero and adjusted[label, start] < 0.05
    if control is None:
        text += " It has no control with a random reward, so the gain can't be told from what any training does."
        good = False
    else:
        above = contrasts[label, control]
        text += f" Over its random-reward control: {signed(above)}; {compared(above)}{_p(adjusted[label, control])}."
        good = good and above.above_zero and adjusted[label, control] < 0.05
    text = f"{text} {against_baselines(frame, label, comparison.baselines, reward)}".strip()
    kind: Literal["good", "bad", "neutral"] = "good" if good else "bad" if control is not None else "neutral"
    others = {metric: difference(frame, label, start, metric) for metric in comparison.plan["held_out"]}
    alert = hacking_alert(label, gain, others)
    tag = "Raises its reward" if good else "No gain shown" if control is not None else "Without a control"
    return [Callout(kind, text, tag), *([alert] if alert is not None else [])]


def _p(adjusted: float) -> str:
    """Holm's p over all primary contrasts of the report."""
    return "" if adjusted != adjusted else f" (Holm's p {adjusted:.2g})"


# Gains


def _gains(comparison: Comparison) -> list[Block]:
    frame, labels = comparison.frame, comparison.agents
    pairs = [(label, comparison.start(label)) for label in labels]
    controls = {comparison.control(label): comparison.start(label) for label in labels}
    of_controls = [(control, start) for control, start in controls.items() if control is not None]
    parts = [metric for metric in metric_names(frame) if metric not in _totals(comparison)]
    trained = "trained on" if len(comparison.rewards) == 1 else "trained on by some"
    caption = (
        f"Mean gain over the start with {_CROSSED}. Bold: clear of zero. {', '.join(comparison.rewards)} and its "
        f"parts: {trained}."
    )
    blocks: list[Block] = [difference_table(frame, pairs, _totals(comparison), comparison.record, caption)]
    rows = []
    for metric in _totals(comparison):
        cells = [_alone_and_iqm(comparison, label, metric) for label in labels]
        rows.append([metric_title(metric, comparison.record), *cells])
    beside = (
        "Beside it: the mean gain with Student's interval over the seeds alone, these photographs being given; and the "
        f"interquartile mean with {_CROSSED}."
    )
    blocks.append(Table(["metric", *labels], rows, beside))
    if parts:
        blocks.append(difference_table(frame, pairs, parts, comparison.record, "The parts of these, likewise."))
    if of_controls:
        caption = "What a random reward does, likewise."
        blocks.append(difference_table(frame, of_controls, _totals(comparison), comparison.record, caption))
    return blocks


def _alone_and_iqm(comparison: Comparison, label: str, metric: str) -> str:
    own, start, photographs = _matrix(comparison, label, metric)
    gain = gain_over_start(own, start)
    middle = crossed_interval(gain, photographs, statistic="iqm")
    return f"{signed(seed_interval(gain))}; IQM {signed(middle)}"


def _matrix(comparison: Comparison, label: str, metric: str) -> tuple[Any, Any, list[str]]:
    """Scores [seeds, contexts] of a label, the start's [contexts], and the contexts' photographs."""
    start = by_crop(comparison.frame, comparison.start(label), metric)
    own, _ = scores(comparison.frame, label, metric, start.index)
    return own, start.to_numpy(), [str(name) for name in start.index.get_level_values(0)]


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
    introduction = (
        f"On held-out photographs while training, means with {_CROSSED} (of a single seed, as the controls have, over "
        "photographs alone; a band wider than its picture isn't drawn). Seconds leave out the evaluations; runs beside "
        "each other on shared cores slow each other down."
    )
    tables = cost_tables(comparison, comparison.rewards[0]) if len(comparison.rewards) == 1 else []
    costs: list[Block] = [Heading("What a level of the reward costs", 3), *tables] if tables else []
    return [Text(introduction), *blocks, *costs]


def _curve(comparison: Comparison, labels: Sequence[str], metric: str, cost: str) -> Figure | None:
    bands = {label: curve for label in labels if (curve := band(comparison, label, metric, cost)) is not None}
    if not bands:
        return None
    title = f"{metric} against {COSTS[cost]}"
    agents = [label for label in comparison.agents if label in bands]  # a control may run away from all of them
    height = f"held-out {metric_title(metric, comparison.record)}"
    controls = {control: label for label in agents if (control := comparison.control(label)) is not None}
    return curves(bands, COSTS[cost], height, title, framed=agents, controls=controls)


def plane_axes(metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (fidelity, perception) of metrics to draw paths in: judged with the ground truth, then by the scorer."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in metrics), None)

    scorer = next((name for name in metrics if name.endswith(".q_sr")), None)
    pairs = [
        (first(["psnr_y", "ssim_y"]), first(["lite0_features", "lpips", "structure_texture.texture"])),
        (first(["structure_texture", "psnr_y", "ssim_y"]), scorer),
    ]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _planes(comparison: Comparison) -> list[Block]:
    frame, figures = comparison.frame, []
    for x, y in plane_axes(metric_names(frame)):
        shown = [*comparison.agents, *_controls(comparison)]
        paths = {label: drawn for label in shown if (drawn := path(comparison, label, x, y)) is not None}
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
    introduction = (
        f"Probability of improvement: how likely a run of one beats a run of the other on a context; {_CROSSED}."
    )
    return [Text(introduction), *blocks]


def _improvement(comparison: Comparison, metric: str) -> list[Figure]:
    chances: dict[str, Interval] = {}
    for first, second in combinations(comparison.agents, 2):
        (x, _, photographs), (y, _, _) = (_matrix(comparison, label, metric) for label in (first, second))
        chances[f"{first} > {second}"] = probability_of_improvement(x, y, photographs)
    if not chances:
        return []
    text = "; ".join(f"{pair}: {interval_text(chance)}" for pair, chance in chances.items())
    return [
        forest(chances, "probability of improvement", f"Improvement in {metric}", text, line=0.5, limits=(-0.02, 1.02))
    ]


def _profile(comparison: Comparison, metric: str) -> list[Figure]:
    start = by_crop(comparison.frame, comparison.start(comparison.agents[0]), metric)
    if not np.nanstd(start.to_numpy()) > 0:
        return []
    gains = {
        label: gain_over_start(*_matrix(comparison, label, metric)[:2], in_spreads=True) for label in comparison.agents
    }
    photographs = [str(name) for name in start.index.get_level_values(0)]
    values = np.concatenate([gain[np.isfinite(gain)] for gain in gains.values()])
    taus = np.linspace(min(values.min(), 0.0), max(values.max(), 0.0), 60)
    bands: dict[str, Band] = {label: performance_profile(gain, taus, photographs) for label, gain in gains.items()}
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
