"""A circuit breaker: a replica that keeps failing is left alone for a while."""

import threading
import time
from collections.abc import Callable

from srgym.errors import Refusal

__all__ = ["Breaker"]


class Breaker:
    """Closed while calls succeed; open after `failures` in a row; then one probe at a time until one succeeds.

    Args:
        failures: consecutive failures that open it.
        cooldown: seconds it stays open; doubled each time a probe fails, up to `longest`.
        longest: seconds; 30, or the cooldown if that's longer, when None.
        clock: seconds, rising.
    """

    def __init__(
        self,
        failures: int = 5,
        cooldown: float = 1.0,
        longest: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        longest = max(30.0, cooldown) if longest is None else longest
        if failures < 1 or cooldown <= 0 or longest < cooldown:
            raise Refusal(
                "a breaker needs at least 1 failure and 0 < cooldown <= longest, "
                f"got {failures} failures, cooldown {cooldown} s, longest {longest} s"
            )
        self._failures, self._cooldown, self._longest, self._clock = failures, cooldown, longest, clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._pause = cooldown
        self._opened: float | None = None
        self._probing = False

    @property
    def open(self) -> bool:
        return self._opened is not None

    def wait(self) -> float:
        """Seconds until a call may be tried; 0 if it may be now."""
        with self._lock:
            return self._wait()

    def _wait(self) -> float:
        if self._opened is None:
            return 0.0
        left = self._opened + self._pause - self._clock()
        # Somebody else's probe is on its way; its result comes at a time nobody knows.
        return max(left, self._cooldown / 10) if self._probing else max(left, 0.0)

    def acquire(self) -> bool:
        """Whether a call may be made now; the caller then reports how it went, once."""
        with self._lock:
            if self._wait() > 0:
                return False
            self._probing = self._opened is not None
            return True

    def succeeded(self) -> None:
        """A call went well: closed."""
        with self._lock:
            self._in_a_row, self._pause, self._opened, self._probing = 0, self._cooldown, None, False

    def failed(self) -> None:
        """A call failed."""
        with self._lock:
            self._in_a_row += 1
            if self._probing:
                self._pause = min(2 * self._pause, self._longest)
                self._opened, self._probing = self._clock(), False
            elif self._opened is None and self._in_a_row >= self._failures:
                self._opened = self._clock()

    def abandoned(self) -> None:
        """A call was given up before it ended, which says nothing about the replica."""
        with self._lock:
            self._probing = False
