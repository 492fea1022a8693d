"""MaPO: margin-aware preference optimisation without a reference (Hong et al. 2024, arXiv 2406.06424).

    loss = e_w - (1 / beta) log sigmoid(beta [phi(e_w) - phi(e_l)]),   phi(e) = e / (exp(e) - 1)   (eq. 9 to 11),

e = mean (v_theta - v)^2 on the winner and on the loser, noised by the same eps to the same t. The first term is flow
matching on winners; the second widens the margin until it is there. phi falls from 1 to 0 as e grows, so that a loser
can't be pushed away without end, and no other policy is run.

The published code (mapo-t2i/mapo) has phi(e / 2), 1000 in the place of beta and 0.1 in that of 1 / beta, on the errors
of a predicted noise.
"""

from typing import Any

from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from srgym.agents.flow import matching_error
from srgym.agents.paired import PairAgent
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.rewards.base import Reward

__all__ = ["MaPO", "mapo_margin", "mapo_score"]


def mapo_score(error: Tensor, *, scale: float = 1.0) -> Tensor:
    """phi(scale e), in (0, 1): [B] to [B]."""
    scaled = (scale * error).clamp_min(1e-12)
    return scaled / scaled.expm1()


def mapo_margin(err_win: Tensor, err_lose: Tensor, *, beta: float, scale: float = 1.0) -> Tensor:
    """How much better the winner scores: beta [phi(e_w) - phi(e_l)], all [B]."""
    return beta * (mapo_score(err_win, scale=scale) - mapo_score(err_lose, scale=scale))


class MaPO(PairAgent):
    """MaPO.

    Args:
        policy: with adapters, or trained whole.
        reward: see `PairAgent`.
        beta: how sharply winners and losers are told apart; the paper has 8 (preferences) to 1024 (personalisation).
        weight: of the margin against flow matching; None: 1 / beta.
        scale: of the errors inside phi.
        options: see `PairAgent`.
    """

    name = "mapo"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        beta: float = 8.0,
        weight: float | None = None,
        scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, **options)
        self.beta, self.weight, self.scale = beta, weight if weight is not None else 1 / beta if beta else 0.0, scale
        if not (beta > 0 and self.weight > 0 and scale > 0):
            raise Refusal(f"expected beta, weight and scale above 0, got {beta}, {weight} and {scale}")

    def loss(self, batch: TensorDict) -> TensorDict:
        v, *at = self._noised(batch)
        err_win, err_lose = matching_error(self._velocity(*at), v).chunk(2)
        margin = mapo_margin(err_win, err_lose, beta=self.beta, scale=self.scale)
        told = margin.detach()
        return TensorDict(
            {
                "loss_flow": (batch["weight"] * err_win).mean(),
                "loss_policy": self.weight * (batch["weight"] * -F.logsigmoid(margin)).mean(),
                "margin": told.mean(),
                "accuracy": (told > 0).to(told.dtype).mean(),
            }
        )
