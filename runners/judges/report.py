"""The report of a judge's chain: its set, its labels, its training, what was measured, and its student."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srgym.files import to_png
from srgym.runners.judges.evaluate import CONFLICT
from srgym.runners.judges.exported import read_judge
from srgym.runners.judges.judge_set import JudgeSet
from srgym.runners.judges.material import Material
from srgym.runners.judges.set_material import read_material
from srgym.runners.judges.sft import from_png
from srgym.runners.judges.status import status
from srgym.runners.measure.published import published_tables
from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Panel, Panels, Table, Text
from srgym.runners.report.plots import render
from srgym.runners.report.writing import write
from srgym.sealed import read_object

__all__ = ["accuracy_table", "evaluation_blocks", "report", "write_evaluation"]

_BENCHMARK, _COLUMNS = "SRIQA-Bench", {"Reg": "reg_acc", "Gen": "gen_acc", "All": "all_acc"}
_SHOWN = 3
_PLOTTED = {
    "loss": "loss", "reward": "ranking reward", "pair_accuracy": "pair accuracy", "ties": "share of ties",
    "unreadable": "share of unreadable answers",
}  # fmt: skip


def report(run: Path) -> Path:
    """Write `run`/report.html and report.md: all that there is of a judge so far, and its set where that is here."""
    record = read_judge(run)
    document = Document(f"A judge: {record['recipe']}", f"Trained by `{record['command']}`.")
    data, material = Path(record["data"] or ""), None
    if (data / "set.json").is_file():
        material = read_material(data, record["set"]["split"])
        document.add(Heading("The set and its labels"), Table(["", ""], _set(data), words=True), _spread(material))
    document.add(Heading("Training"), *_training(run, record, material))
    for path in sorted(run.glob("evaluation/*/evaluation.json")):
        document.add(Heading(f"Measured on {path.parent.name}"), *evaluation_blocks(read_object(path, {})))
    for path in sorted(run.glob("distilled/*.json")):
        document.add(Heading("Distilled"), *_distilled(read_object(path, {})))
    return write(document, run)


def write_evaluation(result: Mapping[str, Any], folder: Path, command: Sequence[str]) -> Path:
    """Write `folder`/report.html of one evaluation."""
    on = result["on"]
    document = Document(
        f"{result['judge']} on {on['name']}",
        f"{result['groups']} groups of its {on['split']} split. `{' '.join(command)}`",
    )
    document.add(*evaluation_blocks(result))
    return write(document, folder)


def _set(data: Path) -> list[list[str]]:
    """What there is of each stage."""
    lines = [line.strip().partition(": ") for line in status(JudgeSet(data))]
    return [[head, tail] for head, _, tail in lines]


def _spread(material: Material) -> Block:
    """How the labels lie, by method."""
    labels: dict[str, list[tuple[float, float]]] = {}
    for group in material.groups:
        for j, method in enumerate(group.methods):
            fidelity = math.nan if group.fidelity is None else group.fidelity[j]
            labels.setdefault(method, []).append((group.quality[j], fidelity))
    rows = []
    for method, own in labels.items():
        quality, fidelity = np.array(own).T
        known = fidelity[np.isfinite(fidelity)]
        told = f"{known.mean():.2f}" if len(known) else "-"
        rows.append([method, str(len(own)), f"{quality.mean():.2f}", f"{quality.std():.2f}", told])
    caption = f"Labels of the {material.about['split']} split; fidelity is known of inputs that were made of a picture."
    return Table(["method", "candidates", "quality", "its spread", "fidelity"], rows, caption)


# Training


def _training(run: Path, record: Mapping[str, Any], material: Material | None) -> list[Block]:
    data, settings = record["set"], record["settings"]
    facts = [
        ["model", str(record["start"])],
        ["data", f"{data['rows']} rows of {data['groups']} inputs, {data['split']} split"],
        ["tuning", f"{settings['tuning']}, weights in {settings['dtype']}"],
        ["images", f"at most {settings['max_pixels']} pixels"],
        ["time", f"{record['seconds']:.0f} s"],
    ]
    blocks: list[Block] = [Table(["", "what"], facts, words=True)]
    rows = [json.loads(line) for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    figures = [_curve(rows, key, label) for key, label in _PLOTTED.items() if any(key in row for row in rows)]
    if figures:
        blocks.append(Figures(figures))
    return blocks if material is None else [*blocks, _seen(record["recipe"], material)]


def _curve(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> Figure:
    points = [(row["step"], float(row[key])) for row in rows if key in row]

    def draw(axes: Any, theme: Any) -> None:
        x, y = np.array(points).T
        axes.plot(x, y, **{**theme.style(0), "marker": ""})
        if key == "loss":
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(label)

    return render(draw, f"{label[0].upper()}{label[1:]}")


def _seen(recipe: str, material: Material) -> Block:
    """What the judge was shown, and what it had to answer."""
    rows = []
    for i in range(min(_SHOWN, len(material.groups))):
        group = material.groups[i]
        shown = [("input, enlarged", material.pair(i, 0)[0])]
        for j, label in enumerate(group.labels[:6]):
            said = f"{label}: {group.quality[j]:.2f}"
            if group.fidelity is not None:
                said += f", F {group.fidelity[j]:.2f}"
            shown.append((said, material.pair(i, j)[1]))
        rows.append((f"{group.name}, {group.kind}, input {group.q_lr:.2f}", [_panel(*one) for one in shown]))
    return Panels(rows, f"Candidates and the labels that recipe {recipe} learns from.")


def _panel(label: str, png: bytes) -> Panel:
    image = from_png(png)
    return Panel(label, to_png(image), image.shape[-1], image.shape[-2])


# Measuring


def _percent(bounds: Sequence[float | None], sign: bool = False) -> str:
    value, low, high = (math.nan if bound is None else 100 * bound for bound in bounds)
    shown = f"{value:+.1f}" if sign else f"{value:.1f}"
    return shown if math.isnan(low) else f"{shown} [{low:.1f}, {high:.1f}]"


def accuracy_table(result: Mapping[str, Any]) -> Table:
    """Accuracies with 95% intervals over scenes, baselines and published rows beside them."""
    subsets = result["subsets"]
    rows = [
        [
            label,
            *(_percent(own[s]["accuracy"]) for s in subsets),
            *(f"{own['All'][k]:.1%}" for k in ("ties", "unrated")),
        ]
        for label, own in result["accuracy"].items()
    ]
    if result["original_best"]:
        best = [f"{100 * result['original_best'][s][0]:.1f}" for s in subsets]
        rows.append(["the original best, else a coin", *best, "-", "-"])
    pairs = ", ".join(f"{s} {result['accuracy'][result['judge']][s]['pairs']}" for s in subsets)
    caption = f"Pairs in the right order, %; a tie is wrong. 95% over scenes, resampled whole. Pairs: {pairs}."
    if "Reg" in subsets:
        for table in published_tables(_BENCHMARK):
            for method, own in table.rows.items():
                rows.append([f"{method} (published)", *(own.get(_COLUMNS[s], "-") for s in subsets), "-", "-"])
            caption += f" Published: {table.source}."
    return Table(["", *subsets, "ties", "unrated"], rows, caption, strong=frozenset({0}))


def evaluation_blocks(result: Mapping[str, Any]) -> list[Block]:
    """One evaluation: accuracies, differences on the same pairs, where the judge is right, and the ablation."""
    blocks: list[Block] = [accuracy_table(result)]
    beaten = result["difference"]["mean of the method on the other scenes"]["All"]
    if beaten[0] is not None and not beaten[1] > 0:
        said = f"{_percent(beaten, sign=True)} points against the mean of each method: it tells methods apart, at most."
        blocks.append(Callout("warning", said, "No judge of images yet"))
    rows = [
        [label, *(_percent(own[s], sign=True) for s in result["subsets"])]
        for label, own in result["difference"].items()
    ]
    blocks += [Table([f"{result['judge']} over", *result["subsets"]], rows, "Difference on the same pairs, points.")]
    gaps = [[f"{low:.3g} to {high:.3g}", f"{100 * right:.1f}", str(n)] for low, high, right, n in result["by_gap"]]
    left = [[m, *(f"{100 * x:.1f}" if math.isfinite(x) else "-" for x in own)] for m, own in result["left_out"].items()]
    kinds = [[kind, _percent(own["accuracy"]), str(own["pairs"])] for kind, own in result["by_kind"].items()]
    blocks += [
        Table(["gap of the labels", "accuracy", "pairs"], gaps, "By how far apart the labels put a pair."),
        Table(["method", "pairs without it", "pairs with it"], left, "Leaving each method out."),
        Table(["input", "accuracy", "pairs"], kinds),
        Text(_orders(result)),
        Text(_conflicts(result)),
        Text(_shared(result)),
    ]
    if "ablation" in result:
        rows = [
            [label, *(f"{_percent(own['accuracy'][s]['accuracy'])}; {_percent(own['difference'][s], sign=True)}"
                      for s in result["subsets"])]
            for label, own in result["ablation"].items()
        ]  # fmt: skip
        without = "" if "without calibration" in result["ablation"] else (
            " Without calibration: train another judge with labels=anchor and name it by uncalibrated=RUN."
        )  # fmt: skip
        blocks += [
            Heading("Ablation", 3),
            Table(["", *result["subsets"]], rows, "Accuracy; difference from gamma 7 on the same pairs." + without),
        ]
    return blocks


def _orders(result: Mapping[str, Any]) -> str:
    if result["flips"] is None:
        return "Order of asking: an image is rated alone, beside its input, so no order can flip an answer."
    return (
        f"Order of asking: {result['flips']:.1%} of pairs are answered otherwise when the two change places; "
        f"{result['unread']:.1%} of answers can't be read."
    )


def _conflicts(result: Mapping[str, Any]) -> str:
    if result["conflict"] is None:
        return "Descriptions: none of a candidate that the judge rates, so none that could contradict a score."
    return f"Descriptions: {result['conflict']:.1%} speak of a quality more than {CONFLICT:g} from the judge's score."


def _shared(result: Mapping[str, Any]) -> str:
    count = len(result["methods"])
    if not result["shared"]:
        return f"Leakage: none of the {count} methods here is known to be one that the judge learnt from."
    return (
        f"Leakage: the judge learnt from {len(result['shared'])} methods of the {count} here "
        f"({', '.join(result['shared'])}), so it isn't measured on strangers."
    )


# Distilling


def _distilled(result: Mapping[str, Any]) -> list[Block]:
    rows = []
    for name, label in (("inside_groups", "all candidates of an input"), ("one_policy", "samples of one policy")):
        own = result["agreement"][name]
        shown = "-" if own["spearman"] is None else f"{own['spearman']:+.2f}"
        error = "-" if own["error"] is None else f"{own['error']:.2f}"
        rows.append([label, shown, error, str(own["photographs"]), str(own["groups"])])
    said = (
        f"{result['groups']['train']} groups to learn from, {result['samples']} samples of the policy "
        f"{result['policy']} in each; the teacher's noise is {result['noise']:.4f} of a score. No ground truth."
    )
    columns = ["Spearman, student and teacher", "mean", "SE", "photographs", "groups"]
    caption = "On the held-out split; the mean over photographs and its standard error."
    blocks: list[Block] = [Text(said), Table(columns, rows, caption)]
    if result.get("audit"):
        answers = {True: "holds", False: "**fails**", None: "not asked"}
        lines = [[line["name"], answers[line["holds"]], line["measured"]] for line in result["audit"]]
        blocks.append(Table(["audit of the student", "verdict", "measured"], lines, words=True))
    return blocks
