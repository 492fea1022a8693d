"""Advantage weighted matching (Xue et al. 2025, arXiv 2509.25050): policy gradients on pretraining's own loss.

A sample x0 of advantage A is noised anew, and its likelihood is told by the flow-matching error of the velocity,
e = ||v_theta - (eps - x0)||^2 (a mean over elements): log p = -f(e, t), and the clipped objective is GRPO's,

    max(-A rho, -A clip(rho, 1 - c, 1 + c)),   rho = exp(f(e_old, t) - f(e_theta, t)).

The paper has f = w(t) e, with w = 1 best; its published code, whose numbers are the defaults, a power of e. Before the
first update rho is 1, and what is left is the advantage times the gradient of the matching loss. No trajectories: any
solver may collect.
"""

from typing import Any

from tensordict import TensorDict
from torch import Tensor

from srgym.agents.flow import matching_error
from srgym.agents.flow_grpo import grpo_loss
from srgym.agents.forward import ForwardAgent
from srgym.agents.groups import ADVANTAGE_CLIP
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Reward

__all__ = ["AWM", "WEIGHTINGS", "awm_loss"]

WEIGHTINGS = ("power", "uniform", "t")
_FLOOR = 1e-10


def awm_loss(
    error: Tensor,
    old_error: Tensor,
    t: Tensor,
    advantage: Tensor,
    *,
    weighting: str = "power",
    power: float = 0.25,
    clip: float = 1.0,
) -> Tensor:
    """AWM's loss of each sample.

    Args:
        error, old_error: e of the learner and of the policy that sampled, on the same noise, [B].
        t: the times, [B] in (0, 1]. advantage: A, [B].
        weighting: f: "uniform" e, "t" t e, "power" t (e^p - 1e-10^p) / p with e raised by 1e-10.
        power: p. clip: c.

    Returns:
        [B].
    """
    if weighting not in WEIGHTINGS:
        raise Refusal(f"awm_loss has the weightings {', '.join(WEIGHTINGS)}, got '{weighting}'")

    def log_prob(e: Tensor) -> Tensor:
        if weighting == "power":
            raised: Tensor = (e + _FLOOR).pow(power) - _FLOOR**power
            return -t * raised / power
        return -e if weighting == "uniform" else -t * e

    return grpo_loss(log_prob(error), log_prob(old_error), advantage, clip=clip)


class AWM(ForwardAgent):
    """Advantage weighted matching.

    Args:
        policy, reward: see `ForwardAgent`.
        weighting, power, clip: see `awm_loss`.
        advantage_scale: advantages are clipped to 5 deviations, which count for so much.
        trust: weight of mean (v_theta - v_old)^2; the published code has 1, with an average of the learner (`linear`)
            that doesn't sample there.
        kl, options: see `ForwardAgent`.
    """

    name = "awm"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        weighting: str = "power",
        power: float = 0.25,
        clip: float = 1.0,
        advantage_scale: float = 1.0,
        kl: float = 3e-3,
        trust: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, kl=kl, **options)
        if not (clip > 0 and advantage_scale > 0 and trust >= 0 and 0 < power <= 1):
            raise Refusal(
                "expected clip and advantage_scale above 0, trust of at least 0 and power in (0, 1], got "
                f"{clip}, {advantage_scale}, {trust} and {power}"
            )
        if weighting not in WEIGHTINGS:
            raise Refusal(f"expected weighting of {WEIGHTINGS}, got {weighting}")
        self.weighting, self.power, self.clip = weighting, power, clip
        self.advantage_scale, self.trust = advantage_scale, trust

    def loss(self, batch: TensorDict) -> TensorDict:
        x0, eps, x_t, cond = self._noised(batch)
        v, v_old, v_base = self._velocities(x_t, batch["t"], cond)
        error, old_error = (matching_error(velocity, eps - x0) for velocity in (v, v_old))
        advantage = batch["advantage"].clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP) * (self.advantage_scale / ADVANTAGE_CLIP)
        each = awm_loss(
            error, old_error, batch["t"], advantage, weighting=self.weighting, power=self.power, clip=self.clip
        )
        deviation = (v - v_old).square().mean()
        terms = {"loss_policy": each.mean(), "deviation": deviation.detach()}
        if self.trust > 0:
            terms["loss_trust"] = self.trust * deviation
        return TensorDict(terms | self._held(v, v_base))
