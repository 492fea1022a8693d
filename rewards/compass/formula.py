"""COMPASS, the reward of OARS: fidelity-weighted quality of the input plus a gated perceptual gain.

R = F Q_LR + F^(Q_LR / gamma) (Q_SR - Q_LR), with fidelity F in [0, 1] and qualities Q in [1, 5] (OARS, eq. 4). The
better the input already is, the less fidelity may be lost for a gain in quality.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.base import Incompatible, RewardOutput, follow
from srgym.rewards.later import Later, then
from srgym.rewards.registry import make, register_reward
from srgym.rewards.scorers import Scorer, gradient_reaches, make_scorer

__all__ = ["FORMS", "MODES", "Compass", "compass", "gated_gain", "group_median", "linear", "lowest"]

MODES = ("non_reference", "full_reference")
FORMS = ("compass", "delta_q", "gated", "linear")

# F = 1 - DISTS of an image with itself can exceed 1 by rounding, and 0 has no finite derivative under a power.
_LEAST_FIDELITY = 1e-6
_ROUNDING = 1e-4


def compass(fidelity: Tensor, q_lr: Tensor, q_sr: Tensor, gamma: float = 7.0) -> Tensor:
    """R = F Q_LR + F^(Q_LR / gamma) (Q_SR - Q_LR) (OARS, eq. 4).

    Args:
        fidelity: F in [0, 1]. q_lr, q_sr: in [1, 5]. Of one shape, which is returned.
        gamma: how late the gate closes.

    F = 1 gives Q_SR and F = 0 gives 0; R grows with F wherever quality was gained. At gamma 7, R lies in [-0.451, 5].
    An F just outside of [0, 1], as 1 - DISTS rounds to, gives a finite R with a finite gradient.
    """
    return fidelity * q_lr + gated_gain(fidelity, q_lr, q_sr, gamma)


def gated_gain(fidelity: Tensor, q_lr: Tensor, q_sr: Tensor, gamma: float = 7.0) -> Tensor:
    """The ablation's second form, F^(Q_LR / gamma) (Q_SR - Q_LR); 0 where F isn't above 0."""
    above = fidelity > 0  # the power of 0 has an infinite slope, that of a negative number is none
    gate = torch.where(above, torch.where(above, fidelity, 1.0) ** (q_lr / gamma), 0.0)
    return gate * (q_sr - q_lr)


def linear(fidelity: Tensor, q_lr: Tensor, q_sr: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The ablation's fixed weighing, w_f F + w_q (Q_SR - Q_LR); the paper doesn't print its weights."""
    return weights[0] * fidelity + weights[1] * (q_sr - q_lr)


def lowest(gamma: float) -> float:
    """The least COMPASS over F in [0, 1] and Q in [1, 5]: -0.451 at gamma 7.

    It is met at Q_SR = 1. There R = q F - (q - 1) F^(q / gamma), which is least at F = ((q - 1) / gamma)^(gamma /
    (gamma - q)) if q < gamma, and is (q - gamma) F at that point; for q >= gamma it isn't negative.
    """
    grid = (1 + step / 1000 for step in range(4001))
    least: list[float] = [(q - gamma) * ((q - 1) / gamma) ** (gamma / (gamma - q)) for q in grid if q < gamma]
    return min(0.0, *least)


def group_median(value: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Every row's group median of `value` over the valid rows; NaN in a group that has none. All [B]."""
    same = (group[:, None] == group[None, :]) & valid[None, :]
    table = torch.where(same, value[None, :], torch.full_like(value, torch.nan)[None, :])
    return torch.nanquantile(table, 0.5, dim=1)


@register_reward(
    "compass",
    differentiable=True,  # with the compact scorer; an instance says of itself
    range=(-0.452, 5.0),
    weights="the compact scorer ships with the package, and fails 13 of its audit's 27 lines (mild blur, ringing, "
    "shift, ranks under faint noise, its gradient, all judges after REFL on it); an MLLM is served by `srgym serve "
    "compass --model PATH`",
    purpose="perceptual",
)
class Compass:
    """OARS's reward: fidelity-weighted input quality plus a gated perceptual gain.

    Components: `fidelity`, `q_lr`, `q_sr`, `delta_q` = Q_SR - Q_LR. Where `group` is given, Q_LR is the median of the
    group's valid ratings, since it belongs to the LR image that the group shares. No gradient flows through Q_LR.

    Args:
        scorer: "compact", "mllm", "soft", `{"name": ..., **options}`, or a `Scorer`.
        mode: "non_reference" takes F from the scorer; "full_reference" takes it from `fidelity` and needs `hr`.
        fidelity: the full-reference reward that is F, by name or mapping: "dists" (the paper's, needs VGG16 weights) or
            "structure_texture", or any whose totals lie in (-inf, 1].
        form: "compass", or an ablation: "delta_q" (form 1), "gated" (form 2), "linear".
        gamma: of "compass" and "gated"; the paper tries 5, 7, 9.
        weights: of F and of dQ in "linear".

    Raises:
        ValueError: for an unknown mode or form, or gamma <= 1.
        Incompatible: for a fidelity in non-reference mode, or one that isn't a full-reference reward with maximum 1.
    """

    def __init__(
        self,
        scorer: "Spec | Scorer" = "compact",
        mode: str = "non_reference",
        fidelity: Any = None,
        form: str = "compass",
        gamma: float = 7.0,
        weights: Sequence[float] = (1.0, 1.0),
    ) -> None:
        if mode not in MODES:
            raise Refusal(f"compass: expected a mode of {', '.join(MODES)}, got '{mode}'")
        if form not in FORMS:
            raise Refusal(f"compass: expected a form of {', '.join(FORMS)}, got '{form}'")
        if not 1 < gamma < math.inf:
            raise Refusal(f"compass: expected a finite gamma above 1, got {gamma}")
        if len(weights) != 2:
            raise Refusal(f"compass: expected two weights, of F and of dQ, got {list(weights)}")
        if mode == "non_reference" and fidelity is not None:
            raise Incompatible(
                "compass in non-reference mode takes F from its scorer and has no use for a fidelity; "
                "leave it out, or choose mode='full_reference'"
            )
        self.form, self.mode, self.gamma = form, mode, float(gamma)
        self.linear_weights = (float(weights[0]), float(weights[1]))
        self.fidelity = _fidelity("dists" if fidelity is None else fidelity) if mode == "full_reference" else None
        self.scorer = make_scorer(scorer)
        self.needs = frozenset({"lr"} if self.fidelity is None else {"lr", *self.fidelity.needs})
        self.differentiable = gradient_reaches(self.scorer) and (self.fidelity is None or self.fidelity.differentiable)
        self.range = self._range()

    def _range(self) -> tuple[float, float]:
        if self.form == "compass":
            return math.floor(lowest(self.gamma) * 1000) / 1000, 5.0
        if self.form != "linear":
            return -4.0, 4.0
        of_f, of_q = self.linear_weights
        return min(of_f, 0.0) - 4 * abs(of_q), max(of_f, 0.0) + 4 * abs(of_q)

    def __call__(
        self, sr: Tensor, lr: Tensor, hr: Tensor | None = None, group: Tensor | None = None
    ) -> Later[dict[str, Tensor]]:
        """Images [B, 3, H, W] to `total`, `valid` and the components, all [B]."""
        if isinstance(self.scorer, nn.Module):
            follow(self.scorer, sr.device)
        rated = self.scorer(lr, sr)
        close = None if self.fidelity is None else self.fidelity(sr, hr=hr, lr=lr)
        return then(rated, lambda rated: self._scored(rated, close, group, sr.device))

    def _scored(
        self, rated: Sequence[Any], close: RewardOutput | None, group: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        f, q_lr, q_sr, valid = (torch.as_tensor(column, device=device) for column in rated)
        valid = valid.bool() & _within(f, 0, 1) & _within(q_lr, 1, 5) & _within(q_sr, 1, 5)
        if close is not None:
            f, valid = close.total, valid & close.valid
        f = f.float().clamp(_LEAST_FIDELITY, 1.0)
        q_lr, q_sr = q_lr.detach().float(), q_sr.float()
        if group is not None:
            q_lr = group_median(q_lr, valid, group)
        total = self._total(f, q_lr, q_sr)
        parts = {"total": total, "fidelity": f, "q_lr": q_lr, "q_sr": q_sr, "delta_q": q_sr - q_lr}
        return {key: torch.where(valid, part, torch.nan) for key, part in parts.items()} | {"valid": valid}

    def _total(self, f: Tensor, q_lr: Tensor, q_sr: Tensor) -> Tensor:
        if self.form == "compass":
            return compass(f, q_lr, q_sr, self.gamma)
        if self.form == "gated":
            return gated_gain(f, q_lr, q_sr, self.gamma)
        if self.form == "linear":
            return linear(f, q_lr, q_sr, self.linear_weights)
        return q_sr - q_lr


def _fidelity(spec: Any) -> Any:
    reward = make(spec)
    if "hr" not in reward.needs or reward.range[1] != 1.0:
        raise Incompatible(
            f"compass needs as its fidelity a full-reference reward whose best score is 1, such as 'dists' or "
            f"'structure_texture'; '{reward.name}' needs {sorted(reward.needs)} and has the range {reward.range}"
        )
    return reward


def _within(column: Tensor, low: float, high: float) -> Tensor:
    """Which rows lie in [low, high] up to rounding; a NaN doesn't."""
    return (column >= low - _ROUNDING) & (column <= high + _ROUNDING)
