"""The report of the main job: every stage on test photographs, with intervals, controls, curves, pictures and costs."""

import resource
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srgym import policies
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.registry import named_by
from srgym.rewards.kin import independent, independent_judges
from srgym.runners.measure.evaluation import (
    Evaluation,
    draw,
    evaluation_record,
    mapping_reward,
    save_evaluation,
    spread_indices,
)  # fmt: skip
from srgym.runners.measure.methods import Method, Samples, baselines
from srgym.runners.measure.metrics import check_metrics, make_metrics, usual_metrics
from srgym.runners.measure.statistics import Band
from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Panels, Text
from srgym.runners.report.evaluation_report import INTERVALS, record_tables
from srgym.runners.report.numbers import plain
from srgym.runners.report.panels import make_panels
from srgym.runners.report.plots import curves, plane
from srgym.runners.report.run_folder import Roles, RunFolder, StageRecord, read_log, read_run
from srgym.runners.report.summary import level, metric_names, present
from srgym.runners.report.tables import cost_table, difference_table, levels_table, metric_title
from srgym.runners.report.verdicts import against_baselines, alerts
from srgym.runners.report.verdicts import claim as verdict
from srgym.runners.report.writing import write
from srgym.runners.report.written import documents, ways, writers
from srgym.runners.run.build import build_policy, build_task, larger_crops

__all__ = ["check_report", "oars_document", "stage_methods", "write_oars_report", "write_report"]

KINDS = {"oars": "OARS", "realsr_r1": "RealSR-R1"}
"""What a report is called; they differ in nothing else, but that a policy that writes has its documents shown."""


def write_report(run_dir: str | Path, section: Mapping[str, Any]) -> Path:
    """Write the report that a run's `report` section asks for (`kind` and its options), and return its path.

    Raises:
        ValueError: for an unknown kind or option.
    """
    return write_oars_report(run_dir, **_options(section))


def check_report(section: Mapping[str, Any], env: Mapping[str, Any]) -> None:
    """Refuse what a report can't be made of, before anything is trained: its options, test contexts and metrics.

    Args:
        env: of the run's last stage.

    Raises:
        ValueError, FileNotFoundError: naming it. Incompatible: for a metric that the contexts can't feed.
    """
    options = _options(section)
    task = build_task({**env, **_test_changes(env, options.get("env"))})
    check_metrics(make_metrics(_held_out(options.get("metrics"))), task.provides, f"the source '{task.source.name}'")
    spread_indices(len(task), options.get("limit"))


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(section)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise Refusal(f"report.kind is {' or '.join(KINDS)}, got '{kind}'")
    known = sorted(set(write_oars_report.__annotations__) - {"run_dir", "return", "title"})
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise Refusal(f"report.{option} is no option of the {kind} report: {hint}expected one of {known}")
    return {**options, "title": KINDS[kind]}


def _test_changes(env: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """What changes in an env section for the test: the split, where its source has any."""
    if changes is not None:
        return dict(changes)
    return {"split": "test"} if "split" in env else {}


def _held_out(metrics: Sequence[Any] | None) -> dict[str, Any]:
    return {_label(metric): metric for metric in (usual_metrics() if metrics is None else metrics)}


def write_oars_report(
    run_dir: str | Path,
    *,
    env: Mapping[str, Any] | None = None,
    metrics: Sequence[Any] | None = None,
    roles: Mapping[str, str | None] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    pictures: int = 6,
    picture_size: int | None = 256,
    claim: str | None = None,
    title: str = "OARS",
) -> Path:
    """Evaluate every stage of a finished run on test contexts and write `report.html` and `report.md` into its folder.

    Args:
        run_dir: the run's folder, with `run.json` and `config.json`.
        env: what changes in the run's env section for the test; by default the split "test", and of a source
            without splits nothing, which the report then warns of.
        metrics: metrics never trained on, besides the rewards of the run; by default `usual_metrics`.
        roles: `sft`, `final` and `control` by stage name, where they can't be told from the stages.
        steps: of the sampler; by default the last stage's `runner.eval_steps`.
        seeds: of the samples' noise.
        limit: contexts to evaluate on, spread evenly; all by default.
        pictures: how many contexts are shown. picture_size: side of their HR in pixels, where the source cuts crops.
        claim: the component of the last reward that must rise, the others of it being among what mustn't fall; by
            default its total.
        title: what the report is called.

    Returns:
        The path of `report.html`. The numbers lie beside it in `evaluation/`.

    Raises:
        FileNotFoundError: if the folder holds no finished run.
    """
    started, run = time.monotonic(), read_run(Path(run_dir))
    parts, last = run.roles(roles), run.stages[-1].settings
    changes = _test_changes(last["env"], env)
    section = {**last["env"], **changes}
    steps = steps or int(last.get("runner", {}).get("eval_steps", 6))
    with named_by(run.folder / "config.json"):
        stages: dict[str, Policy] = {"base": build_policy(run.stages[0].settings["policy"], section)}
        task = build_task(section)
        evaluation = Evaluation(task, {**run.rewards(), **_held_out(metrics)}, seeds=seeds, limit=limit)
    stages |= {stage.name: policies.load(stage.folder / "policy") for stage in run.stages}
    start = parts.sft or "base"
    methods = stage_methods(stages, parts, steps)
    frame = evaluation.measure(methods)
    record = evaluation_record(
        methods, evaluation.metrics, env=section, seeds=list(seeds), contexts=len(task), limit=limit, seen=not changes
    )
    save_evaluation(frame, record, run.folder / "evaluation")
    written = writers({name: stages[name] for name in (start, parts.final, parts.control) if name is not None})
    further: list[Block] = []
    if written:
        rewards = Evaluation(task, run.rewards(), seeds=seeds, limit=limit)
        ways_frame, further = ways(rewards, written, start, parts.final)
        save_evaluation(ways_frame, record, run.folder / "evaluation", "ways")
    fixed = any(policy.window is not None for policy in stages.values())
    task = task if fixed else larger_crops(task, section, picture_size)
    shown = {name: methods[name] for name in ("base", parts.sft, parts.final) if name in methods}
    indices = spread_indices(len(task), min(pictures, len(task))) if pictures else []
    if written:
        further += documents(task, {name: written[name] for name in (start, parts.final)}, indices)
    drawn = draw(task, shown, indices, reward=mapping_reward(evaluation.metrics))
    document = oars_document(
        run, parts, frame, record, make_panels(drawn), time.monotonic() - started, further, claim, title
    )
    return write(document, run.folder)


def _label(spec: Any) -> str:
    return str(spec.get("label", spec.get("name"))) if isinstance(spec, Mapping) else str(spec)


def stage_methods(stages: Mapping[str, Policy], roles: Roles, steps: int) -> dict[str, Method]:
    """What the report compares: what costs no reinforcement learning (of the SFT policy), then every stage."""
    methods = baselines(stages[roles.sft or "base"], steps)
    return {**methods, **{name: Samples(policy, steps) for name, policy in stages.items()}}


def oars_document(
    run: RunFolder,
    roles: Roles,
    frame: pd.DataFrame,
    record: Mapping[str, Any],
    panels: Panels | None = None,
    seconds: float | None = None,
    further: Sequence[Block] = (),
    claim: str | None = None,
    title: str = "OARS",
) -> Document:
    """The report as a document, from what was measured.

    Args:
        frame: of `srgym.runners.measure.evaluation.evaluate`, with a method named after each stage, and "base".
        record: of `evaluation_record`.
        panels: pictures, if any.
        seconds: what the evaluation took.
        further: blocks before the pictures. claim, title: see `write_oars_report`.
    """
    start, reward = roles.sft or "base", next(iter(run.rewards()), None)
    stages = [name for name in ("base", *(stage.name for stage in run.stages)) if (frame["method"] == name).any()]
    rest = [name for name in dict.fromkeys(frame["method"]) if name not in stages]
    used = {*run.rewards(), *run.trained_on()}
    trained = _of(frame, used)
    measured = {label: metric["reward"] for label, metric in record["metrics"].items() if label not in used}
    witnesses = [label for label, metric in measured.items() if independent(metric, run.rewards().values())]
    held_out = [m for m in _of(frame, witnesses) if m not in trained]
    kin = [m for m in metric_names(frame) if m not in trained and m not in held_out]
    crops = len(frame[["photograph", "crop"]].drop_duplicates())
    document = Document(
        f"{title}: {run.tree.get('name', run.folder.name)}",
        f"{crops} test crops of {frame['photograph'].nunique()} photographs, none of which was trained on. "
        f"Seed {run.seed}; finished {run.record.get('made_with', {}).get('date', 'at an unknown time')}.",
    )
    if reward is not None:
        witnessing = {m: measured[m] for m in held_out if m in measured}
        document.add(*_verdicts(run, roles, frame, reward, start, witnessing, claim))
    if record.get("seen"):
        document.add(Callout("warning", "These are the contexts that were trained on: nothing here speaks of others."))
    pairs = _pairs(roles, start)
    document.add(
        Heading("What changed"),
        Text(INTERVALS),
        difference_table(frame, pairs, trained, record, "What was trained on, and its parts. Bold: clear of zero."),
        *([difference_table(frame, pairs, kin, record, "Kin to what was trained on: no witnesses.")] if kin else []),
        difference_table(frame, pairs, held_out, record, "Independent of what was trained on. Bold: clear of zero."),
        Heading("Every stage, and what costs no reinforcement learning"),
        levels_table(frame, [*rest, *stages], _columns(frame, record), record, strong=[roles.final]),
        Text(f"Bicubic needs no policy; the mean prediction and the samples of fewer steps are those of **{start}**."),
        *_where_they_lie(frame, [*rest, *stages], reward, record),
    )
    document.add(*_learning(run), *further)
    if panels is not None and panels.rows:
        document.add(Heading("Pictures"), panels)
    document.add(*_costs(run, seconds), Heading("What was measured"), *record_tables(record))
    return document


def _of(frame: pd.DataFrame, labels: Collection[str]) -> list[str]:
    """The metrics of the frame under these labels, and their components."""
    return [m for m in metric_names(frame) if any(m == label or m.startswith(f"{label}.") for label in labels)]


def _verdicts(
    run: RunFolder,
    roles: Roles,
    frame: pd.DataFrame,
    reward: str,
    start: str,
    witnesses: Mapping[str, str],
    component: str | None,
) -> list[Block]:
    fidelity = present(frame, [f"{label}.fidelity" for label in run.rewards()])
    judges = independent_judges(witnesses, run.rewards().values())
    if component is not None:
        parts = [m for m in _of(frame, [reward]) if m.count(".") == 1 and "/" not in m]
        reward = f"{reward}.{component}"
        fidelity += [m for m in parts if m != reward]
    _, callouts = verdict(frame, reward, roles.final, start, roles.control, fidelity, judges)
    stages = {"base", *(stage.name for stage in run.stages)}
    baselines = [name for name in dict.fromkeys(frame["method"]) if name not in stages]
    beside = against_baselines(frame, roles.final, baselines, reward)
    if beside:
        callouts.append(Callout("neutral", f"**{reward}**, {roles.final}. {beside}", "Without RL"))
    names = [stage.name for stage in run.stages if stage.name not in (start, *run.under_control())]
    return [Heading("The claim"), *callouts, *alerts(frame, names, start, reward, list(witnesses))]


def _pairs(roles: Roles, start: str) -> list[tuple[str, str]]:
    pairs = [(roles.final, start)]
    if roles.control is not None:
        pairs += [(roles.final, roles.control), (roles.control, start)]
    return pairs if start == "base" else [*pairs, (start, "base")]


def _columns(frame: pd.DataFrame, record: Mapping[str, Any]) -> list[str]:
    """The table of levels: rewards and metrics, of the parts only fidelity, quality and generation."""
    kept = ("fidelity", "q_sr", "texture", "generation")  # all methods have it, words or none
    return [m for m in metric_names(frame) if m in record["metrics"] or m.rpartition(".")[2] in kept]


def _where_they_lie(
    frame: pd.DataFrame, methods: Sequence[str], reward: str | None, record: Mapping[str, Any]
) -> list[Block]:
    """The perception-fidelity plane: fidelity against ground truth where there is some, else the scorer's."""
    fidelity = present(frame, ["structure_texture", "psnr_y", f"{reward}.fidelity"])
    quality = present(frame, [f"{reward}.q_sr", "structure_texture.texture"])
    if not fidelity or not quality:
        return []
    points = {name: (level(frame, name, fidelity[0]).value, level(frame, name, quality[0]).value) for name in methods}
    figure = plane(
        {}, points, metric_title(fidelity[0], record), metric_title(quality[0], record), "Perception against fidelity",
        "Up is perceptually better, right is closer to the ground truth.",
    )  # fmt: skip
    return [Figures([figure])]


def _learning(run: RunFolder) -> list[Block]:
    blocks: list[Block] = []
    for stage in run.stages:
        figures = _stage_curves(stage)
        if figures:
            blocks += [Heading(stage.name, 3), Figures(figures)]
    return [Heading("Learning curves"), *blocks] if blocks else []


def _stage_curves(stage: StageRecord) -> list[Figure]:
    log = read_log(stage.folder)
    wanted = {
        "training reward": {"collected": "reward/mean", "held out": "eval/reward"},
        "fidelity": {"collected": "reward/fidelity", "held out": "eval/fidelity"},
        "quality of SR": {"collected": "reward/q_sr", "held out": "eval/q_sr"},
    }
    figures = []
    for title, columns in wanted.items():
        series = {name: _logged(log, column) for name, column in columns.items() if column in log.columns}
        series = {name: band for name, band in series.items() if len(band.x) > 1}
        if "cost/images" in log.columns and "reward/mean" in log.columns and series:
            figures.append(curves(series, "images scored", title, f"{stage.name}, {title}"))
    return figures


def _logged(log: pd.DataFrame, column: str) -> Band:
    rows = log[["cost/images", column]].dropna() if "cost/images" in log.columns else log[[]]
    values = rows.to_numpy(dtype=np.float64).reshape(len(rows), -1)
    nothing = np.full(len(rows), np.nan)
    if len(rows) == 0:
        return Band(nothing, nothing, nothing, nothing, 1)
    return Band(values[:, 0], values[:, 1], nothing, nothing, 1)


def _costs(run: RunFolder, seconds: float | None) -> list[Block]:
    # On Linux the peak is in KiB. It is this process's, which is the one that trained if the report ends its run.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = f"Peak memory of the process that wrote this report: {plain(peak, 2)} GiB."
    if seconds is not None:
        text += f" Evaluation and pictures took {plain(seconds, 0)} s."
    made = ", ".join(f"{name} {value}" for name, value in run.record.get("made_with", {}).items())
    command = shlex.join(run.record.get("command", []))
    blocks: list[Block] = [Heading("What it cost"), cost_table({s.name: s.cost for s in run.stages}), Text(text)]
    if command:
        blocks.append(Text(f"Command: `{command}`." + (f" {made}." if made else "")))
    return blocks
