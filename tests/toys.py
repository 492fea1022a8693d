"""A policy, an agent and a task that are small enough to be known in closed form, and real runs of them.

The policy's data is Gaussian: x0 ~ N(m, s^2), m the LR image plus a learnt shift of each channel, so E[v | x_t] is
exact and the samples' mean is m. Its three parameters sit in a LoRA of rank 1 on a linear map of a constant. The reward
is best where the shift is TARGET. Everything around them is the library's own: `SRTask`, `collect`, `Runner`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.agents.base import Agent, Need
from srgym.agents.groups import group_advantage
from srgym.envs.sources import Sample, Source
from srgym.envs.task import SRTask
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.rewards import make
from srgym.rewards.base import Reward
from srgym.rewards.info import describe
from srgym.runners.loop import collect as loop
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings

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
        self.calls.append((len(x), torch.is_grad_enabled()))
        s = t.to(x.dtype).reshape(-1, 1, 1, 1)
        mean = cond["mean"].to(x.dtype) + self.learnt().to(x.dtype).reshape(1, 3, 1, 1)
        variance = ((1 - s) * SPREAD) ** 2 + s**2
        centred = x - (1 - s) * mean
        return s / variance * centred - (mean + (1 - s) * SPREAD**2 / variance * centred)

    def guided_velocity(
        self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float, *, detached: bool = False
    ) -> Tensor:
        positive = self.velocity(x, t, cond)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            negative = self.velocity(x, t, cond)
        return torch.lerp(negative, positive, guidance)

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        return x0.clamp(0, 1)

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        return image

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["mean"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1.0, 0.0, steps + 1)


class ToyAgent(Agent):
    """Reward-weighted regression: flow matching on the samples of `old`, weighted by the exponential advantage."""

    name = "toy"
    needs = frozenset({Need.GROUPS})
    sampler = "old"

    def __init__(self, policy: FlowPolicy, reward: Reward | None = None, **options: Any) -> None:
        super().__init__(policy, reward, **{"group_size": 4, "epochs": 2, **options})
        self.sampling = Sampling(steps=2)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        advantage = group_advantage(rollout["reward"], self.group_size, rollout["valid"])
        rows = rollout.select("x0", "cond", "seed").set("weight", advantage.exp())[rollout["valid"]]
        self.stats = {"dropped": float(len(rollout) - len(rows))}
        return rows

    def loss(self, batch: TensorDict) -> TensorDict:
        noise = Noise(derive_seeds(0, self.updates, batch["seed"], stream="toy"))
        x0, t, eps = batch["x0"], noise.uniform(), noise.normal(batch["x0"].shape[1:])
        s = t.reshape(-1, 1, 1, 1)
        error = self.policy.velocity((1 - s) * x0 + s * eps, t, batch["cond"]) - (eps - x0)
        weighted = batch["weight"] * error.square().flatten(1).mean(1)
        return TensorDict({"loss_flow": weighted.mean(), "weight": batch["weight"].mean()})


class ToySource(Source):
    """Contexts by number: LR [3, 2, 2], and HR [3, 4, 4] whose distribution is the one at TARGET."""

    scale, size, provides = 2, (2, 2), frozenset({"lr", "hr"})

    def __init__(self, length: int = 1000) -> None:
        self._length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        lr, hr = contexts(torch.tensor([index]))
        return Sample(str(index), lr[0], hr[0])


def contexts(index: Tensor) -> tuple[Tensor, Tensor]:
    """LR [G, 3, 2, 2] and HR [G, 3, 4, 4] by number."""
    generators = [torch.Generator().manual_seed(int(i)) for i in index]
    lr = torch.stack([0.4 + 0.2 * torch.rand(3, 2, 2, generator=g) for g in generators])
    noise = torch.stack([torch.randn(3, 4, 4, generator=g) for g in generators])
    mean = lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return lr, (mean + torch.tensor(TARGET).reshape(3, 1, 1) + SPREAD * noise).clamp(0, 1)


def closeness(sr: Tensor, lr: Tensor) -> Tensor:
    """- ||mean of each channel of SR - (that of LR + TARGET)||^2."""
    error = sr.mean((2, 3)) - lr.mean((2, 3)) - torch.tensor(TARGET, dtype=sr.dtype)
    return -error.square().sum(1)


def flawed(sr: Tensor, lr: Tensor, group: Tensor) -> dict[str, Tensor]:
    """`closeness` in two notes, of which the first of several images of the first context gets none."""
    score = closeness(sr, lr)
    several = (group == 0).sum() > 1
    return {"total": score, "distance": -score, "valid": (torch.arange(len(sr)) > 0) | (group > 0) | ~several}


def distance(policy: ToyPolicy, adapter: str | None = "default") -> float:
    """How far the learnt shift is from the reward's optimum."""
    with torch.no_grad(), policy.adapter(adapter):
        return float((policy.learnt() - torch.tensor(TARGET)).norm())


def digest(policy: FlowPolicy) -> str:
    """A hash of all weights, every adapter's too."""
    return sha256(b"".join(p.detach().numpy().tobytes() for p in policy.state_dict().values())).hexdigest()


@dataclass
class Toys:
    """Makes toys, and runs of them in one folder."""

    folder: Path
    target, spread = TARGET, SPREAD
    _runs: Any = field(default_factory=count, repr=False)

    make = staticmethod(make)
    closeness, contexts, distance = staticmethod(closeness), staticmethod(contexts), staticmethod(distance)
    agent = staticmethod(ToyAgent)

    @staticmethod
    def policy(adapters: bool = True, seed: int = 0) -> ToyPolicy:
        policy = ToyPolicy()
        if adapters:
            policy.add_adapters(rank=1, alpha=1.0, seed=seed)
        return policy

    @staticmethod
    def reward() -> Reward:
        return Reward(closeness, describe(closeness, "closeness", differentiable=True))

    @staticmethod
    def task(length: int = 7, reward: Reward | None = None) -> SRTask:
        return SRTask(ToySource(length), reward or Reward(flawed, describe(flawed, "flawed")))

    def collect(self, agent: Agent, index: Tensor, seed: int = 0, iteration: int = 0) -> TensorDict:
        """What a runner hands to `prepare`."""
        task = self.task(1000, agent.reward or self.reward())
        return loop.collect(task, agent.policy, agent, task.context(index), seed=seed, iteration=iteration)

    def run(self, *, task: SRTask | None = None, agent: Agent | None = None, seed: int = 5, **settings: Any) -> Runner:
        """A run that isn't begun yet."""
        agent = agent or ToyAgent(self.policy())
        own = {name: settings.pop(name) for name in ("loggers", "evaluation", "on_evaluation") if name in settings}
        chosen = {"iterations": 6, "contexts": 2, "lr": 1e-2, "prefetch": 0, "checkpoint_every": 2, **settings}
        return Runner(
            task or self.task(), agent.policy, agent, RunnerSettings(**chosen), seed=seed, folder=self.folder,
            quiet=True, **own,
        )  # fmt: skip

    def train(self, agent: Agent, iterations: int, lr: float, seed: int = 0, groups: int = 4) -> None:
        """A whole run on contexts that don't come twice, whose gradients aren't clipped."""
        other = Toys(self.folder / f"train{next(self._runs)}")
        settings = {"iterations": iterations, "contexts": groups, "weight_decay": 0.0, "clip": 1e9}
        task = self.task(1000, agent.reward or self.reward())
        other.run(task=task, agent=agent, seed=seed, lr=lr, checkpoint_every=0, **settings).learn()
