"""Training the tokens of a policy that writes images: reconstruction, before anything is written with them."""

from collections.abc import Collection
from typing import Any, ClassVar

from tensordict import TensorDict

from srgym.agents.base import Agent, Need
from srgym.policies.tokens import AutoregressivePolicy
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["Codec"]


class Codec(Agent):
    """Reconstruction of ground truth through a policy's own tokens; the policy's `codec_loss` says how.

    Args:
        policy: one that has a codec of its own (compact_vlcot), without adapters.
        reward: taken so that every agent is built alike; not used.
        epochs: optimiser steps of an iteration.
        ema, provides: see `Agent`.

    Raises:
        Incompatible: for a policy whose tokens are another model's, or one with adapters.
    """

    name = "codec"
    needs = frozenset({Need.HR})
    trains: ClassVar[Any] = AutoregressivePolicy
    encodes = True

    def __init__(
        self,
        policy: AutoregressivePolicy,
        reward: Reward | None = None,
        *,
        epochs: int = 1,
        ema: float = 0.99,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(policy, None, epochs=epochs, ema=ema, provides=provides)
        if not hasattr(policy, "codec_loss") or policy.has_adapters:
            raise Incompatible(
                f"Codec trains a policy's own tokens (compact_vlcot, lora=null), and '{policy.name}' "
                f"{'has adapters' if policy.has_adapters else 'uses those of another model'}: take TokenColdStart"
            )

    def prepare(self, rollout: TensorDict) -> TensorDict:
        self.stats = {}
        return rollout.select("lr", "hr")

    def workload(self) -> Workload:
        return Workload(1, times=1, epochs=self.epochs)

    def loss(self, batch: TensorDict) -> TensorDict:
        cond = self.policy.encode({"lr": batch["lr"], "prompt": None})
        terms: TensorDict = self.policy.codec_loss(batch["hr"], cond)
        return terms
