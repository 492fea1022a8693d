"""The cells of a comparison: what each is asked, what it leaves behind, and running them in processes of their own.

The folder of a cell:

    cell.json          what it is asked
    run/               a run as `srgym train` makes it; the starting policy has none unless it is trained first
    evaluations.csv    one row for each evaluation during the run, metric and held-out image
    results.*          the final policy on the test contexts (see `save_evaluation`)
    pictures/          its images of the contexts that the report shows, and pictures.json
    log.txt            what it printed
    done.json          written last: a cell that has it isn't run again
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srgym.files import write_json

__all__ = ["Cell", "Outcome", "read_done", "run_cells"]

COMMAND = (sys.executable, "-m", "srgym.runners.compare.cell")
_POLL = 0.2  # seconds
_PATIENCE = 120.0  # seconds that a stopped cell has to save itself


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        folder: where it lives; its name is the cell's.
        label: what is compared; the seeds of one label are its repetitions.
        role: "start", "agent" or "control".
        request: what the process is asked, as JSON values (see `srgym.runners.compare.cell`).
    """

    folder: Path
    label: str
    role: str
    seed: int
    request: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `error` is None for one that is done, else its last words."""

    cell: Cell
    error: str | None
    seconds: float


def read_done(cell: Cell) -> dict[str, Any] | None:
    """The record of a finished cell, or None.

    Raises:
        ValueError: if it was finished on another request.
    """
    path = cell.folder / "done.json"
    if not path.is_file():
        return None
    done: dict[str, Any] = json.loads(path.read_text())
    asked = json.loads(json.dumps(cell.request, default=str))
    for key in sorted({*asked, *done["request"]}):
        before, now = done["request"].get(key), asked.get(key)
        if before != now:
            raise ValueError(
                f"{cell.folder} was run with {key}={before}, and now it is {now}: compare with the same settings, or "
                "choose another folder with out="
            )
    return done


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    said: Callable[[Outcome, int, int], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> list[Outcome]:
    """Run cells, `jobs` at a time, each in a process of one thread; finished ones aren't run again.

    Args:
        said: is called as each cell ends, with how many have and how many there are.
        command: what a cell's process runs; its folder is put behind.

    Returns:
        The outcomes in the cells' order. A cell that fails doesn't stop the others.

    Raises:
        ValueError: if a finished cell was asked something else.
        KeyboardInterrupt: when stopped; the cells have saved what they had.
    """
    waiting = {cell.name for cell in cells if read_done(cell) is None}
    stop, lock, ended = threading.Event(), threading.Lock(), [0]

    def work(cell: Cell) -> Outcome:
        outcome = _run(cell, stop, command) if cell.name in waiting else Outcome(cell, None, 0.0)
        with lock:
            ended[0] += 1
            if said is not None and not stop.is_set():
                said(outcome, ended[0], len(cells))
        return outcome

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(work, cell) for cell in cells]
        try:
            outcomes = [future.result() for future in futures]
        except KeyboardInterrupt:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return outcomes


def _run(cell: Cell, stop: threading.Event, command: Sequence[str]) -> Outcome:
    started = time.monotonic()
    if stop.is_set():
        return Outcome(cell, "stopped before it began", 0.0)
    write_json(cell.folder / "cell.json", cell.request)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (cell.folder / "log.txt").open("a") as log:
        # A session of its own: Ctrl-C reaches the parent alone, which then asks each cell once to save and end.
        process = subprocess.Popen(
            [*command, str(cell.folder)], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        while process.poll() is None:
            if stop.wait(_POLL):
                _end(process)
    error = None if process.returncode == 0 else _last_words(cell.folder / "log.txt", process.returncode)
    return Outcome(cell, error, time.monotonic() - started)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {code} without a word"
