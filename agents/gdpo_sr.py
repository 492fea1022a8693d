"""GDPO-SR: group direct preference optimisation of super-resolution (Yi et al. 2026, arXiv 2603.16769).

    loss = -log sigmoid(-(beta / 2) Z),   Z = sum over the group of A (e_theta - e_base),

e = ||v_theta - (eps - x0)||^2, a mean over elements. Its gradient is (beta / 2) sigmoid((beta / 2) Z) times that of the
sum of A e_theta, which is what is trained here, so that a microbatch needn't hold whole groups. The paper's policy
takes one step; this agent takes any. Its reward normalises each metric by minimum and maximum inside the group
(`combine: {normalise: min_max}`) before the group's scores are standardised.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from srgym.agents.grouped import WeighedAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Reward

__all__ = ["GDPOSR", "gdpo_loss", "gdpo_weight"]


def gdpo_loss(z: Tensor, *, beta: float) -> Tensor:
    """The loss of groups from Z = sum of A (e_theta - e_base): [M] to [M]."""
    return -F.logsigmoid(-0.5 * beta * z)


def gdpo_weight(z: Tensor, *, beta: float) -> Tensor:
    """Its derivative by Z."""
    return 0.5 * beta * (0.5 * beta * z).sigmoid()


class GDPOSR(WeighedAgent):
    """GDPO-SR.

    Args:
        policy, reward: see `ForwardAgent`.
        beta: 5000 in the published code.
        group_size, options: see `ForwardAgent`; the paper has groups of 6, one step and no KL term.
    """

    name = "gdpo_sr"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 6,
        beta: float = 5000.0,
        **options: Any,
    ) -> None:
        if not beta > 0:
            raise Refusal(f"expected beta above 0, got {beta}")
        super().__init__(policy, reward, group_size=group_size, **options)
        self.beta = beta

    def weight(self, z: Tensor) -> Tensor:
        # A mean over rows is taken of what the loss sums over a group's samples.
        return self.group_size * gdpo_weight(z, beta=self.beta)
