"""Where the cells of a comparison run: processes of this machine, a GPU each where there are some, or SLURM jobs.

What a cell's folder holds:

    cell.json          what was asked
    run/               a run as `srgym train` makes it; the starting policy has none unless it is trained first
    evaluations.csv    one row for each evaluation during the run, metric and held-out image
    results.*          the final policy on the test contexts (see `save_evaluation`)
    pictures/          its images of the contexts that the report shows, and pictures.json
    progress.json      the share of its training that is done
    log.txt            what it printed
    done.json          written last: a cell that has it isn't run again
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.sealed import read_object

__all__ = [
    "CELL",
    "DONE",
    "Cell",
    "Executor",
    "Job",
    "LocalExecutor",
    "Outcome",
    "SlurmExecutor",
    "end_with_parent",
    "read_done",
    "run_cells",
]

CELL = "srgym.runners.compare.cell"
DONE = "done.json"  # what a cell writes last
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
        needs: names of cells whose folders it reads.
    """

    folder: Path
    label: str
    role: str
    seed: int
    request: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


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
    path = cell.folder / DONE
    if not path.is_file():
        return None
    done = read_object(path, {"request": dict})
    asked = json.loads(json.dumps(cell.request, default=str))
    for key in sorted({*asked, *done["request"]}):
        before, now = done["request"].get(key), asked.get(key)
        if before != now:
            raise Refusal(
                f"{cell.folder} was run with {key}={before}, and now it is {now}: compare with the same settings, or "
                "choose another folder with out="
            )
    return done


class Job(Protocol):
    """A cell that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end; returns at once."""

    def kill(self) -> None:
        """End it."""


class Executor(Protocol):
    """Starts cells.

    Attributes:
        slots: how many may run at a time.
    """

    @property
    def slots(self) -> int: ...
    def start(self, cells: Sequence[Cell]) -> list[Job]:
        """Start cells, at most as many as slots are free; returns without waiting."""


def run_cells(
    cells: Sequence[Cell],
    executor: Executor,
    on_outcome: Callable[[Outcome, int, int], None] | None = None,
    on_poll: Callable[[Sequence[Cell], int], None] | None = None,
) -> list[Outcome]:
    """Run the cells that aren't done yet, in their order as far as `needs` allow. One that fails stops those alone that
    need it.

    Args:
        on_outcome: is called as each cell ends, with how many have and how many there are.
        on_poll: is called several times a second with the cells that run and the number of those that wait.

    Returns:
        The outcomes in the cells' order.

    Raises:
        ValueError: if a finished cell was asked something else.
        KeyboardInterrupt: when stopped; the cells have saved what they had.
    """
    outcomes: dict[str, Outcome] = {}
    running: dict[str, tuple[Cell, Job, float]] = {}

    def end(outcome: Outcome) -> None:
        outcomes[outcome.cell.name] = outcome
        if on_outcome is not None:
            on_outcome(outcome, len(outcomes), len(cells))

    finished = {cell.name for cell in cells if read_done(cell) is not None}
    waiting = deque(cell for cell in cells if cell.name not in finished)
    for cell in cells:
        if cell.name in finished:
            end(Outcome(cell, None, 0.0))
    try:
        while waiting or running:
            free = max(0, executor.slots - len(running))
            for cell, missing in _bereft(waiting, outcomes):
                waiting.remove(cell)
                end(Outcome(cell, f"needs {missing}, which failed", 0.0))
            unmet = {cell.name for cell in waiting} | set(running)
            begun = [cell for cell in waiting if unmet.isdisjoint(cell.needs)][:free]
            for cell in begun:
                waiting.remove(cell)
            for cell in begun:
                write_json(cell.folder / "cell.json", cell.request)
            for cell, job in zip(begun, executor.start(begun) if begun else [], strict=True):
                running[cell.name] = (cell, job, time.monotonic())
            for cell, job, started in list(running.values()):
                code = job.poll()
                if code is not None:
                    del running[cell.name]
                    error = None if code == 0 else _last_words(cell.log, code)
                    end(Outcome(cell, error, time.monotonic() - started))
            if on_poll is not None:
                on_poll([cell for cell, _, _ in running.values()], len(waiting))
            if running:
                time.sleep(_POLL)
    except KeyboardInterrupt:
        _stop([job for _, job, _ in running.values()])
        raise
    return [outcomes[cell.name] for cell in cells]


def _bereft(waiting: Iterable[Cell], outcomes: Mapping[str, Outcome]) -> list[tuple[Cell, str]]:
    """The cells that wait for one that failed, and its name."""
    failed = {name for name, outcome in outcomes.items() if outcome.error is not None}
    return [(cell, missing[0]) for cell in waiting if (missing := [name for name in cell.needs if name in failed])]


def _stop(jobs: Sequence[Job]) -> None:
    """Let jobs save and end; those that take too long are killed."""
    for job in jobs:
        job.stop()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and any(job.poll() is None for job in jobs):
        time.sleep(_POLL)
    for job in jobs:
        if job.poll() is None:
            job.kill()


def _last_words(log: Path, code: int) -> str:
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {code} without a word"


def _command(gpus: int, module: str) -> tuple[str, ...]:
    """What runs a cell, its folder put behind: through torchrun where it has several GPUs."""
    if gpus < 2:
        return (sys.executable, "-m", module)
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m", module)


def _spawn(command: Sequence[str], cell: Cell, **environment: str) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C reaches the parent alone, which then asks each cell once to save and end. The pipe
    # is never written to: the cell sees it close when its parent is gone, however that ended.
    with cell.log.open("a") as log:
        return subprocess.Popen(
            [*command, str(cell.folder)], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SRGYM_ENDS_WITH_STDIN": "1",
                 "PYTHONSAFEPATH": "1",
                 **environment}, start_new_session=True,
        )  # fmt: skip


class _Process:
    """A cell on this machine; `freed` is called when it has ended."""

    def __init__(self, process: "subprocess.Popen[bytes]", freed: Callable[[], None]) -> None:
        self._process, self._freed = process, freed

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._freed()
        return code

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()


class LocalExecutor:
    """Processes of this machine, of one thread each; where there are GPUs, each process is dealt its own.

    Args:
        slots: how many at a time.
        devices: ids of the GPUs, as CUDA_VISIBLE_DEVICES takes them; none: the processors. Where there are more slots
            than GPUs, several processes share one.
        gpus: of each process; more than one starts it through torchrun.
        command: what a cell's process runs instead; its folder is put behind.
        module: what a cell's process is.

    Raises:
        ValueError: for more GPUs a process than there are.
    """

    def __init__(
        self, slots: int, devices: Sequence[str] = (), gpus: int = 1, command: Sequence[str] | None = None,
        module: str = CELL,
    ) -> None:  # fmt: skip
        if devices and gpus > len(devices):
            raise Refusal(f"gpus={gpus} of each run can't be had of the {len(devices)} in devices={list(devices)}")
        self._slots, self._gpus = slots, gpus
        self._command = tuple(command or _command(gpus if devices else 1, module))
        self._load = dict.fromkeys(devices, 0)

    @property
    def slots(self) -> int:
        return self._slots

    def start(self, cells: Sequence[Cell]) -> list[Job]:
        return [self._start(cell) for cell in cells]

    def _start(self, cell: Cell) -> Job:
        taken = sorted(self._load, key=lambda device: self._load[device])[: self._gpus]
        for device in taken:
            self._load[device] += 1
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(taken)} if taken else {}

        def free() -> None:
            for device in taken:
                self._load[device] -= 1

        return _Process(_spawn(self._command, cell, **visible), free)


class _Request:
    """A cell in a job of a cluster; a job whose time is over or that was taken away is queued again, and goes on."""

    def __init__(self, command: Sequence[str], cell: Cell) -> None:
        self._command, self._cell = command, cell

    def __call__(self) -> int:
        return _spawn(self._command, self._cell).wait()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Submitted:
    """A job of submitit's."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        return 1 if self._job.exception() is not None else int(self._job.result())

    def stop(self) -> None:
        self._job.cancel(check=False)

    kill = stop


class SlurmExecutor:
    """SLURM jobs through submitit, one for each cell, in arrays.

    Args:
        folder: where submitit keeps its scripts and logs; all nodes must see it, and the cells' folders.
        settings: of submitit's `AutoExecutor.update_parameters`: `timeout_min`, `slurm_partition`, `gpus_per_node`, ...
        gpus: of each cell.
        jobs: at most so many of an array at a time; None: as many as the cluster gives.
        cluster: "slurm", or another of submitit's.
        command: what a cell's process runs instead; its folder is put behind.
        module: what a cell's process is.

    Raises:
        ValueError: without submitit, or for a setting that it doesn't know.
    """

    slots = 10**6  # the cluster's queue holds them

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        gpus: int = 1,
        jobs: int | None = None,
        cluster: str = "slurm",
        command: Sequence[str] | None = None,
        module: str = CELL,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise Refusal("executor=slurm needs submitit: pip install 'srgym[slurm]'") from error
        self._command = tuple(command or _command(gpus, module))
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            asked = {"gpus_per_node": gpus, "slurm_array_parallelism": jobs, **settings}
            self._executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise Refusal(f"executor=slurm: {error}") from error

    def start(self, cells: Sequence[Cell]) -> list[Job]:
        with self._executor.batch():
            jobs = [self._executor.submit(_Request(self._command, cell)) for cell in cells]
        return [_Submitted(job) for job in jobs]


def end_with_parent() -> None:
    """In a cell's process: end as on SIGTERM, saving first, when the process that started it is gone."""
    if os.environ.pop("SRGYM_ENDS_WITH_STDIN", None) is None:
        return

    def watch() -> None:
        while os.read(0, 4096):  # not through sys.stdin, whose lock would be held as the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()
