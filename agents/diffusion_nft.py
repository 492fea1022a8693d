"""DiffusionNFT: negative-aware fine-tuning on the forward process (Zheng et al. 2025, arXiv 2509.16117; OARS eq. 6-8).

Each sample x0 of the old policy, of optimality r in [0, 1] among its group, is noised anew, and the learner's velocity
enters twice: mixed towards itself (v+) and away from itself (v-). Good samples pull v+ to their velocity v = eps - x0,
bad ones v-:

    v+ = (1 - b) v_old + b v_theta      v- = (1 + b) v_old - b v_theta
    loss = r ||v+ - v||^2 + (1 - r) ||v- - v||^2

With D = v_theta - v_old, A the clipped advantage, c its clip and norms that are means, (c/b) times that loss is
(c/b) ||v_old - v||^2 + c b ||D||^2 + 2 A <D, v_old - v>: c b is the trust region, and the best D is
E[A (v - v_old)] / (c b).
No likelihoods, no trajectories: any solver may collect.

Fine-tuning makes velocities longer than the base's, and images harsher; `norm_guard` (NormGuard, Pan et al. 2026, arXiv
2606.27771) is a hinge on that, mean max(0, ||v_theta|| / ||v_base|| - 1) at its weight. Of the paper the abstract alone
was at hand, which names the hinge: that it is relative, and how it is weighed, are this library's choices.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.forward import ForwardAgent
from srgym.agents.groups import optimality
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Reward

__all__ = ["FORMS", "DiffusionNFT", "nft_loss", "norm_excess"]

FORMS = ("self_normalised", "plain")


def nft_loss(
    v_theta: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    r: Tensor,
    *,
    beta: float = 1.0,
    clip: float = 1.0,
    form: str = "self_normalised",
) -> Tensor:
    """DiffusionNFT's loss of each sample.

    Args:
        v_theta, v_old: the learner's and the old policy's velocities at (x_t, t), [B, ...].
        x_t: (1 - t) x0 + t eps, [B, ...]. t: [B] in (0, 1]. x0: the samples, [B, ...].
        r: their optimality, [B] in [0, 1].
        beta: b, how far v+ and v- lie from v_old.
        clip: c, the clip of the advantage behind r; only the self-normalised form is scaled by it.
        form: "plain", OARS eq. 8 as it stands; or "self_normalised", the published code's
            (c / b) [r L+ + (1 - r) L-] with L the squared error of the clean estimate x_t - t v+- over its own mean
            absolute error (at least 1e-5, no gradient), which equals t MSE(v+- - v) / MAE(v+- - v).

    Returns:
        [B].
    """
    if form not in FORMS:
        raise Refusal(f"nft_loss has the forms {' and '.join(FORMS)}, got '{form}'")
    v_old = v_old.detach()
    positive = (1 - beta) * v_old + beta * v_theta
    negative = (1 + beta) * v_old - beta * v_theta
    s = t.to(x_t.dtype).reshape(-1, *[1] * (x_t.dim() - 1))
    if form == "plain":
        v = (x_t - x0) / s
        return r * _mean((positive - v).square()) + (1 - r) * _mean((negative - v).square())

    def normalised(velocity: Tensor) -> Tensor:
        error = x_t - s * velocity - x0
        return _mean(error.square()) / _mean(error.detach().abs()).clamp_min(1e-5)

    return clip / beta * (r * normalised(positive) + (1 - r) * normalised(negative))


def norm_excess(v: Tensor, v_base: Tensor) -> Tensor:
    """By what share the velocity is longer than the base's; 0 where it is shorter: [B]."""
    ours, theirs = (torch.linalg.vector_norm(u.flatten(1), dim=1) for u in (v, v_base))
    return torch.relu(ours / theirs - 1)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


class DiffusionNFT(ForwardAgent):
    """DiffusionNFT, and under `clip=1` OARS.

    Args:
        policy, reward: see `ForwardAgent`.
        beta: b.
        clip: c; 1 is OARS's text, 5 the published code's.
        form: see `nft_loss`.
        adv_mode: which advantages count, see `srgym.agents.groups.optimality`.
        norm_guard: weight of `norm_excess`.
        kl, old, options: see `ForwardAgent`; k is kl.
    """

    name = "diffusion_nft"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        beta: float = 1.0,
        clip: float = 1.0,
        form: str = "self_normalised",
        adv_mode: str = "all",
        norm_guard: float = 0.0,
        kl: float = 1e-4,
        old: str | float = "linear",
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, kl=kl, old=old, **options)
        if not (beta > 0 and clip > 0 and norm_guard >= 0):
            raise Refusal(
                f"expected beta and clip above 0 and norm_guard of at least 0, got {beta}, {clip} and {norm_guard}"
            )
        if form not in FORMS:
            raise Refusal(f"expected form of {FORMS}, got {form}")
        self.beta, self.clip, self.form, self.adv_mode, self.norm_guard = beta, clip, form, adv_mode, norm_guard
        optimality(torch.zeros(0), clip, adv_mode)  # refuses an unknown mode now

    @property
    def asks_base(self) -> bool:
        return self.kl > 0 or self.norm_guard > 0

    def prepare(self, rollout: TensorDict) -> TensorDict:
        rows = super().prepare(rollout)
        return rows.set("optimality", optimality(rows["advantage"], self.clip, self.adv_mode))

    def loss(self, batch: TensorDict) -> TensorDict:
        x0, _, x_t, cond = self._noised(batch)
        v, v_old, v_base = self._velocities(x_t, batch["t"], cond)
        each = nft_loss(
            v, v_old, x_t, batch["t"], x0, batch["optimality"], beta=self.beta, clip=self.clip, form=self.form
        )  # fmt: skip
        terms = {"loss_policy": each.mean(), "deviation": (v.detach() - v_old).square().mean()}
        if self.norm_guard > 0 and v_base is not None:
            excess = norm_excess(v, v_base).mean()
            terms |= {"loss_norm": self.norm_guard * excess, "norm_excess": excess.detach()}
        return TensorDict(terms | self._held(v, v_base))
