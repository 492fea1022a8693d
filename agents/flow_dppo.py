"""Flow-DPPO (Ping et al. 2026, arXiv 2606.11025): Flow-GRPO whose trust region is the divergence of a step.

    loss = -A rho m,   m = 0 where D > delta and the step has moved the way that A points, else 1,

D = mean (mu_theta - mu_old)^2 / (2 q^2) is the KL divergence of two Gaussian steps, known exactly, where a ratio is one
noisy sample of it. The step has moved A's way where rho > 1 at a good sample, and where rho < 1 at a bad one.
"""

from typing import Any

import torch
from torch import Tensor

from srgym.agents.steps import Steps
from srgym.agents.trajectory import TrajectoryAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Incompatible, Reward

__all__ = ["FlowDPPO", "dppo_loss"]


def dppo_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, distance: Tensor, *, delta: float = 1e-5
) -> Tensor:
    """Flow-DPPO's loss of each step.

    Args:
        log_prob, old_log_prob: of the step under the learner and under the policy that sampled, [B].
        advantage: A, [B]. distance: D, [B]. delta: how far D may go.

    Returns:
        [B].
    """
    rho = (log_prob - old_log_prob).exp()
    away = torch.where(advantage > 0, rho > 1, rho < 1)
    return torch.where((distance > delta) & away, 0.0, -advantage * rho)


class FlowDPPO(TrajectoryAgent):
    """Flow-DPPO.

    Args:
        policy, reward: see `TrajectoryAgent`.
        delta: how far a step may go from that of the policy that sampled, before it is stopped.
        options: see `TrajectoryAgent`.

    Raises:
        Incompatible: for a solver that scores without a Gaussian density.
    """

    name = "flow_dppo"
    compares_means = True

    def __init__(
        self, policy: FlowPolicy, reward: Reward | None = None, *, delta: float = 1e-5, **options: Any
    ) -> None:
        super().__init__(policy, reward, **options)
        if not delta > 0:
            raise Refusal(f"expected delta above 0, got {delta}")
        if not self._solver.gaussian:
            raise Incompatible(
                "flow_dppo knows how far two Gaussian steps are apart, and this solver scores without a density: use "
                "solver 'sde' or 'dance'"
            )
        self.delta = delta

    def objective(self, steps: Steps) -> tuple[Tensor, Tensor]:
        distance = steps.divergence().detach()
        each = dppo_loss(steps.log_prob, steps.old_log_prob, steps.advantage, distance, delta=self.delta)
        return each, each.detach() == 0
