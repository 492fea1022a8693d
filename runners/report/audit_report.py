"""The page of a reward's audit: a verdict each line, what lies behind them, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srgym.files import write_json
from srgym.rewards.audit.faults import FAULTS, spoilt
from srgym.runners.measure.statistics import crossed_interval
from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Panels, Table, Text
from srgym.runners.report.numbers import signed
from srgym.runners.report.panels import panel
from srgym.runners.report.plots import render
from srgym.runners.report.writing import write
from srgym.runners.reward_models.audit import AREAS, Audit
from srgym.runners.reward_models.audit_lines import Line, group_correlations

__all__ = ["audit_document", "write_audit"]

_PARTS = {
    "signal": "Signal inside a group", "sanity": "Sanity", "attack": "Attack on pixels",
    "over-optimisation": "Over-optimisation", "contract": "Contract",
}  # fmt: skip
_SHOWN = 3
_ANSWERS = {True: "holds", False: "**fails**", None: "not asked"}


def write_audit(audit: Audit, learnt: Path, command: Sequence[str]) -> tuple[Path, bool]:
    """Measure what isn't yet, judge it, and write `audit.json`, `report.html` and `report.md` into the audit's folder.

    Args:
        learnt: the policy of a short training on the reward, with a LoRA. command: that asked for it.

    Returns:
        The page, and whether no line fails.
    """
    lines, stop = audit.verdicts(learnt)
    passes = all(line.holds is not False for line in lines)
    record = {
        "reward": dict(audit.settings.reward), "passes": passes, "command": list(command), "stop_at": stop,
        "judges": audit.judges, "lines": [line.as_json() for line in lines],
    }  # fmt: skip
    write_json(audit.folder / "audit.json", record)
    return write(audit_document(audit, lines, stop, learnt, command), audit.folder), passes


def audit_document(
    audit: Audit, lines: Sequence[Line], stop: float | None, learnt: Path, command: Sequence[str]
) -> Document:
    """The report, of an audit whose parts are measured."""
    failed = [line for line in lines if line.holds is False]
    count = len(set(audit.photographs))
    document = Document(
        f"Audit of the reward {audit.reward.name}",
        f"{len(audit.contexts)} contexts of {count} photographs, {audit.settings.samples} samples of each by the "
        f"policy {audit.settings.policy['name']}. `{' '.join(command)}`",
    )
    if failed:
        counted = f"{len(failed)} of {sum(line.holds is not None for line in lines)} lines fail: "
        document.add(Callout("bad", counted + ", ".join(line.name for line in failed) + ".", "Fails"))
    else:
        document.add(Callout("good", "No line fails.", "Passes"))
    if not audit.judges["perceptual"]:
        document.add(Callout("warning", 'No independent perceptual judge is installed: pip install "srgym[judges]".'))
    for part, title in _PARTS.items():
        rows = [[line.name, _ANSWERS[line.holds], line.measured, line.wanted] for line in lines if line.part == part]
        document.add(Heading(title), Table(["", "verdict", "measured", "wanted"], rows, words=True))
        document.add(*_behind(part, audit, stop, learnt))
    return document


def _behind(part: str, audit: Audit, stop: float | None, learnt: Path) -> list[Block]:
    """What lies behind the verdicts of a part."""
    if part == "signal":
        return [_correlations(audit)]
    if part == "sanity":
        return [_fault_table(audit), _fault_pictures(audit)]
    if part == "attack":
        return [_attack_table(audit), _attack_pictures(audit)]
    if part == "over-optimisation":
        return [Figures([_curve(audit, learnt)]), Text(_stop(audit, stop))]
    return []


def _correlations(audit: Audit) -> Table:
    signal, rows = audit.signal(), []
    for kind, labels in audit.judges.items():
        for label in labels:
            rho = group_correlations(signal["samples"], signal["judges"][label])
            rows.append([label, kind, signed(crossed_interval(rho[None], audit.photographs))])
    return Table(
        ["independent judge", "of", "rank correlation"], rows,
        "Spearman's correlation with the reward among the samples of one context; 95% over photographs.",
    )  # fmt: skip


def _fault_table(audit: Audit) -> Table:
    sanity = audit.sanity()
    clean = np.asarray(sanity["start"])[:, None]
    rows = [
        [kind, *(f"{np.mean(np.asarray(sanity['faults'][kind][str(area)]) < clean):.0%}" for area in AREAS)]
        for kind in FAULTS
    ]
    where = "an image close to it (a quarter bicubic)" if "hr" in audit.reward.needs else "itself"
    return Table(
        ["fault on", *(f"{area:.0%}" for area in AREAS)], rows,
        f"Share of contexts and of two strengths in which the reward falls when the truth, or {where}, is spoilt on so "
        f"much of its area.",
    )  # fmt: skip


def _fault_pictures(audit: Audit) -> Panels:
    image = audit.start[:1]
    shown = [panel("as it was", image[0]), *(panel(k, spoilt(image, k, 1.0, seed=1)[0]) for k in FAULTS)]
    return Panels([(f"{audit.contexts[0].ids[0]}, every fault at strength 1", shown)])


def _attack_table(audit: Audit) -> Table:
    attack = audit.attack()
    plain, spread = np.asarray(attack["plain"]), np.nanstd(np.asarray(audit.signal()["samples"]), 1)[attack["which"]]
    labels = list(attack["judges"])
    rows = []
    for levels, row in attack["attacked"].items():
        scores = np.asarray(row["scores"])
        gain, left = scores[:, 0] - plain[:, 0], scores[:, 1] - plain[:, 2]
        judged = [float(np.nanmean(np.asarray(row["judges"][k]) - np.asarray(attack["judges"][k]))) for k in labels]
        kept = left[gain > 0] / gain[gain > 0]
        rows.append([
            f"within {levels}", f"{np.nanmean(gain / np.maximum(spread, 1e-12)):+.1f}",
            f"{np.mean(scores[:, 0] > plain[:, 1]):.0%}", f"{np.median(kept):.0%}" if len(kept) else "-",
            *(f"{change:+.3f}" for change in judged),
        ])  # fmt: skip
    return Table(
        ["grey levels", "gain", "above the truth", "left by JPEG 95", *labels], rows,
        "Gain in standard deviations of a group; judges' mean change.",
    )  # fmt: skip


def _attack_pictures(audit: Audit) -> Panels:
    which, images = audit.attack()["which"][:_SHOWN], audit.attack_pictures
    levels = max(images, key=int)
    rows = []
    for i, place in enumerate(which):
        sample, attacked = audit.samples[place, 0], images[levels][i]
        shown = {"truth": audit.truth[place], "sample": sample, f"attacked within {levels}": attacked,
                 "difference x 8": (0.5 + 8 * (attacked - sample)).clamp(0, 1)}  # fmt: skip
        rows.append((audit.contexts[place].ids[0], [panel(name, image) for name, image in shown.items()]))
    return Panels(rows)


def _curve(audit: Audit, learnt: Path) -> Figure:
    rows = audit.curve(learnt)["rows"]
    distance = [row["distance"] for row in rows]
    end = next(i for i, row in enumerate(rows) if row["weight"] == 1.0)

    def scaled(values: Sequence[float], unit: float) -> Any:
        return (np.asarray(values) - values[0]) / unit if unit else np.zeros(len(values))

    def draw(axes: Any, theme: Any) -> None:
        reward = [float(np.nanmean(row["reward"])) for row in rows]
        axes.plot(distance, scaled(reward, abs(reward[end] - reward[0])), label="reward", **theme.style(0))
        for i, label in enumerate((label for labels in audit.judges.values() for label in labels), 1):
            judged = [float(np.nanmean(row["judges"][label])) for row in rows]
            axes.plot(distance, scaled(judged, max(abs(v - judged[0]) for v in judged)), label=label, **theme.style(i))
        axes.axhline(0, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.axvline(distance[end], color=theme.ink, linewidth=0.9, linestyle=(0, (1, 3)))
        axes.set_xlabel("distance from the start (RMS, grey levels)")
        axes.set_ylabel("change, scaled")
        axes.legend(ncols=2)

    caption = (
        "The LoRA of a short training at weights 0 to 2. The reward's gain at the end of training (dotted) is 1; each "
        "judge is scaled to its greatest change. After Gao et al. 2023."
    )
    return render(draw, "Reward and judges against the distance", caption, (7.2, 4.2))


def _stop(audit: Audit, stop: float | None) -> str:
    if stop is None:
        return "The short training didn't raise the reward, so nothing can be said of where to stop."
    if stop >= 2:
        return "No independent judge falls up to twice the LoRA's weight."
    share = f"at {stop:g} of the LoRA's weight" if stop else "at once: some judge falls from the first step"
    return f"**Stop here**: {share}. Beyond it an independent judge lies below the start by more than its margin."
