"""Flow-GRPO: policy gradients through a stochastic sampler (Liu et al. 2025, arXiv 2505.05470), and its kin.

The sampler's step is made Gaussian, x' ~ N(mu_theta(x, t), q^2), so that a trajectory has likelihoods; each step of a
sample of advantage A takes the clipped objective

    max(-A rho, -A clip(rho, 1 - e, 1 + e)),   rho = p_theta(x') / p_old(x').

Kin, behind one option each:

- `solver="cps"` (Flow-CPS, arXiv 2509.05952), `solver="dance"` (DanceGRPO, arXiv 2505.07818);
- `fast`: noise in a short window of steps, drawn anew each iteration (Flow-GRPO-Fast);
- `slide`: in one that slides from the first steps to the last (MixGRPO, arXiv 2507.21802);
- `branch`: in one step, drawn for each group, whose samples come to it by the same path; so the reward tells of that
  step alone. A step weighs w = q over the mean q of the schedule, for it explores the more the noisier it is
  (TempFlow-GRPO, arXiv 2508.04324, eq. 8; its branches leave one path at every step, here each group's at one);
- `guard`: rho = exp[(dlogp + mean(dmu^2) / (2 q^2)) q], whose mean over the noise is 1, and loss / (-dt) (GRPO-Guard,
  arXiv 2510.22319).
"""

from typing import Any

import torch
from torch import Tensor

from srgym.agents.steps import Steps
from srgym.agents.trajectory import TrajectoryAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Incompatible, Reward

__all__ = ["FlowGRPO", "grpo_loss"]


def grpo_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float, clip_high: float | None = None
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) with rho = exp(log_prob - old_log_prob), all [...].

    Args:
        log_prob, old_log_prob: of the same step under the learner and the sampler.
        advantage: A.
        clip, clip_high: e, and another one for the upper end (None: the same).
    """
    ratio = torch.exp(log_prob - old_log_prob.detach())
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(-advantage * ratio, -advantage * bounded)


class FlowGRPO(TrajectoryAgent):
    """Flow-GRPO.

    Args:
        policy, reward: see `TrajectoryAgent`.
        clip: e; None: 1e-4, 1e-5 when fast, 2e-6 under the guard.
        guard: normalise the ratio by the step's noise, and weigh steps by 1 / (-dt).
        noise_weight: weigh steps by their noise, w; None: when they branch.
        options: see `TrajectoryAgent`.

    Raises:
        Incompatible: for a deterministic solver, or for the guard with one that scores without a Gaussian density.
    """

    name = "flow_grpo"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        clip: float | None = None,
        guard: bool = False,
        noise_weight: bool | None = None,
        **options: Any,
    ) -> None:
        self.guard = self.compares_means = guard
        super().__init__(policy, reward, **options)
        if guard and not self._solver.gaussian:
            raise Incompatible(
                f"guard corrects the ratio of two Gaussian densities, and solver '{self._plan.solver}' scores without "
                "one: use solver 'sde' or 'dance'"
            )
        self.clip = clip if clip is not None else 2e-6 if guard else 1e-5 if self.windows.fast else 1e-4
        if not self.clip > 0:
            raise Refusal(f"expected clip above 0, got {self.clip}")
        self.noise_weight = self.windows.branch if noise_weight is None else noise_weight

    def objective(self, steps: Steps) -> tuple[Tensor, Tensor]:
        change = steps.log_prob - steps.old_log_prob
        if self.guard:
            change = (change + steps.divergence()) * steps.now.std.flatten()
        each = grpo_loss(change, torch.zeros_like(change), steps.advantage, clip=self.clip)
        if self.guard:
            each = each / steps.dt
        if self.noise_weight:
            each = each * steps.now.std.flatten() / self._mean_noise(steps.t)
        return each, torch.expm1(change.detach()).abs() > self.clip

    def _mean_noise(self, t: Tensor) -> Tensor:
        """The mean q of the steps that may be trained, by their schedules [B, T+1]: [B]."""
        here, after = t[:, :-2].flatten(), t[:, 1:-1].flatten()
        cap = t[:, 1:2].expand_as(t[:, :-2]).flatten()
        none = torch.zeros(len(here), 1, device=t.device)
        return self._solver.transition(none, none, here, after, cap).std.reshape(len(t), -1).mean(1)
