"""Agents whose loss knows a whole group at once: its samples share noise and times, and a weight of the group's own.

With e = ||v_theta - (eps - x0)||^2 (a mean over elements) and Z = sum over the group of A (e_theta - e_ref), such a
loss is a function of Z, and its gradient the sum of A grad e_theta times a weight w(Z). The weights are computed before
each update, for all rows, so that microbatches of any size have the same gradient.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.flow import matching_error
from srgym.agents.forward import ForwardAgent
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible

__all__ = ["GroupedAgent"]

_ROWS = 64  # in one forward of the weights; the result doesn't depend on it


class GroupedAgent(ForwardAgent):
    """What such agents share, see `ForwardAgent`.

    Args:
        reference: who e_ref is of: "base", or "old", the policy that sampled.
    """

    def __init__(self, *arguments: Any, reference: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reference = reference
        if self.policy.sharded:
            raise Incompatible(
                f"{type(self).__name__} runs forwards of its own before an update, which a policy that is split "
                "between processes can't: take runner.parallel=ddp"
            )

    @abstractmethod
    def weight(self, z: Tensor) -> Tensor:
        """w of groups, from their Z: [M] to [M]."""

    def _seeds(self, rollout: TensorDict) -> Tensor:
        """One seed for all samples of a group: they share times and noise."""
        first = torch.arange(len(rollout)) // self.group_size * self.group_size
        seeds: Tensor = rollout["seed"]
        return seeds[first.to(seeds.device)]

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for batch in super().batches(rows):
            yield self._weighed(batch)

    @torch.no_grad()
    def _weighed(self, rows: TensorDict) -> TensorDict:
        """The rows of an update, with the weight of each one's group at its time."""
        changes = []
        for part in torch.split(torch.arange(len(rows), device=rows["t"].device), _ROWS):
            error, reference = self._errors(rows[part])
            changes.append(error - reference)
        group = torch.stack([rows["seed"], rows["draw"].to(rows["seed"].dtype)], 1)
        _, of = torch.unique(group, dim=0, return_inverse=True)
        terms = rows["advantage"].double() * torch.cat(changes).double()
        z = torch.zeros(int(of.max()) + 1, dtype=terms.dtype, device=terms.device).index_add_(0, of, terms)
        return rows.copy().set("weight", self.weight(z)[of].float()).set("z", z[of].float())

    def _errors(self, rows: TensorDict) -> tuple[Tensor, Tensor]:
        """e of the learner and of the reference, on the noise of this update: [B] each."""
        x0, eps, x_t, cond = self._noised(rows)
        at = (x_t, rows["t"], cond)
        v = self._velocity_of("default", *at)
        reference = self._old_velocity(v, *at) if self.reference == "old" else self._velocity_of(None, *at)
        return matching_error(v, eps - x0), matching_error(reference, eps - x0)

    def loss(self, batch: TensorDict) -> TensorDict:
        x0, eps, x_t, cond = self._noised(batch)
        v_base = self._velocity_of(None, x_t, batch["t"], cond) if self.kl > 0 else None
        v = self._velocity(x_t, batch["t"], cond)
        error = matching_error(v, eps - x0)
        terms = {
            "loss_policy": (batch["weight"] * batch["advantage"] * error).mean(),
            "weight": batch["weight"].mean(),
            "accuracy": (batch["z"] < 0).float().mean(),
        }
        return TensorDict(terms | self._held(v, v_base))

    def workload(self) -> Workload:
        plain = super().workload()
        # Before an update: the learner and its reference once more, without gradient.
        beside = {"default": 1.0, (None if self.reference == "base" else "old"): 1.0}
        if self.kl > 0:
            beside[None] = beside.get(None, 0.0) + 1.0
        return Workload(plain.group_size, plain.steps, plain.times, plain.epochs, beside)
