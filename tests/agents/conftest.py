"""A flow whose velocity is known in closed form, a reward whose optimum is known, and the loop around an agent.

The toy's data is Gaussian: x0 ~ N(m, s^2), m the LR image plus a learnt shift of each channel, so E[v | x_t] is exact
and the samples' mean is m. Its three parameters sit in a LoRA of rank 1 on a linear map of a constant. The reward is
best where the shift is TARGET.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.policies.base import FlowPolicy
from srgym.policies.noise import derive_seeds
from srgym.rewards import make

SPREAD = 0.1
TARGET = (0.1, -0.06, 0.08)


class _Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(1, 3, bias=False)
        nn.init.zeros_(self.shift.weight)


class ToyPolicy(FlowPolicy):
    name = "toy"
    scale = 2
    lora_targets = ("shift",)

    def __init__(self) -> None:
        super().__init__()
        self.net = _Shift()
        self.calls: list[tuple[int, bool]] = []  # (rows, with gradient) of each velocity

    @property
    def core(self) -> nn.Module:
        return self.net

    def learnt(self) -> Tensor:
        """The shift under the active adapter, [3]."""
        weight = self.net.shift.weight
        return self.net.shift(torch.ones(1, 1, dtype=weight.dtype))[0]

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        lr = obs["lr"]
        mean = lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return TensorDict({"mean": mean}, batch_size=[len(lr)])

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        s = t.to(x.dtype).reshape(-1, 1, 1, 1)
        mean = cond["mean"].to(x.dtype) + self.learnt().to(x.dtype).reshape(1, 3, 1, 1)
        variance = ((1 - s) * SPREAD) ** 2 + s**2
        centred = x - (1 - s) * mean
        v = s / variance * centred - (mean + (1 - s) * SPREAD**2 / variance * centred)
        self.calls.append((len(x), v.requires_grad))
        return v

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        return x0.clamp(0, 1)

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        return image

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["mean"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1.0, 0.0, steps + 1)


def closeness(sr: Tensor, lr: Tensor) -> Tensor:
    """- ||mean of each channel of SR - (that of LR + TARGET)||^2."""
    error = sr.mean((2, 3)) - lr.mean((2, 3)) - torch.tensor(TARGET, dtype=sr.dtype)
    return -error.square().sum(1)


def contexts(index: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts by number: LR [G, 3, 2, 2], and HR [G, 3, 4, 4] whose distribution is the one at TARGET."""
    generators = [torch.Generator().manual_seed(int(i)) for i in index]
    lr = torch.stack([0.4 + 0.2 * torch.rand(3, 2, 2, generator=g) for g in generators])
    noise = torch.stack([torch.randn(3, 4, 4, generator=g) for g in generators])
    mean = lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return lr, (mean + torch.tensor(TARGET).reshape(3, 1, 1) + SPREAD * noise).clamp(0, 1)


def toy_policy(adapters: bool = True, seed: int = 0) -> ToyPolicy:
    policy = ToyPolicy()
    if adapters:
        policy.add_adapters(rank=1, alpha=1.0, seed=seed)
    return policy


def differentiable_reward() -> Any:
    from srgym.rewards.base import Reward
    from srgym.rewards.info import describe

    return Reward(closeness, describe(closeness, "closeness", differentiable=True))


def collect(agent: Any, index: Tensor, seed: int = 0, iteration: int = 0) -> TensorDict:
    """What a runner hands to `prepare`."""
    policy, size = agent.policy, agent.group_size
    lr, hr = contexts(index)
    rows = index.repeat_interleave(size)
    batch = TensorDict(
        {
            "index": rows,
            "group": torch.arange(len(index)).repeat_interleave(size),
            "seed": derive_seeds(seed, iteration, rows, torch.arange(size).repeat(len(index))),
            "lr": lr.repeat_interleave(size, 0),
            "hr": hr.repeat_interleave(size, 0),
        },
        batch_size=[len(rows)],
    )
    if agent.sampling is None:
        with torch.no_grad():
            batch["cond"] = policy.encode({"lr": batch["lr"]})
        return batch
    with torch.no_grad(), policy.adapter(agent.sampler):
        batch.update(policy.rollout({"lr": lr}, agent.sampling, batch["seed"]))
    scored = agent.reward(batch["sr"], lr=batch["lr"], hr=batch["hr"])
    batch["reward"], batch["valid"] = scored.total, scored.valid
    batch["components"] = TensorDict(dict(scored.components), batch_size=batch.batch_size)
    return batch


def step(agent: Any, rows: TensorDict, optimizer: Any, microbatch: int = 10**6) -> dict[str, float]:
    """One optimiser step, accumulated over microbatches."""
    optimizer.zero_grad()
    logged: dict[str, float] = {}
    for start in range(0, len(rows), microbatch):
        part = rows[start : start + microbatch]
        with agent.policy.adapter("default"):
            terms = agent.loss(part)
            sum(v for k, v in terms.items() if k.startswith("loss_")).mul(len(part) / len(rows)).backward()
        for key, value in terms.items():
            logged[key] = logged.get(key, 0.0) + float(value.detach()) * len(part) / len(rows)
    optimizer.step()
    agent.after_update()
    return logged


def train(agent: Any, iterations: int, lr: float, seed: int = 0, groups: int = 4) -> list[dict[str, float]]:
    """A run."""
    optimizer = torch.optim.AdamW([p for _, p in agent.policy.trainable_parameters()], lr=lr, weight_decay=0.0)
    log = []
    for iteration in range(iterations):
        index = torch.arange(groups) + groups * iteration
        rows = agent.prepare(collect(agent, index, seed, iteration))
        for part in agent.batches(rows):
            log.append(step(agent, part, optimizer))
        agent.after_iteration()
    return log


def distance(policy: ToyPolicy, adapter: str | None = "default") -> float:
    """How far the learnt shift is from the reward's optimum."""
    with torch.no_grad(), policy.adapter(adapter):
        return float((policy.learnt() - torch.tensor(TARGET)).norm())


@pytest.fixture
def toy() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(
        policy=toy_policy, reward=differentiable_reward, closeness=closeness, contexts=contexts, collect=collect,
        step=step, train=train, distance=distance, target=TARGET, spread=SPREAD, make=make,
    )  # fmt: skip
