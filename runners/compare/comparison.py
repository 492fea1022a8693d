"""Comparing algorithms: run every cell of a plan that isn't done yet, and write the report."""

import os
from pathlib import Path
from typing import Any

from srgym.files import write_json
from srgym.runners.compare.executor import Outcome, read_done, run_cells
from srgym.runners.compare.plan import Plan

__all__ = ["compare"]


def compare(plan: Plan, said: Any = print) -> tuple[Path, list[Outcome]]:
    """Run what isn't done yet, and write the report.

    Returns:
        The path of the report, and the outcomes of all cells.

    Raises:
        ValueError: if the start, or all agents, fail; with the words of the first.
    """
    cells = [plan.start, *plan.cells]
    todo = sum(read_done(cell) is None for cell in cells)
    said(f"{len(cells)} runs, {len(cells) - todo} of them done already, in {plan.folder}")
    write_json(plan.folder / "compare.json", plan.as_json())
    (first,) = run_cells([plan.start], 1)
    if first.error is not None:
        raise ValueError(f"the starting policy: {first.error}")
    outcomes = run_cells(plan.cells, _jobs(plan), lambda outcome, i, n: said(_line(outcome, i, n)))
    agents = [outcome for outcome in outcomes if outcome.cell.role == "agent"]
    if all(outcome.error is not None for outcome in agents):
        raise ValueError(f"no run of the comparison ended well; {agents[0].cell.name}: {agents[0].error}")
    failed = {outcome.cell.name: outcome.error for outcome in outcomes if outcome.error is not None}
    write_json(plan.folder / "compare.json", {**plan.as_json(), "failed": failed})
    from srgym.runners.report import write_compare_report

    return write_compare_report(plan.folder), [first, *outcomes]


def _line(outcome: Outcome, number: int, count: int) -> str:
    how = (
        "failed: " + outcome.error
        if outcome.error
        else f"{outcome.seconds:.0f} s"
        if outcome.seconds
        else "done before"
    )
    return f"[{number}/{count}] {outcome.cell.label}, seed {outcome.cell.seed}: {how}"


def _jobs(plan: Plan) -> int:
    """Runs at a time: as many as there are cores, one where they share a GPU."""
    if plan.settings["jobs"] is not None:
        return int(plan.settings["jobs"])
    device = next((o.partition("=")[2] for o in plan.fixed if o.startswith("runner.device=")), "auto")
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
