"""The page of a reproduction: one row a claim, and below it what each verdict rests on."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from srgym.runners.loop.progress import duration
from srgym.runners.measure.evaluation import write_frame
from srgym.runners.measure.published import published_tables
from srgym.runners.measure.statistics import Interval
from srgym.runners.report.comparison_folder import join_pictures
from srgym.runners.report.document import Block, Callout, Document, Figures, Heading, Table, Text
from srgym.runners.report.numbers import interval_text, signed
from srgym.runners.report.panels import make_panels
from srgym.runners.report.plots import forest, plane
from srgym.runners.report.summary import present
from srgym.runners.report.tables import levels_table
from srgym.runners.report.writing import write
from srgym.runners.reproduce.claims import Arm, Claim, Contrast
from srgym.runners.reproduce.plan import DOSES, Plan
from srgym.runners.reproduce.results import WHOLE, Finding, Results, alike, can_tell, conclude, read_results, wanted
from srgym.runners.run.made_with import made_with

__all__ = ["page", "write_page"]

_RULES = (
    "A claim expects a difference to lie beyond a margin, the least that matters, in a direction, or a loss to stay "
    "inside of it. **Reproduced**: the 95% interval over seeds and photographs together lies wholly beyond the margin "
    "in the claimed direction. **Contradicted**: wholly beyond it the other way. **No effect of that size**: wholly "
    "inside. Else **inconclusive**, with what would tell. Verdicts on primary contrasts stand after Holm's correction "
    "over all of them. A claim of several parts is reproduced if all of them are."
)
_LIMITS = (
    "What a miniature can't say: whether a claim holds for the models that the papers trained. The policy here is "
    "small and makes crops; its rewards are compact networks that fail lines of their audits; LIQE, MUSIQ and MANIQA "
    "have no weights at hand, and structure and texture, features of a small network and FLIP stand in their place. A "
    "claim that isn't reproduced here may well be true there; one that is may have another cause."
)
_SHOWN = 2  # contexts in pictures
_PATHS = 16.0  # margins, beyond which an interval is drawn at the edge


def write_page(plan: Plan, failed: Mapping[str, str | None]) -> Path:
    """Write `report.html`, `report.md` and `results` into the plan's folder, from its finished cells.

    Args:
        failed: cells that didn't end well, with their last words.

    Returns:
        The path of `report.html`.
    """
    results = read_results(plan)
    write_frame(results.frame, plan.folder, "results")
    return write(page(plan, results, failed), plan.folder)


def page(plan: Plan, results: Results, failed: Mapping[str, str | None]) -> Document:
    """The page as a document."""
    settings = plan.settings
    frame = results.frame[results.frame["photograph"] != WHOLE]
    photographs = frame.groupby("method")["photograph"].nunique().max() if len(frame) else 0
    asked = wanted(plan, results.agreements)
    left_out = (
        f", {len(plan.cells) - len(asked)} left out, since training can't tell their rewards apart"
        if len(asked) < len(plan.cells)
        else ""
    )
    versions = ", ".join(f"{name} {value}" for name, value in made_with().items())
    document = Document(
        "The papers' claims in miniature",
        f"`{shlex.join(['srgym', 'reproduce', *plan.arguments])}`: tier {settings['tier']}, {settings['seeds']} seeds "
        f"({settings['many']} of Flow-GRPO and of runs of several stages), {settings['effort']:g} of the runs' "
        f"budgets, {settings['limit']} test crops of {photographs} photographs. "
        f"{len(results.seconds)} of {len(asked)} cells ended, in {duration(sum(results.seconds.values()))} of one core"
        f"{left_out}. {versions}.",
    )
    concluded = conclude(plan, results)
    document.add(_in_short(plan, results, concluded), Text(_RULES))
    primary = [(name, f) for name, (_, own) in concluded.items() for f in own if f.contrast.primary]
    document.add(*_forest([(f"{name}: {_short(f)}", f) for name, f in primary], "All primary contrasts"))
    document.add(Callout("neutral", _LIMITS, "Mind"))
    for name, error in failed.items():
        document.add(Callout("warning", f"The cell `{name}` ({plan.cells[name].arm}) did not end well: {error}"))
    for claim in plan.claims:
        document.add(*_claim(plan, results, claim, *concluded[claim.name]))
    document.add(*_numbers(plan, results))
    return document


def _in_short(plan: Plan, results: Results, concluded: Mapping[str, tuple[str, list[Finding]]]) -> Table:
    rows = []
    for claim in plan.claims:
        verdict, findings = concluded[claim.name]
        ours = "; ".join(_ours(finding) for finding in findings if finding.contrast.primary and finding.ran)
        rows.append([
            f"{claim.paper}, {claim.source}", claim.title, _papers(claim) or "no figure",
            ours or _checked(plan, results, claim) or "-", f"**{verdict}**", _cost(plan, results, claim),
            f"`{_command(plan, claim)}`",
        ])  # fmt: skip
    columns = ["where", "claim", "the paper", "ours", "verdict", "cost", "command"]
    return Table(columns, rows, "Cost is of one core; cells that claims share are in each.", words=True)


def _command(plan: Plan, claim: Claim) -> str:
    if claim.command is not None:
        return claim.command
    rest = [word for word in plan.arguments if not word.startswith(("claim=", "out=", "jobs="))]
    return shlex.join(["srgym", "reproduce", f"claim={claim.name}", *rest])


def _cost(plan: Plan, results: Results, claim: Claim) -> str:
    told = [c for c in claim.contrasts if alike(plan, results.agreements, claim, c) is None]
    names = plan.cells_of(told) | set(plan.checks.get(claim.name, {}).values())
    spent = [results.seconds[name] for name in names if name in results.seconds]
    return duration(sum(spent)) if spent else "-"


def _papers(claim: Claim) -> str:
    """The paper's own figures, from the first to the last of the rows that are shown."""
    printed = claim.printed
    if printed is None:
        return ""
    table = next(t for t in published_tables(printed.dataset, [claim.paper]) if t.table == printed.table)
    first, last = printed.rows[0], printed.to or printed.rows[-1]
    parts = [f"{metric.upper()} {table.rows[first][metric]} → {table.rows[last][metric]}" for metric in printed.metrics]
    return f"{first} → {last}: {', '.join(parts)}"


def _checked(plan: Plan, results: Results, claim: Claim) -> str:
    found = results.agreements.get(claim.name) or {}
    return "; ".join(f"advantages of {_pair(plan, pair)} correlate by {value:.5f}" for pair, value in found.items())


def _pair(plan: Plan, pair: tuple[str, str]) -> str:
    return " and ".join(_called(plan, label) for label in pair)


def _ours(finding: Finding) -> str:
    return f"{_short(finding)} {_written(finding)}"


def _written(finding: Finding) -> str:
    """The interval: signed where it is a difference."""
    contrast = finding.contrast
    plainly = contrast.at == "cost" or contrast.over is None
    return interval_text(finding.interval) if plainly else signed(finding.interval)


def _short(finding: Finding) -> str:
    """A contrast in a few words."""
    return f"{finding.contrast.says} ({finding.contrast.metric})"


def _difference(plan: Plan, contrast: Contrast) -> str:
    if contrast.over is None:
        return f"{contrast.metric}, {_called(plan, contrast.of)}"
    sign = "/" if contrast.at == "cost" else "−"
    return f"{contrast.metric}, {_called(plan, contrast.of)} {sign} {_called(plan, contrast.over)}"


def _called(plan: Plan, arm: str) -> str:
    described: Arm | None = plan.described.get(arm)
    return (described.says if described is not None else None) or arm.replace("_", " ")


def _forest(named: Sequence[tuple[str, Finding]], title: str) -> list[Block]:
    """Contrasts in units of their margins, and the band inside of which a difference doesn't matter."""
    shown = {label: _in_margins(f) for label, f in named if np.isfinite(f.interval.value) and f.margin > 0}
    if not shown:
        return []
    reach = min(_PATHS, max(3.0, *(abs(bound) for i in shown.values() for bound in _bounds(i))))
    caption = (
        "In margins: the band is where a difference doesn't matter. What is clear of zero is filled; an arrowhead lies "
        "further out."
    )
    return [
        Figures([forest(shown, "difference / margin", title, caption, limits=(-reach, reach), margin=1.0, width=9)])
    ]


def _bounds(interval: Interval) -> list[float]:
    return [bound for bound in (interval.low, interval.high, interval.value) if np.isfinite(bound)]


def _in_margins(finding: Finding) -> Interval:
    interval, line = finding.interval, finding.contrast.line
    value, low, high = ((x - line) / finding.margin for x in (interval.value, interval.low, interval.high))
    return replace(interval, value=value, low=low, high=high)


# One claim


def _claim(plan: Plan, results: Results, claim: Claim, verdict: str, findings: Sequence[Finding]) -> list[Block]:
    kind: Literal["good", "bad", "neutral"] = "good" if verdict == "reproduced" else "neutral"
    kind = "bad" if "contradicted" in verdict and "reproduced" not in verdict else kind
    said = Callout(kind, f"**{verdict.capitalize()}.** {claim.note}", "Verdict")
    blocks: list[Block] = [Heading(f"{claim.paper}, {claim.source}: {claim.name}"), Text(claim.says), said]
    if claim.command is not None:
        blocks.append(Text(f"Its other part: `{claim.command}`."))
    blocks += _precheck(plan, results, claim)
    if findings:
        blocks.append(_contrasts(plan, findings))
        blocks += _forest([(_short(finding), finding) for finding in findings], f"Contrasts of {claim.name}")
    blocks += _printed(claim)
    blocks += _paths(plan, results, claim)
    blocks += _pictures(plan, results, claim)
    return blocks


def _precheck(plan: Plan, results: Results, claim: Claim) -> list[Block]:
    found = results.agreements.get(claim.name) or {}
    if not found:
        return []
    limit = plan.settings["precheck"]["limit"]
    rows = [[_pair(plan, pair), f"{value:.5f}", "no" if value > limit else "yes"] for pair, value in found.items()]
    caption = (
        f"Correlation of the advantages inside groups, mean over {plan.settings['precheck']['contexts']} training "
        f"contexts of {plan.settings['precheck']['samples']} samples each. Above {limit:g} nothing can be learnt from "
        "training both."
    )
    blocks: list[Block] = [
        Table(["rewards", "advantages correlate by", "can training tell them apart?"], rows, caption)
    ]
    if can_tell(plan, results, claim) is False:
        blocks.append(
            Callout("neutral", "Training on one or the other teaches an agent the same.", "Not testable here")
        )
    return blocks


def _contrasts(plan: Plan, findings: Sequence[Finding]) -> Table:
    rows = []
    for finding in findings:
        contrast, verdict = finding.contrast, finding.verdict
        said = verdict.conclusion + (f" ({verdict.uncorrected} before Holm)" if verdict.uncorrected else "")
        rows.append([
            ("" if contrast.primary else "beside: ") + contrast.says, _difference(plan, contrast),
            _written(finding) if finding.ran else "-", _expected(finding), _chance(verdict.p),
            said if finding.ran else "not run" if finding.alike is None else "not testable here",
            finding.why or ", ".join(_called(plan, arm) for arm in finding.missing),
        ])  # fmt: skip
    columns = ["part", "difference", "ours", "claimed", "p", "verdict", "besides"]
    caption = "p: of the nearest conclusion against the margin, Holm's of primary contrasts."
    return Table(columns, rows, caption, words=True)


def _chance(p: float) -> str:
    return "-" if p != p else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _expected(finding: Finding) -> str:
    contrast, margin = finding.contrast, f"{finding.margin:g}"
    if contrast.at == "cost" or contrast.over is None:
        up = contrast.expect == "up"
        return f"above {contrast.line + finding.margin:g}" if up else f"below {contrast.line - finding.margin:g}"
    return {"up": f"above +{margin}", "down": f"below −{margin}", "held": f"above −{margin}"}[contrast.expect]


def _printed(claim: Claim) -> list[Block]:
    printed = claim.printed
    if printed is None:
        return []
    table = next(t for t in published_tables(printed.dataset, [claim.paper]) if t.table == printed.table)
    rows = [[row, *(table.rows[row].get(metric, "-") for metric in printed.metrics)] for row in printed.rows]
    caption = (
        f"Published: {table.source}, on {printed.dataset}; copied, not recomputed, and of another protocol than ours."
    )
    return [Table(["method", *(metric.upper() for metric in printed.metrics)], rows, caption)]


def _paths(plan: Plan, results: Results, claim: Claim) -> list[Block]:
    """Fidelity and quality along the weight of each arm's LoRA."""
    arms = dict.fromkeys(arm for c in claim.contrasts if c.at == "distance" for arm in c.arms)
    metrics = [c.metric for c in claim.contrasts if c.metric not in ("psnr_y", "wobble")]
    other = next((m for m in metrics if present(results.doses, [m])), "compass")
    paths = {}
    for arm in arms:
        rows = results.doses[(results.doses["method"] == arm) & results.doses["metric"].isin(["psnr_y", other])]
        means = rows.pivot_table(index="dose", columns="metric", values="value", aggfunc="mean")
        if {"psnr_y", other} <= set(means.columns):
            paths[_called(plan, arm)] = (means["psnr_y"].tolist(), means[other].tolist())
    if not paths:
        return []
    caption = f"The learnt LoRA at weights {', '.join(f'{dose:g}' for dose in DOSES)}; 1 is the end of training."
    return [Figures([plane(paths, {}, "PSNR-Y (dB)", other, f"Paths of {claim.name}", caption)])]


def _pictures(plan: Plan, results: Results, claim: Claim) -> list[Block]:
    arms = dict.fromkeys(arm for contrast in claim.contrasts for arm in contrast.arms)
    places = {}
    for arm in arms:
        for name in list(plan.arms.get(arm, {}).values())[:1]:
            folder = plan.cells[name].cell.folder / "pictures"
            if name in results.seconds and (folder / "pictures.json").is_file():
                places[_called(plan, arm)] = folder
    if len(places) < 2:
        return []
    shown = make_panels(join_pictures(places)[:_SHOWN], "The first seed of each, at full size; LR enlarged.")
    return [shown]


def _numbers(plan: Plan, results: Results) -> list[Block]:
    if results.frame.empty:
        return []
    frame = results.frame.assign(method=results.frame["method"].map(lambda arm: _called(plan, arm)))
    metrics = [*plan.settings["metrics"], "pixel_spread", "reward_spread", "spread_over_jpeg", "noticed", "wobble"]
    blocks: list[Block] = [Heading("Numbers")]
    for group in (
        present(frame, list(plan.settings["metrics"])),
        present(frame, metrics[len(plan.settings["metrics"]) :]),
    ):
        methods = list(dict.fromkeys(frame[frame["metric"].isin(group)]["method"]))
        if methods:
            blocks.append(
                levels_table(frame, methods, group, caption="Means, with 95% intervals over seeds and photographs.")
            )
    return blocks
