"""What agents of flow policies share: velocities, under the adapter that a loss asks for."""

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Agent
from srgym.policies.flow import FlowPolicy

__all__ = ["FlowAgent", "matching_error"]


def matching_error(v_hat: Tensor, v: Tensor) -> Tensor:
    """mean (v_hat - v)^2 of each row, [B]."""
    return (v_hat - v).square().flatten(1).mean(1)


class FlowAgent(Agent):
    """An agent whose loss is one of velocities."""

    policy: FlowPolicy

    def _velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        """The learner's velocity [B, ...], in float32 at least: losses of differences don't survive half precision."""
        v = self.policy.velocity(x, t, cond)
        return v if v.dtype == torch.float64 else v.float()

    @torch.no_grad()
    def _velocity_of(self, adapter: str | None, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        """Another adapter's velocity (None: the base's), without a graph."""
        with self.policy.adapter(adapter):
            return self._velocity(x, t, cond)

    def _velocity_beside(self, v: Tensor, adapter: str | None, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        """As `_velocity_of`; the learner's `v` where the two are the same bit for bit, for no second forward."""
        if adapter is not None and self.policy.same_adapters("default", adapter):
            return v.detach()
        return self._velocity_of(adapter, x, t, cond)
