"""DPO for flow models (Wallace et al. 2023, arXiv 2311.12908), on the policy's own samples or on a preference dataset.

    L = -log sigmoid(-(beta / 2) [(e_theta(w) - e_base(w)) - (e_theta(l) - e_base(l))]),   e = mean (v_hat - v)^2,

winner and loser noised by the same eps to the same t. Pairs of a group: the best and the worst sample, or the top N
against the bottom N with the weights of DP2O-SR (arXiv 2510.18851).

Of a policy that writes, e is minus a document's log-probability, summed over its tokens: DPO as it was for language
(Rafailov et al. 2023, arXiv 2305.18290), whose beta is half of this one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from srgym.agents.flow import matching_error
from srgym.agents.paired import PairAgent
from srgym.agents.rows import make_rows, shared
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.tokens import AutoregressivePolicy, TokenSampling
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["DPO", "dpo_loss", "dpo_margin"]

_SMOOTHING, _WARM_UP = 0.9, 10  # of accuracy and margin, in updates


def dpo_margin(err_win: Tensor, ref_win: Tensor, err_lose: Tensor, ref_lose: Tensor, *, beta: float) -> Tensor:
    """The implicit reward of the winner over the loser, -(beta / 2) [(e_w - ref_w) - (e_l - ref_l)]: all [B]."""
    return -0.5 * beta * ((err_win - ref_win) - (err_lose - ref_lose))


def dpo_loss(err_win: Tensor, ref_win: Tensor, err_lose: Tensor, ref_lose: Tensor, *, beta: float) -> Tensor:
    """Diffusion-DPO's loss of each pair.

    Args:
        err_win, err_lose: the learner's mean squared errors of the velocity on winner and loser, [B].
        ref_win, ref_lose: the base's.
        beta: the strength of the tie to the base.

    Returns:
        [B].
    """
    return -F.logsigmoid(dpo_margin(err_win, ref_win, err_lose, ref_lose, beta=beta))


class DPO(PairAgent):
    """Diffusion-DPO, and DPO of documents.

    Args:
        policy: with adapters; the base is the reference. One that writes has pairs of its own samples alone.
        reward: see `PairAgent`.
        beta: published code of flows ranges from 100 to 5000; None: 2000, and 0.2 of documents.
        temperature: of the rollout of a policy that writes.
        stop_accuracy, stop_margin: `finished` is set once the smoothed accuracy and the smoothed margin are both
            beyond these: the pairs are told apart, and the margin only grows.
        options: see `PairAgent`.
    """

    name = "dpo"
    trains: ClassVar[Any] = (FlowPolicy, AutoregressivePolicy)

    def __init__(
        self,
        policy: FlowPolicy | AutoregressivePolicy,
        reward: Reward | None = None,
        *,
        beta: float | None = None,
        temperature: float = 1.0,
        stop_accuracy: float = 0.98,
        stop_margin: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, **options)
        self._require_adapters("the base")
        self._writer = policy if isinstance(policy, AutoregressivePolicy) else None
        if self._writer is not None:
            if self.offline:
                raise Incompatible(
                    f"pairs='offline' are pairs of images, and '{policy.name}' learns from whole documents: take "
                    "pairs='best_worst' or 'top_n', or a flow policy"
                )
            self.sampling = TokenSampling(temperature)
        self.beta = beta if beta is not None else 2000.0 if self._writer is None else 0.2
        if not self.beta > 0:
            raise Refusal(f"expected beta above 0, got {self.beta}")
        self.stop_accuracy, self.stop_margin = stop_accuracy, stop_margin
        self._smooth = {"accuracy": 0.0, "margin": 0.0, "weight": 0.0}

    def prepare(self, rollout: TensorDict) -> TensorDict:
        if self._writer is None:
            return super().prepare(rollout)
        pairs = self._pair(rollout)
        return make_rows(rollout.select("tokens", "place", "cond"), pairs.win, lose=pairs.lose, weight=pairs.weight)

    def loss(self, batch: TensorDict) -> TensorDict:
        errors = self._flow_errors(batch) if self._writer is None else self._document_errors(self._writer, batch)
        (err_win, err_lose), (ref_win, ref_lose) = (each.chunk(2) for each in errors)
        each = dpo_loss(err_win, ref_win, err_lose, ref_lose, beta=self.beta)
        margin = dpo_margin(err_win, ref_win, err_lose, ref_lose, beta=self.beta).detach()
        return TensorDict(
            {
                "loss_policy": (batch["weight"] * each).mean(),
                "margin": margin.mean(),
                "accuracy": (margin > 0).to(margin.dtype).mean(),
            }
        )

    def _document_errors(self, policy: AutoregressivePolicy, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """The learner's errors and the base's, winners before losers: [2 B] each."""
        samples, sample = shared(batch)
        both = torch.cat([sample, batch["lose"]])
        document = (samples["tokens"][both], samples["place"][both], samples["cond"][both])
        with torch.no_grad(), policy.adapter(None):
            reference = -policy.log_prob(*document).log_prob.sum(1)
        return -policy.log_prob(*document).log_prob.sum(1), reference

    def _flow_errors(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """As `_document_errors`."""
        v, *at = self._noised(batch)
        reference = matching_error(self._velocity_of(None, *at), v)
        return matching_error(self._velocity(*at), v), reference

    def observe(self, terms: Mapping[str, float]) -> None:
        now = {"accuracy": terms["accuracy"], "margin": terms["margin"], "weight": 1.0}
        self._smooth = {k: _SMOOTHING * held + (1 - _SMOOTHING) * now[k] for k, held in self._smooth.items()}

    @property
    def finished(self) -> bool:
        """Whether winners and losers are told apart almost always and the margin still grows: time to stop."""
        weight = max(self._smooth["weight"], 1e-12)
        accuracy, margin = self._smooth["accuracy"] / weight, self._smooth["margin"] / weight
        return self.updates >= _WARM_UP and accuracy >= self.stop_accuracy and margin >= self.stop_margin

    def workload(self) -> Workload:
        return replace(super().workload(), beside={None: 1.0})

    def state(self) -> dict[str, Tensor | float | int]:
        return super().state() | {f"smooth_{name}": value for name, value in self._smooth.items()}

    def load_state(self, state: Mapping[str, Tensor | float | int]) -> None:
        super().load_state(state)
        self._smooth = {name: float(state[f"smooth_{name}"]) for name in self._smooth}
