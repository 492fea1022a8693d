"""Ctrl-C, SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (a SLURM job's time is nearly over), answered between two
iterations."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

__all__ = ["Interrupted", "StopSignal", "listening"]


class Interrupted(Exception):
    """A run was stopped by a signal after it had saved everything.

    Attributes:
        signal: its number; the process's exit code is 128 more.
        folder: the run's folder, from which it resumes.
    """

    def __init__(self, number: int, folder: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after saving; go on with: srgym train resume={folder}")
        self.signal, self.folder = number, folder

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


class StopSignal:
    """Whether a signal came, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def listening(insistent: bool = True) -> Iterator[StopSignal]:
    """Turn the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 into a flag that the loop reads; a second one acts at once.

    Args:
        insistent: False lets further ones pass, where a launcher passes on a signal that came to all processes anyway.

    Outside the main thread, where Python takes no handlers, the flag never rises.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # nohup
        del before[signal.SIGHUP]

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def raise_flag(number: int, frame: FrameType | None) -> None:
        stop.number = stop.number or number
        if insistent and number != signal.SIGUSR1:  # no one who wants an end at once sends that
            restore()

    for kind in before:
        signal.signal(kind, raise_flag)
    try:
        yield stop
    finally:
        restore()
