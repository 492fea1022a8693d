"""Cold start: flow matching on pairs, supervised (OARS eq. 5; Lipman et al. 2022, arXiv 2210.02747).

    loss = ||v - v_theta(x_t, t | LR, prompt)||^2,   x_t = (1 - t) x0 + t eps,   v = eps - x0,

x0 being the ground truth's latent.
"""

from collections.abc import Collection
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.agents.timesteps import DENSITIES, corrupt, draw_times
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["ColdStart"]


class ColdStart(FlowAgent):
    """Supervised fine-tuning by flow matching; trains the LoRA of a policy with adapters, all weights of one without.

    A policy may define `auxiliary_loss(image [N, 3, H, W], cond) -> TensorDict of loss_*`, losses of its own encoder
    (the compact policy's mean and spread). They are added when all weights are trained; contexts are then encoded
    inside `loss`, with gradient.

    Args:
        policy: with adapters, or trained whole.
        reward: taken so that every agent is built alike; not used.
        time: "uniform" or "logit_normal".
        shift: moves times towards noise, see `shift_times`; 1 leaves them.
        draws: times of each pair in an iteration.
        epochs: optimiser steps of an iteration, each on all rows, with fresh noise and times.
        ema, provides: see `Agent`.

    Raises:
        Incompatible: when `provides` has no "hr".
    """

    name = "cold_start"
    needs = frozenset({Need.HR})

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        time: str = "uniform",
        shift: float = 1.0,
        draws: int = 1,
        epochs: int = 1,
        ema: float = 0.99,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(policy, None, group_size=draws, epochs=epochs, ema=ema, provides=provides)
        if time not in DENSITIES or shift <= 0:
            raise Refusal(f"expected time of {DENSITIES} and shift above 0, got '{time}' and {shift}")
        self.time, self.shift = time, shift
        self.encodes = not policy.has_adapters and hasattr(policy, "auxiliary_loss")

    def prepare(self, rollout: TensorDict) -> TensorDict:
        """The contexts themselves.

        Raises:
            Incompatible: if they have no ground truth.
        """
        if rollout.get("hr", None) is None:
            raise Incompatible(
                "ColdStart learns from pairs, and these contexts have no 'hr': use contexts with ground truth "
                "(photographs, hr_folder, paired_folders)"
            )
        self.stats = {}
        return rollout.select("lr", "hr", "seed", *(() if self.encodes else ("cond",)))

    def workload(self) -> Workload:
        return Workload(self.group_size, times=1, epochs=self.epochs)

    def loss(self, batch: TensorDict) -> TensorDict:
        hr = batch["hr"]
        cond = self.policy.encode({"lr": batch["lr"], "prompt": None}) if self.encodes else batch["cond"]
        with torch.no_grad():
            x0 = self.policy.to_latent(hr, cond)
        noise = Noise(derive_seeds(0, self.updates, batch["seed"], stream="cold_start"), x0.device)
        t = draw_times(noise, self.time, shift=self.shift)
        eps = noise.normal(x0.shape[1:], x0.dtype)
        error = (self._velocity(corrupt(x0, eps, t), t, cond) - (eps - x0)).square()
        terms: dict[str, Tensor] = {"loss_flow": error.mean()}
        if self.encodes:
            extra: Any = self.policy.auxiliary_loss(hr, cond)  # type: ignore[operator]
            terms |= dict(extra.items())
        return TensorDict(terms)
