"""Centred reward distillation (Zhu et al. 2026, arXiv 2603.14128): implicit rewards regressed on the rewards.

The optimum of a reward under a KL penalty is a policy whose log-ratio to the reference is the reward, up to a constant
of the context. Both are centred in the group, which takes the constant away, and the one is regressed on the other:

    loss = (c / beta) mean [beta (R - mean R) - (r - mean r)]^2,   R = e_ref - e_theta,

r in [0, 1] being a sample's optimality at the clip c (see DiffusionNFT) and e the matching error of the velocity, by
default over its own mean absolute error: ||v_theta - v||^2 / sg(mean |v_theta - v|), v = eps - x0. Three policies stand
beside the learner, each apart from the others: the one that samples (`old`), the reference, which follows the learner
faster, and the base, which a penalty on the velocity holds on to, more firmly at a good sample.

The equations are those of the implementation in Flow-Factory (github.com/X-GenGroup/Flow-Factory), which follows the
authors'; its uniform centring is the one here. Samples of a group share their times and noise here, and have their own
there. Any solver may collect.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.ema import old_decay
from srgym.agents.flow import matching_error
from srgym.agents.grouped import GroupedAgent
from srgym.agents.groups import optimality
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["CRD", "crd_loss"]

_LEAST_KL = 1e-4  # the penalty's weight at the worst sample


def crd_loss(implicit: Tensor, reward: Tensor, *, beta: float = 1.0, clip: float = 1.0) -> Tensor:
    """CRD's loss of each sample.

    Args:
        implicit: R - mean R, the mean being the group's and without gradient, [B]. reward: r - mean r, [B].
        beta: what an implicit reward counts. clip: c.

    Returns:
        [B].
    """
    return clip / beta * (beta * implicit - reward).square()


class CRD(GroupedAgent):
    """CRD.

    Args:
        policy, reward: see `ForwardAgent`.
        beta: what an implicit reward counts against a reward.
        clip: c.
        normalised: whether e is divided by the mean absolute error.
        reference: how the reference follows the learner, once an iteration: as `old`.
        kl: the penalty's weight at the best sample; at 0 the base isn't run.
        kl_adaptive: whether the weight falls with r, to 1e-4 at the worst sample.
        kl_guidance: the base's scale of classifier-free guidance, for policies that have one; 4.5 in the published
            code.
        old, options: see `ForwardAgent`.
    """

    name = "crd"
    reference = "reference"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        beta: float = 1.0,
        clip: float = 5.0,
        normalised: bool = True,
        reference: str | float = "rising",
        kl: float = 0.1,
        kl_adaptive: bool = True,
        kl_guidance: float = 1.0,
        old: str | float = "delayed",
        **options: Any,
    ) -> None:
        if not (beta > 0 and clip > 0 and kl_guidance >= 1):
            raise Refusal(
                f"expected beta and clip above 0 and kl_guidance of at least 1, got {beta}, {clip} and {kl_guidance}"
            )
        old_decay(reference, 0)  # refuses an unknown schedule now
        super().__init__(policy, reward, kl=kl, old=old, **options)
        self.beta, self.clip, self.normalised, self.reference_schedule = beta, clip, normalised, reference
        self.kl_adaptive, self.kl_guidance = kl_adaptive, kl_guidance
        policy.add_snapshot("reference")
        policy.sync("default", "reference")  # it may have been there

    def completed(self, rows: TensorDict) -> TensorDict:
        """With R's e_ref and both of the group's means."""
        error, reference = self._errors(rows)
        r, place = optimality(rows["advantage"], self.clip), self._place(rows)
        count = self._sums(torch.ones_like(r), place)

        def centre(values: Tensor) -> Tensor:
            return (self._sums(values, place) / count)[place].float()

        columns = {"reference_error": reference, "centre": centre(reference - error), "optimality": r}
        return rows.copy().update({**columns, "centred": r - centre(r)})

    def loss(self, batch: TensorDict) -> TensorDict:
        x0, eps, x_t, cond = self._noised(batch)
        v_base = self._base_velocity(x_t, batch["t"], cond) if self.kl > 0 else None
        v = self._velocity(x_t, batch["t"], cond)
        implicit = batch["reference_error"] - self._error(v, eps - x0) - batch["centre"]
        each = crd_loss(implicit, batch["centred"], beta=self.beta, clip=self.clip)
        terms = {"loss_policy": each.mean(), "implicit": implicit.detach().abs().mean()}
        if v_base is not None:
            drift = matching_error(v, v_base)
            least = min(_LEAST_KL / self.kl, 1.0)
            weight = least + (1 - least) * batch["optimality"] if self.kl_adaptive else torch.ones_like(drift)
            terms |= {"loss_kl": self.kl * (weight * drift).mean(), "kl": drift.detach().mean()}
        return TensorDict(terms)

    def _error(self, v_hat: Tensor, v: Tensor) -> Tensor:
        error = matching_error(v_hat, v)
        return error / (v_hat.detach() - v).abs().flatten(1).mean(1).clamp_min(1e-5) if self.normalised else error

    @torch.no_grad()
    def _base_velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        if self.kl_guidance == 1.0:
            return self._velocity_of(None, x, t, cond)
        with self.policy.adapter(None):
            return self.policy.guided_velocity(x, t, cond, self.kl_guidance).float()

    def after_iteration(self) -> None:
        super().after_iteration()
        self.policy.sync("default", "reference", old_decay(self.reference_schedule, self.updates))

    def workload(self) -> Workload:
        plain = super().workload()
        beside = dict(plain.beside)
        if self.kl > 0 and self.kl_guidance != 1.0:
            beside[None] = 2.0
        return Workload(plain.group_size, plain.steps, plain.times, plain.epochs, beside)
