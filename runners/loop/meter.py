"""What a run's forward passes cost, and under which autocast they run."""

import contextlib
from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.policies.base import FlowPolicy
from srgym.precision import autocast_dtype

__all__ = ["Meter", "instrumented"]


class Meter:
    """Counts forwards of one sample through the velocity, and the floating-point operations they stand for.

    A forward with gradient counts as 1 forward and its backward as 1 more (LoRA) or 2 more (all weights).

    Attributes:
        forwards: velocity evaluations of one sample.
        flops: of those forwards and their backwards; 0 until the first is measured.
    """

    def __init__(self, policy: FlowPolicy) -> None:
        self._backward = 1 if policy.has_adapters else 2
        self._each: float | None = getattr(policy, "flops_per_forward", None)
        self.forwards, self.flops = 0, 0.0

    def count(self, policy: FlowPolicy, x: Tensor, t: Tensor, cond: TensorDict) -> None:
        """Count a velocity of these arguments."""
        if self._each is None:
            from torch.utils.flop_counter import FlopCounterMode

            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                policy.velocity(x[:1].detach(), t[:1].detach(), cond[:1].detach())
            self._each = float(counter.get_total_flops())
        self.forwards += len(x)
        self.flops += len(x) * self._each * (1 + self._backward * torch.is_grad_enabled())


@contextlib.contextmanager
def instrumented(policy: FlowPolicy, meter: Meter, autocast: str = "off") -> Iterator[None]:
    """Run the policy's `encode` and `velocity` under autocast and count the latter; everything else stays float32.

    Raises:
        ValueError: for an autocast that isn't one of `srgym.precision.AUTOCAST`.
    """
    before = policy.autocast, policy.meter
    policy.autocast, policy.meter = autocast_dtype(autocast, policy.device), meter
    try:
        yield
    finally:
        policy.autocast, policy.meter = before
