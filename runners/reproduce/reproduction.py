"""Reproducing: say what it costs, ask what can be told at all, run what isn't done yet, and write the page."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from srgym.files import locked, write_json
from srgym.rewards import make
from srgym.rewards.serving.readiness import ensure_ready
from srgym.runners.compare.board import Board
from srgym.runners.compare.comparison import make_executor
from srgym.runners.compare.executor import Cell, Executor, Outcome, read_done, run_cells
from srgym.runners.loop.progress import duration
from srgym.runners.measure.metrics import make_metrics
from srgym.runners.reproduce.estimate import make_prices, seconds_of
from srgym.runners.reproduce.page import write_page
from srgym.runners.reproduce.plan import Plan
from srgym.runners.reproduce.results import read_agreements, wanted
from srgym.runners.run.build import check_parts
from srgym.runners.run.config import StageConfig
from srgym.runners.run.overrides import words
from srgym.sealed import read_object

__all__ = ["estimate_text", "failures", "reproduce"]

_MODULE, _RECORD = "srgym.runners.reproduce.cell", "reproduce.json"


def reproduce(plan: Plan, on_message: Callable[[str], None] = print) -> tuple[Path, list[Outcome]]:
    """Run what isn't done yet, and write the page.

    Returns:
        The page's path, and the outcomes of all cells.

    Raises:
        ValueError: if a metric can't be had, or another process works there.
    """
    with locked(plan.folder):
        cells = [planned.cell for planned in plan.cells.values()]
        todo = [cell for cell in cells if read_done(cell) is None]
        on_message(f"{len(cells)} cells, {len(cells) - len(todo)} of them done already, in {plan.folder}")
        executor = make_executor(plan.settings, plan.folder, plan.fixed, _MODULE)
        if todo:
            _look_ahead(plan, todo)
            on_message(estimate_text(plan, executor.slots))
        record = plan.folder / _RECORD
        write_json(record, plan.as_json())
        outcomes = _run([cell for cell in cells if cell.name in plan.checking], executor)
        kept = wanted(plan, read_agreements(plan))
        if len(kept) < len(cells):
            on_message(f"{len(cells) - len(kept)} cells are left out: training can't tell their rewards apart")
        outcomes += _run([cell for cell in cells if cell.name in kept - plan.checking], executor)
        failed = {outcome.cell.name: outcome.error for outcome in outcomes if outcome.error is not None}
        write_json(record, {**plan.as_json(), "failed": failed})
        return write_page(plan, failed), outcomes


def _run(cells: list[Cell], executor: Executor) -> list[Outcome]:
    board = Board(len(cells), executor.slots)
    try:
        return run_cells(cells, executor, board.on_outcome, board.on_poll)
    finally:
        board.close()


def failures(plan: Plan) -> dict[str, str]:
    """The cells that didn't end well when this was last run, and still haven't, with their last words."""
    record = plan.folder / _RECORD
    failed = read_object(record, {}).get("failed") or {} if record.is_file() else {}
    return {name: failed[name] for name in plan.cells if name in failed and read_done(plan.cells[name].cell) is None}


def _look_ahead(plan: Plan, todo: Sequence[Cell]) -> None:
    """Refuse what cells would stumble over, before hours of training: metrics, rewards of probes, parts of runs."""
    for metric in make_metrics(plan.settings["metrics"]):
        ensure_ready(metric.reward)
    for probe in [probe for cell in todo if (probe := cell.request.get("probe")) is not None]:
        for spec in [probe[key] for key in ("reward", "of", "over") if key in probe]:
            if not any(word.startswith(f"{plan.folder}/cells/") for word in words(spec)):  # which aren't there yet
                ensure_ready(make(spec))
    runs = [plan.cells[cell.name].config for cell in todo if cell.request.get("probe") is None]
    stages = {_key(stage): (stage, config) for config in runs for stage in config.stages if stage.kind == "train"}
    for stage, config in stages.values():
        try:
            check_parts(stage.sections, config.tree["heldout"])
        except FileNotFoundError as error:
            if not any(name in str(error) for name in plan.cells):  # which isn't there yet
                raise


def _key(stage: StageConfig) -> str:
    """Stages that differ in their seeds alone have one."""
    runner = {key: value for key, value in stage.sections["runner"].items() if key != "seed"}
    return json.dumps({**stage.sections, "runner": runner}, sort_keys=True, default=str)


def estimate_text(plan: Plan, slots: int = 2) -> str:
    """What is still to be run, by claim and together, timed on this machine.

    A cell that several claims share is counted with the first of them.
    """
    todo = {name: planned for name, planned in plan.cells.items() if read_done(planned.cell) is None}
    if not todo:
        return "nothing is left to run"
    prices = make_prices(list(todo.values()), plan.settings["metrics"], plan.settings["steps"])
    seconds = {name: seconds_of(planned, prices) for name, planned in todo.items()}
    lines = [f"  {claim}: {_said(seconds, names)}" for claim, names in plan.by_claim().items()]
    total = sum(value or 0.0 for value in seconds.values())
    unknown = sum(value is None for value in seconds.values())
    besides = f", and {unknown} cells whose policy doesn't say" if unknown else ""
    return "\n".join([f"about {duration(total / slots)} on {slots} idle cores for {len(todo)} cells{besides}", *lines])


def _said(seconds: Mapping[str, float | None], names: list[str]) -> str:
    own = [seconds[name] for name in names if name in seconds]
    return f"{len(own)} cells, {duration(sum(value or 0.0 for value in own))} of one core"
