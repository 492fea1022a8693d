"""Direct group preference optimisation (Luo et al. 2025, arXiv 2510.08425): groups in the place of DPO's pairs.

    loss = mean of w A e_theta,   w = sigmoid((beta / K) sum over the group of A (e_theta - e_ref)), without gradient,

e = ||v_theta - (eps - x0)||^2, a mean over elements. A group that is told apart already (its sum is far below 0) weighs
less. Samples of a group share their noise and times; any solver may collect.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from srgym.agents.grouped import WeighedAgent
from srgym.agents.groups import Combine, GroupFilter
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
        policy, reward, group_size, steps, solver: see `ForwardAgent`.
        beta: how sharply groups are weighed; 100 in the published code.
        reference: whose error a sample's is held against: "base", or "old", which follows the learner (the published
            code after some hundred steps).
        kl: weight of mean (v_theta - v_base)^2; 0.02 in the published code.
        old, time_share, epochs, std, filter, combine, ema, provides: see `ForwardAgent`. The published code trains four
            of its ten times, of the noisier ones.
    """

    name = "dgpo"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 16,
        steps: int = 6,
        solver: str = "dpm2m",
        beta: float = 100.0,
        reference: str = "base",
        kl: float = 0.02,
        old: str | float = "on_policy",
        time_share: float = 0.99,
        epochs: int = 1,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        if not beta > 0 or reference not in REFERENCES:
            raise Refusal(f"expected beta above 0 and reference of {REFERENCES}, got {beta} and '{reference}'")
        super().__init__(
            policy, reward, group_size=group_size, steps=steps, solver=solver, kl=kl, old=old, time_share=time_share,
            epochs=epochs, std=std, filter=filter, combine=combine, ema=ema, provides=provides,
            reference=None if reference == "base" else reference,
        )  # fmt: skip
        self.beta = beta

    def weight(self, z: Tensor) -> Tensor:
        return dgpo_weight(z, self.group_size, beta=self.beta)
