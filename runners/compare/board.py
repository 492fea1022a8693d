"""What the terminal shows of a comparison: every running cell, what has ended, and the time left."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from srgym.runners.compare.executor import Cell, Outcome
from srgym.runners.loop.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Board", "seconds_left"]

_LINE_EVERY = 60.0  # seconds between two plain lines


def seconds_left(shares: Sequence[float], spent: Sequence[float], waiting: int, slots: int) -> float | None:
    """The time until all cells are done, as far as those that were seen tell.

    Args:
        shares: done of each cell that ended or runs, in [0, 1]. spent: seconds of each.
        waiting: cells that haven't begun.
        slots: cells that run at a time.

    Returns:
        Seconds; None while nothing is known. A cell that waits is taken to last as long as those seen do.
    """
    lengths = [seconds / share for share, seconds in zip(shares, spent, strict=True) if share > 0.02]
    if not lengths:
        return None
    each = sum(lengths) / len(lengths)
    going = [each * (1 - share) for share in shares]
    return max((sum(going) + each * waiting) / slots, *going)


class Board:
    """One display of all cells: live on a terminal, a line now and then elsewhere.

    Args:
        count: of all cells.
        slots: cells that run at a time.
    """

    def __init__(self, count: int, slots: int) -> None:
        self._count, self._slots = count, max(1, min(slots, count))
        self._ended: list[Outcome] = []
        self._begun: dict[str, float] = {}
        self._last_line = time.monotonic()
        self._live = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()

    def on_outcome(self, outcome: Outcome, number: int, count: int) -> None:
        """Say how a cell ended."""
        self._ended.append(outcome)
        ending = f"failed: {outcome.error}" if outcome.error else f"{duration(outcome.seconds)}"
        ending = "done before" if outcome.error is None and not outcome.seconds else ending
        print(f"[{number}/{count}] {outcome.cell.label}, seed {outcome.cell.seed}: {ending}", flush=True)

    def on_poll(self, running: Sequence[Cell], waiting: int) -> None:
        """Show where the running cells are."""
        now = time.monotonic()
        for cell in running:
            self._begun.setdefault(cell.name, now)
        shares = {cell.name: _share(cell) for cell in running}
        seen = [(1.0, outcome.seconds) for outcome in self._ended if outcome.seconds and outcome.error is None]
        seen += [(share, now - self._begun[name]) for name, share in shares.items()]
        left = seconds_left([share for share, _ in seen], [spent for _, spent in seen], waiting, self._slots)
        total = f"{len(self._ended)} of {self._count} runs done" + (f", {duration(left)} left" if left else "")
        if self._live is not None:
            self._live.update(self._table(running, shares, total))
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            at = ", ".join(f"{cell.name} {shares[cell.name]:.0%}" for cell in running)
            print(f"{total}; {at}", file=sys.stderr, flush=True)

    def _table(self, running: Sequence[Cell], shares: dict[str, float], total: str) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for cell in running:
            share = shares[cell.name]
            table.add_row(f"{cell.label}, seed {cell.seed}", ProgressBar(1.0, share, width=40), f"{share:4.0%}")
        table.add_row(total)
        return table

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _share(cell: Cell) -> float:
    """How much of its training a running cell has done: what its `progress.json` says."""
    try:
        return float(json.loads((cell.folder / "progress.json").read_text())["share"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0
