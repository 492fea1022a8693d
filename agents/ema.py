"""Averages of weights: how fast the sampling policy and the evaluation average follow the learner."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from srgym.errors import Refusal

__all__ = ["OLD_SCHEDULES", "WeightAverage", "evaluation_decay", "old_decay"]

OLD_SCHEDULES = ("on_policy", "linear", "delayed", "rising")


def old_decay(schedule: str | float, updates: int) -> float:
    """DiffusionNFT's d in old <- d old + (1 - d) theta, once an iteration (arXiv 2509.16117 and its code).

    Args:
        schedule: "on_policy" (0), "linear" (min(0.001 s, 0.5)), "delayed" (0 until s = 75, then
            min(0.0075 (s - 75), 0.999)), "rising" (min(0.25 + 0.005 s, 0.999), CRD's), or a number in [0, 1), which
            stays.
        updates: the gradient steps s taken so far.

    Raises:
        ValueError: for another schedule.
    """
    if isinstance(schedule, (int, float)) and not isinstance(schedule, bool):
        if not 0 <= schedule < 1:
            raise Refusal(f"a constant decay of the old policy is in [0, 1), got {schedule}")
        return float(schedule)
    if schedule == "on_policy":
        return 0.0
    if schedule == "linear":
        return min(0.001 * updates, 0.5)
    if schedule == "delayed":
        return 0.0 if updates < 75 else min(0.0075 * (updates - 75), 0.999)
    if schedule == "rising":
        return min(0.25 + 0.005 * updates, 0.999)
    raise Refusal(
        f"unknown schedule of the old policy '{schedule}': expected {', '.join(OLD_SCHEDULES)}, or a number in [0, 1)"
    )


def evaluation_decay(updates: int, cap: float = 0.9) -> float:
    """The evaluation average's decay after `updates` gradient steps: min((1 + s) / (10 + s), cap)."""
    return min((1 + updates) / (10 + updates), cap)


class WeightAverage:
    """The moving average of a policy's weights, for a policy that is trained whole and so has no adapter to keep it in.

    Args:
        named: the trained parameters by name.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._parameters = dict(named)
        self.weights = {name: parameter.detach().clone() for name, parameter in named}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        for name, parameter in self._parameters.items():
            self.weights[name].lerp_(parameter.to(self.weights[name]), 1 - decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run with the average in place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put saved averages back.

        Raises:
            ValueError: naming the first that is missing.
        """
        for name, held in self.weights.items():
            if name not in weights:
                raise Refusal(f"the saved agent has no average of '{name}', which the policy trains")
            held.copy_(weights[name])
