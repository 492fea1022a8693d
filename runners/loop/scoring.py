"""Scoring a rollout while it is drawn: a judge elsewhere is asked part by part, and waited for last."""

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict

from srgym.policies.base import Policy
from srgym.rewards.base import RewardOutput
from srgym.rewards.later import Later, settled
from srgym.runners.loop.meter import Meter

if TYPE_CHECKING:
    from srgym.envs.task import SRTask

__all__ = ["Scoring"]


class Scoring:
    """The scores of one rollout: K samples of each of G contexts, drawn in order.

    Whatever a reward computes itself is computed when a part is added, between two parts of the sampler's and in its
    thread, so that neither takes cores or precision from the other. What it has asked others for comes meanwhile.

    Args:
        context: of G contexts. size: K.
    """

    def __init__(self, task: "SRTask", policy: Policy, context: Any, size: int) -> None:
        self._task, self._policy, self._context, self._size = task, policy, context, size
        self._held: list[TensorDict] = []
        self._asked: list[Later[RewardOutput]] = []
        self._drawn = self._handed = 0

    def add(self, part: TensorDict) -> None:
        """Hand over the next samples of a rollout; those of a group that the reward compares wait for its last one."""
        self._held.append(part)
        self._drawn += len(part)
        ready = self._drawn - (self._drawn % self._size if self._task.reward.compares else 0)
        if ready == self._handed:
            return
        rows: TensorDict = torch.cat(self._held) if len(self._held) > 1 else part
        now, rest = rows[: ready - self._handed], rows[ready - self._handed :]
        of = torch.arange(self._handed, ready) // self._size
        self._asked.append(self._task.begin(self._context, now["sr"], of, **self._policy.made(now)))
        self._held, self._handed = [rest] if len(rest) else [], ready

    def scores(self, meter: Meter | None = None) -> RewardOutput:
        """All scores [G K] in the order of the samples, waited for; `meter` is told how long that took."""
        with meter.waiting() if meter is not None else contextlib.nullcontext():
            parts = [settled(asked) for asked in self._asked]
        if len(parts) == 1:
            return parts[0]
        return RewardOutput(
            total=torch.cat([part.total for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            components={n: torch.cat([part.components[n] for part in parts]) for n in parts[0].components},
        )
