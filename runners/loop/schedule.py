"""How long a run lasts, and how its learning rate moves meanwhile."""

import math
from dataclasses import dataclass

from srgym.errors import Refusal

__all__ = ["Budget", "learning_rate"]


@dataclass(frozen=True)
class Budget:
    """What a run may spend; it ends when the first of the limits that are given is reached.

    Attributes:
        iterations: passes of the loop.
        images: super-resolved images scored (or trained on, by an agent that collects none).
        seconds: of wall-clock, over all sessions of a resumed run.
    """

    iterations: int | None = None
    images: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = {"iterations": self.iterations, "images": self.images, "seconds": self.seconds}
        if all(limit is None for limit in limits.values()):
            raise Refusal("a run needs a budget: expected runner.iterations, runner.images or runner.seconds")
        for name, limit in limits.items():
            if limit is not None and limit < 0:
                raise Refusal(f"runner.{name} is at least 0, got {limit}")

    def progress(self, iterations: int, images: int, seconds: float) -> float:
        """How much of the budget is spent, in [0, 1]: of the limit that is nearest."""
        pairs = ((self.iterations, iterations), (self.images, images), (self.seconds, seconds))
        return max(1.0 if not limit else min(spent / limit, 1.0) for limit, spent in pairs if limit is not None)


def learning_rate(base: float, schedule: str, warmup: float, progress: float) -> float:
    """The learning rate at a point of the run.

    Args:
        base: its peak.
        schedule: "constant", "cosine" (to zero), or "warmup" (linear to the peak, then constant).
        warmup: the share of the budget over which it rises linearly from zero; "cosine" may have one too.
        progress: in [0, 1], see `Budget.progress`.
    """
    if warmup > 0 and progress < warmup:
        return base * progress / warmup
    if schedule == "cosine":
        done = (progress - warmup) / max(1 - warmup, 1e-12)
        return base * 0.5 * (1 + math.cos(math.pi * done))
    return base
