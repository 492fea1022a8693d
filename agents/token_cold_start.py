"""Cold start of a policy that writes: next-token cross-entropy on true documents (RealSR-R1, arXiv 2506.16796, eq. 4).

    loss = -mean of log p(token | what stands before it)

over words and image tokens; what the grammar forces costs nothing. The released code adds a z-loss, 1e-5 (log Z)^2, Z
being the softmax's normaliser (here over what may stand at a place).
"""

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from tensordict import TensorDict

from srgym.agents.base import Agent, Need
from srgym.errors import Refusal
from srgym.policies.tokens import IMAGE, WORD, AutoregressivePolicy
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["TokenColdStart"]


class TokenColdStart(Agent):
    """Supervised fine-tuning on documents; trains the LoRA of a policy with adapters, all weights of one without.

    Args:
        policy: what writes.
        reward: taken so that every agent is built alike; not used.
        words: the weight of a word, an image token's being 1.
        z_loss: the weight of the squared logarithm of the softmax's normaliser; 1e-5 in the code.
        epochs: optimiser steps of an iteration.
        ema, provides: see `Agent`.

    Raises:
        Incompatible: for a flow policy, or contexts without ground truth or descriptions.
    """

    name = "token_cold_start"
    needs = frozenset({Need.HR, Need.DOCUMENTS})
    trains: ClassVar[Any] = AutoregressivePolicy
    policy: AutoregressivePolicy

    def __init__(
        self,
        policy: AutoregressivePolicy,
        reward: Reward | None = None,
        *,
        words: float = 1.0,
        z_loss: float = 0.0,
        epochs: int = 1,
        ema: float = 0.99,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(policy, None, epochs=epochs, ema=ema, provides=provides)
        if words < 0 or z_loss < 0:
            raise Refusal(f"expected words and z_loss of 0 or more, got {words} and {z_loss}")
        self.words, self.z_loss = words, z_loss
        self.encodes = not policy.has_adapters

    def prepare(self, rollout: TensorDict) -> TensorDict:
        self.stats = {}
        return rollout.select("tokens", "place", "lr" if self.encodes else "cond")

    def workload(self) -> Workload:
        return Workload(1, times=1, epochs=self.epochs)

    def loss(self, batch: TensorDict) -> TensorDict:
        cond = self.policy.encode({"lr": batch["lr"], "prompt": None}) if self.encodes else batch["cond"]
        log_prob, entropy, log_z = self.policy.log_prob(batch["tokens"], batch["place"], cond)
        mode = self.policy.grammar.modes(batch["place"])
        kinds = {"word": mode == WORD, "image": mode == IMAGE}
        weight = self.words * kinds["word"] + 1.0 * kinds["image"]
        terms = {"loss_tokens": -(weight * log_prob).sum() / weight.sum().clamp_min(1e-9)}
        if self.z_loss:
            terms["loss_z"] = self.z_loss * (weight * log_z.square()).sum() / weight.sum().clamp_min(1e-9)
        with torch.no_grad():
            for name, kind in kinds.items():
                count = kind.sum().clamp_min(1)
                terms[f"nats_{name}"] = -(log_prob * kind).sum() / count
                terms[f"entropy_{name}"] = (entropy * kind).sum() / count
        return TensorDict(terms)
