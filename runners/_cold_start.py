"""Flow matching with all weights trained; gives way to srgym.agents.ColdStart."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict

from srgym.policies.base import FlowPolicy
from srgym.policies.noise import Noise, derive_seeds


class ColdStart:
    needs: frozenset[Any] = frozenset()
    sampling = None
    sampler = "default"
    group_size = 1
    epochs = 1
    encodes = True

    def __init__(self, policy: FlowPolicy, reward: Any = None, *, ema: float = 0.999) -> None:
        self.policy, self._ema, self.steps = policy, ema, 0
        self.stats: dict[str, float] = {}
        self._average = {name: p.detach().clone() for name, p in policy.trainable_parameters()}

    def prepare(self, rollout: TensorDict) -> TensorDict:
        return rollout

    def loss(self, batch: TensorDict) -> TensorDict:
        policy: Any = self.policy
        cond = policy.encode({"lr": batch["lr"], "prompt": None})
        terms = policy.auxiliary_loss(batch["hr"], cond)
        x0 = policy.to_latent(batch["hr"], cond)
        noise = Noise(derive_seeds(0, 0, batch["seed"], stream="times"), x0.device)
        t, eps = noise.uniform(), noise.normal(x0.shape[1:])
        s = t.reshape(-1, *[1] * (x0.dim() - 1))
        v = policy.velocity((1 - s) * x0 + s * eps, t, cond).float()
        terms["loss_flow"] = (v - (eps - x0)).square().mean()
        return terms

    @torch.no_grad()
    def after_update(self) -> None:
        self.steps += 1
        decay = min((1 + self.steps) / (10 + self.steps), self._ema)
        for name, parameter in self.policy.trainable_parameters():
            self._average[name].lerp_(parameter.detach(), 1 - decay)

    def after_iteration(self) -> None:
        pass

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        own = {name: p.data for name, p in self.policy.trainable_parameters()}
        for name, parameter in self.policy.trainable_parameters():
            parameter.data = self._average[name].to(parameter.device)
        try:
            yield
        finally:
            for name, parameter in self.policy.trainable_parameters():
                parameter.data = own[name]

    def state(self) -> dict[str, Any]:
        return {**{f"average/{name}": value for name, value in self._average.items()}, "steps": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.steps = int(state["steps"])
        for name, value in self._average.items():
            value.copy_(state[f"average/{name}"])
