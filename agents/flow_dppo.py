"""Flow-DPPO (Ping et al. 2026, arXiv 2606.11025): Flow-GRPO whose trust region is the divergence of a step.

    loss = -A rho m,   m = 0 where D > delta and the step has moved the way that A points, else 1,

D = mean (mu_theta - mu_old)^2 / (2 q^2) is the KL divergence of two Gaussian steps, known exactly, where a ratio is one
noisy sample of it. The step has moved A's way where rho > 1 at a good sample, and where rho < 1 at a bad one.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from srgym.agents.flow_grpo import RATIO_TOLERANCE, FlowGRPO, divergence
from srgym.agents.groups import Combine, GroupFilter
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.solvers import Transition
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


class FlowDPPO(FlowGRPO):
    """Flow-DPPO.

    Args:
        policy, reward: see `FlowGRPO`.
        delta: how far a step may go from that of the policy that sampled, before it is stopped.
        group_size, steps, solver, noise_level, fast, window, kl, guidance, updates_per_iteration, epochs, std, filter,
            combine, old_log_prob, ratio_tolerance, seed, ema, provides: see `FlowGRPO`.

    Raises:
        Incompatible: for a solver that scores without a Gaussian density, and as `FlowGRPO`.
    """

    name = "flow_dppo"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        delta: float = 1e-5,
        group_size: int = 24,
        steps: int = 10,
        solver: str = "sde",
        noise_level: float | None = None,
        fast: bool = False,
        window: int = 2,
        kl: float | None = None,
        guidance: float = 1.0,
        updates_per_iteration: int = 2,
        epochs: int = 1,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        old_log_prob: str | None = None,
        ratio_tolerance: float = RATIO_TOLERANCE,
        seed: int = 0,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(
            policy, reward, group_size=group_size, steps=steps, solver=solver, noise_level=noise_level, fast=fast,
            window=window, kl=kl, guidance=guidance, updates_per_iteration=updates_per_iteration, epochs=epochs,
            std=std, filter=filter, combine=combine, old_log_prob=old_log_prob, ratio_tolerance=ratio_tolerance,
            seed=seed, ema=ema, provides=provides,
        )  # fmt: skip
        if not delta > 0:
            raise Refusal(f"expected delta above 0, got {delta}")
        if not self._solver.gaussian:
            raise Incompatible(
                "flow_dppo knows how far two Gaussian steps are apart, and this solver scores without a density: use "
                "solver 'sde' or 'dance'"
            )
        self._require_adapters("the policy that sampled (delta)")
        self.delta = delta

    @property
    def _asks_old(self) -> bool:
        return True

    def _objective(
        self,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantage: Tensor,
        now: Transition,
        before: Transition | None,
        dt: Tensor,
    ) -> Tensor:
        assert before is not None
        return dppo_loss(log_prob, old_log_prob, advantage, divergence(now, before).detach(), delta=self.delta)
