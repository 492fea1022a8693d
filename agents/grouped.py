"""Agents whose loss knows a whole group at once: its samples share noise and times.

What a group says is computed before each update, for all rows, so that microbatches of any size have the same
gradient.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.flow import matching_error
from srgym.agents.forward import ForwardAgent
from srgym.policies.flow import FlowPolicy
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["GroupedAgent", "WeighedAgent"]

_ROWS = 64  # in one forward before an update; the result doesn't depend on it


class GroupedAgent(ForwardAgent):
    """What such agents share, see `ForwardAgent`.

    Attributes:
        reference: the adapter that the learner's error is held against: "old", the policy that sampled, a snapshot's
            name, or None for the base.
    """

    reference: str | None = None

    def __init__(self, policy: FlowPolicy, reward: Reward | None = None, **options: Any) -> None:
        super().__init__(policy, reward, **options)
        if policy.sharded:
            raise Incompatible(
                f"{type(self).__name__} runs forwards of its own before an update, which a policy that is split "
                "between processes can't: take runner.parallel=ddp"
            )

    @abstractmethod
    def completed(self, rows: TensorDict) -> TensorDict:
        """The rows of an update, with what their groups say."""

    def _seeds(self, rollout: TensorDict) -> Tensor:
        """One seed for all samples of a group: they share times and noise."""
        first = torch.arange(len(rollout)) // self.group_size * self.group_size
        seeds: Tensor = rollout["seed"]
        return seeds[first.to(seeds.device)]

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for batch in super().batches(rows):
            yield self.completed(batch)

    def _place(self, rows: TensorDict) -> Tensor:
        """Which group at which time each row belongs to, numbered from 0: int64 [M]."""
        group = torch.stack([rows["seed"], rows["draw"].to(rows["seed"].dtype)], 1)
        place: Tensor = torch.unique(group, dim=0, return_inverse=True)[1]
        return place

    @staticmethod
    def _sums(values: Tensor, place: Tensor) -> Tensor:
        """Of the rows [M] of each place, in float64."""
        sums = torch.zeros(int(place.max()) + 1, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, place, values.double())

    def _errors(self, rows: TensorDict) -> tuple[Tensor, Tensor]:
        """e of the learner and of the reference, on the noise of this update: [M] each."""
        return self._compared(rows)[:2]

    @torch.no_grad()
    def _compared(self, rows: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """`_errors`, and the reference's velocity."""
        found = []
        for part in rows.split(_ROWS):
            x0, eps, x_t, cond = self._noised(part)
            at = (x_t, part["t"], cond)
            v = self._velocity_of("default", *at)
            reference = self._velocity_beside(v, self.reference, *at)
            found.append((self._error(v, eps - x0), self._error(reference, eps - x0), reference))
        ours, theirs, velocity = (torch.cat(parts) for parts in zip(*found, strict=True))
        return ours, theirs, velocity

    def _error(self, v_hat: Tensor, v: Tensor) -> Tensor:
        """e of each row, [B]."""
        return matching_error(v_hat, v)

    def workload(self) -> Workload:
        plain = super().workload()
        # Before an update: the learner and its reference once more, without gradient.
        beside: dict[str | None, float] = {"default": 1.0, self.reference: 1.0}
        if self.kl > 0:
            beside[None] = 1.0  # where it is the reference it isn't run again
        return Workload(plain.group_size, plain.steps, plain.times, plain.epochs, beside)


class WeighedAgent(GroupedAgent):
    """Agents whose groups have a weight of their own.

    With e = ||v_theta - (eps - x0)||^2 (a mean over elements) and Z = sum over the group of A (e_theta - e_ref), such a
    loss is a function of Z, and its gradient the sum of A grad e_theta times a weight w(Z).
    """

    @abstractmethod
    def weight(self, z: Tensor) -> Tensor:
        """w of groups, from their Z: [M] to [M]."""

    def completed(self, rows: TensorDict) -> TensorDict:
        error, reference, velocity = self._compared(rows)
        place = self._place(rows)
        if self.kl > 0 and self.reference is None:
            rows = rows.copy().set("v_base", velocity)
        z = self._sums(rows["advantage"].double() * (error - reference).double(), place)
        return rows.copy().set("weight", self.weight(z)[place].float()).set("z", z[place].float())

    def loss(self, batch: TensorDict) -> TensorDict:
        x0, eps, x_t, cond = self._noised(batch)
        v_base = batch.get("v_base", None)
        if v_base is None and self.kl > 0:
            v_base = self._velocity_of(None, x_t, batch["t"], cond)
        v = self._velocity(x_t, batch["t"], cond)
        error = matching_error(v, eps - x0)
        terms = {
            "loss_policy": (batch["weight"] * batch["advantage"] * error).mean(),
            "weight": batch["weight"].mean(),
            "accuracy": (batch["z"] < 0).float().mean(),
        }
        return TensorDict(terms | self._held(v, v_base))
