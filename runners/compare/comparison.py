"""Comparing algorithms: run every cell of a plan that isn't done yet, and write the report."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from srgym.errors import Refusal
from srgym.files import locked, write_json
from srgym.rewards.serving.readiness import ensure_ready
from srgym.runners.compare.board import Board
from srgym.runners.compare.executor import (
    CELL,
    DONE,
    Cell,
    Executor,
    LocalExecutor,
    Outcome,
    SlurmExecutor,
    read_done,
    run_cells,
)
from srgym.runners.compare.plan import Plan, tuned_plan
from srgym.runners.measure.evaluation import read_evaluation
from srgym.runners.measure.metrics import check_metrics, make_metrics
from srgym.runners.report import write_compare_report
from srgym.runners.run.build import build_task

__all__ = ["compare", "look_ahead", "make_executor"]


def compare(plan: Plan, on_message: Callable[[str], None] = print) -> tuple[Path, list[Outcome]]:
    """Run what isn't done yet, and write the report.

    Returns:
        The path of the report, and the outcomes of all cells.

    Raises:
        ValueError: if a start, or all agents, fail, with the words of the first; if another process works there.
    """
    with locked(plan.folder):
        return _compare(plan, on_message)


def _compare(plan: Plan, on_message: Callable[[str], None]) -> tuple[Path, list[Outcome]]:
    cells = [*plan.starts, *plan.trial_cells, *plan.cells]
    todo = sum(not _ended(plan, cell) for cell in cells)
    on_message(f"{len(cells)} runs, {len(cells) - todo} of them done already, in {plan.folder}")
    executor = make_executor(plan.settings, plan.folder, plan.fixed)
    if todo:
        look_ahead(plan)
    write_json(plan.folder / "compare.json", plan.as_json())
    board = Board(len(cells), executor.slots)
    try:
        starts = run_cells(plan.starts, executor, board.on_outcome, board.on_poll)
        for start in starts:
            if start.error is not None:
                raise Refusal(f"the starting policy: {start.error}")
        plan = _search(plan, executor, board, on_message)
        outcomes = run_cells(plan.cells, executor, board.on_outcome, board.on_poll)
    finally:
        board.close()
    agents = [outcome for outcome in outcomes if outcome.cell.role == "agent"]
    if all(outcome.error is not None for outcome in agents):
        raise Refusal(f"no run of the comparison ended well; {agents[0].cell.name}: {agents[0].error}")
    failed = {outcome.cell.name: outcome.error for outcome in outcomes if outcome.error is not None}
    write_json(plan.folder / "compare.json", {**plan.as_json(), "failed": failed})
    return write_compare_report(plan.folder), [*starts, *outcomes]


def _ended(plan: Plan, cell: Cell) -> bool:
    """Whether a run is done; what it was done with is looked at, too, but for what a search has yet to find."""
    if plan.trials and cell in plan.cells:
        return (cell.folder / DONE).is_file()
    return read_done(cell) is not None


def look_ahead(plan: Plan) -> None:
    """Refuse what the last evaluation would stumble over, before hours of training: metrics, and contexts for them."""
    metrics = make_metrics(plan.metrics)
    for metric in metrics:
        ensure_ready(metric.reward)
    envs = [{**entry.stage.sections["env"], **plan.settings["test"]} for entry in plan.entries]
    for env in [env for i, env in enumerate(envs) if env not in envs[:i]]:
        task = build_task(env)
        check_metrics(metrics, task.provides, task.source.name)


def _search(plan: Plan, executor: Executor, board: Board, on_message: Callable[[str], None]) -> Plan:
    """The plan with each entry's best settings of the search, by the mean of its reward on validation photographs."""
    winners: dict[str, list[str]] = {}
    tried: dict[str, dict[str, float]] = {}
    run_cells(plan.trial_cells, executor, board.on_outcome, board.on_poll)
    for entry in plan.entries if plan.trials else ():
        points = [list(cell.request["point"]) for cell in plan.trials[entry.label]]
        scores = [_validation_score(cell, entry.reward) for cell in plan.trials[entry.label]]
        if not any(map(math.isfinite, scores)):
            raise Refusal(f"no setting that was tried for '{entry.label}' ended well: see {plan.folder / 'search'}")
        best = max(range(len(points)), key=lambda i: scores[i] if math.isfinite(scores[i]) else -math.inf)
        winners[entry.label] = points[best]
        tried[entry.label] = {" ".join(point): score for point, score in zip(points, scores, strict=True)}
        on_message(f"{entry.label}: {' '.join(points[best])} is the best of {len(points)} on validation")
    if not winners:
        return plan
    write_json(plan.folder / "search.json", {"winners": winners, "tried": tried})
    return tuned_plan(plan, winners)


def _validation_score(cell: Cell, reward: str) -> float:
    """The mean of the reward over a trial's validation contexts; NaN for one that failed."""
    if read_done(cell) is None:
        return math.nan
    frame, _ = read_evaluation(cell.folder)
    return float(frame.loc[(frame["metric"] == reward) & (frame["method"] == "policy"), "value"].mean())


def make_executor(settings: Mapping[str, Any], folder: Path, fixed: Sequence[str] = (), module: str = CELL) -> Executor:
    """What cells run on: `executor`, `jobs`, `devices`, `gpus` and `slurm` of a command's settings.

    Args:
        folder: of the comparison. fixed: overrides of all runs. module: what a cell's process is.
    """
    jobs, gpus = settings["jobs"], settings["gpus"]
    if settings["executor"] == "slurm":
        return SlurmExecutor(folder / "slurm", settings["slurm"], gpus=gpus, jobs=jobs, module=module)
    devices = _devices(settings["devices"], fixed)
    slots = jobs or (max(1, len(devices) // gpus) if devices else len(os.sched_getaffinity(0)))
    return LocalExecutor(slots, devices, gpus, module=module)


def _devices(asked: Any, fixed: Sequence[str]) -> list[str]:
    """The GPUs that cells are dealt to: those asked for, else all that are visible; none where runs are on the CPU."""
    if asked is not None:
        return [str(device) for device in (asked if isinstance(asked, list) else [asked])]
    device = next((o.partition("=")[2] for o in fixed if o.startswith("runner.device=")), "auto")
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
