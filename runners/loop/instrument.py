"""What surrounds a policy's forward passes during a run: autocast, and the count of their cost."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.policies.base import FlowPolicy

__all__ = ["AUTOCAST", "Meter", "instrumented"]

AUTOCAST = {"off": None, "bf16": torch.bfloat16}


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

    def measured(self, policy: FlowPolicy, x: Tensor, t: Tensor, cond: TensorDict) -> float:
        """Operations of one sample's forward, as torch's counter sees them."""
        if self._each is None:
            from torch.utils.flop_counter import FlopCounterMode

            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                type(policy).velocity(policy, x[:1].detach(), t[:1].detach(), cond[:1].detach())
            self._each = float(counter.get_total_flops())
        return self._each

    def count(self, rows: int, each: float, grad: bool) -> None:
        self.forwards += rows
        self.flops += rows * each * (1 + self._backward * grad)


@contextlib.contextmanager
def instrumented(policy: FlowPolicy, meter: Meter, autocast: str = "off") -> Iterator[None]:
    """Run the policy's `encode` and `velocity` under autocast and count the latter; everything else stays float32.

    Raises:
        ValueError: for an autocast that isn't "off" or "bf16".
    """
    if autocast not in AUTOCAST:
        raise ValueError(f"runner.autocast is one of {', '.join(AUTOCAST)}, got '{autocast}'")
    dtype, kind = AUTOCAST[autocast], policy.device.type
    encode, velocity = policy.encode, policy.velocity

    def cast() -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)

    def cast_encode(obs: Any) -> TensorDict:
        with cast():
            return encode(obs)

    def cast_velocity(x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        with cast():
            meter.count(len(x), meter.measured(policy, x, t, cond), torch.is_grad_enabled())
            v = velocity(x, t, cond)
        return v.float() if v.dtype in (torch.bfloat16, torch.float16) else v

    policy.__dict__.update(encode=cast_encode, velocity=cast_velocity)
    try:
        yield
    finally:
        policy.__dict__.pop("encode")
        policy.__dict__.pop("velocity")
