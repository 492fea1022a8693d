"""What a run costs, in forward passes and in waiting, and under which autocast they run."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from srgym.policies.base import Policy
from srgym.precision import autocast_dtype

__all__ = ["Meter", "instrumented"]


class Meter:
    """Counts forwards of one sample through the network, and the floating-point operations they stand for.

    A forward with gradient counts as 1 forward and its backward as 1 more (LoRA) or 2 more (all weights).

    Attributes:
        forwards: velocities, or whole documents, of one sample.
        flops: of those forwards and their backwards; 0 until the first is measured.
        waited: seconds in which nothing went on but a judge's work elsewhere.
    """

    def __init__(self, policy: Policy) -> None:
        self._backward = 1 if policy.has_adapters else 2
        self._each: float | None = getattr(policy, "flops_per_forward", None)
        self.forwards, self.flops, self.waited = 0, 0.0, 0.0

    def count(self, policy: Policy, rows: int, once: Callable[[], Any]) -> None:
        """Count what `rows` samples cost."""
        if self._each is None:
            from torch.utils.flop_counter import FlopCounterMode

            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                once()
            self._each = float(counter.get_total_flops())
        self.forwards += rows
        self.flops += rows * self._each * (1 + self._backward * torch.is_grad_enabled())

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in here as waited."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - began


@contextlib.contextmanager
def instrumented(policy: Policy, meter: Meter, autocast: str = "off") -> Iterator[None]:
    """Run the policy's entries under autocast and count its forwards; everything else stays float32.

    Raises:
        ValueError: for an autocast that isn't one of `srgym.precision.AUTOCAST`.
    """
    before = policy.autocast, policy.meter
    policy.autocast, policy.meter = autocast_dtype(autocast, policy.device), meter
    try:
        yield
    finally:
        policy.autocast, policy.meter = before
