"""Direct group preference optimisation (Luo et al. 2025, arXiv 2510.08425): groups in the place of DPO's pairs.

    loss = mean of w A e_theta,   w = sigmoid((beta / K) sum over the group of A (e_theta - e_ref)), without gradient,

e = ||v_theta - (eps - x0)||^2, a mean over elements. A group that is told apart already (its sum is far below 0) weighs
less. Samples of a group share their noise and times; any solver may collect.
"""

from typing import Any

from torch import Tensor

from srgym.agents.grouped import WeighedAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Reward

__all__ = ["DGPO", "dgpo_weight"]

REFERENCES = ("base", "old")


def dgpo_weight(z: Tensor, group_size: int, *, beta: float) -> Tensor:
    """w of groups from Z = sum of A (e_theta - e_ref): [M] to [M]."""
    return (beta / group_size * z).sigmoid()


class DGPO(WeighedAgent):
    """DGPO.

    Args:
        policy, reward: see `ForwardAgent`.
        beta: how sharply groups are weighed; 100 in the published code.
        reference: whose error a sample's is held against: "base", or "old", which follows the learner (the published
            code after some hundred steps).
        kl: weight of mean (v_theta - v_base)^2; 0.02 in the published code.
        group_size, options: see `ForwardAgent`. The published code trains four of its ten times, of the noisier ones.
    """

    name = "dgpo"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 16,
        beta: float = 100.0,
        reference: str = "base",
        kl: float = 0.02,
        **options: Any,
    ) -> None:
        if not beta > 0 or reference not in REFERENCES:
            raise Refusal(f"expected beta above 0 and reference of {REFERENCES}, got {beta} and '{reference}'")
        super().__init__(policy, reward, group_size=group_size, kl=kl, **options)
        self.beta = beta
        self.reference = None if reference == "base" else reference

    def weight(self, z: Tensor) -> Tensor:
        return dgpo_weight(z, self.group_size, beta=self.beta)
