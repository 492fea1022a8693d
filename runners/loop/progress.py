"""What the terminal shows of a run: a bar with the time left, or plain lines where the output is no terminal."""

import sys
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["Display", "duration"]

_LINE_EVERY = 15.0  # seconds between two plain lines


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Display:
    """The progress of one stage on standard error.

    Args:
        title: the stage's name.
        live: draw a bar; by default where standard error is a terminal.
    """

    def __init__(self, title: str, live: bool | None = None) -> None:
        self._title = title
        self._bar: Any = None
        self._last_line = -_LINE_EVERY
        if sys.stderr.isatty() if live is None else live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
                TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(title, total=1.0, note="")

    def update(self, iteration: int, progress: float, seconds: float, shown: Mapping[str, float]) -> None:
        """Show a moment of the run: its share done in [0, 1], the seconds spent, and a few numbers."""
        left = f"{duration(seconds * (1 - progress) / progress)} left" if progress > 0 else ""
        note = "  ".join([left, *(f"{name} {value:.4g}" for name, value in shown.items())])
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, note=note)
        elif time.monotonic() - self._last_line >= _LINE_EVERY or progress >= 1:
            self._last_line = time.monotonic()
            print(f"{self._title}: iteration {iteration}, {progress:.0%}, {note}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
