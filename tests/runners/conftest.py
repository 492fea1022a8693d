"""A toy run: a policy of a few numbers with its adapters, an agent, a task and settings, fast enough for tests of the
loop; what surrounds them (task, agent's base, adapters, runner) is the library's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.agents import Agent
from srgym.envs import Context, SRTask
from srgym.envs.sources import Sample, Source
from srgym.policies.base import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.rewards import make
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings


class ToyPolicy(FlowPolicy):
    """v = A (x, 1) + t - LR in each pixel, at scale 1."""

    name = "toy"
    scale = 1
    lora_targets = ("learner",)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"learner": nn.Linear(4, 3, bias=False)})
        with torch.no_grad():
            self.learner.weight.copy_(torch.cat([torch.eye(3) * 0.5, torch.tensor([[0.1], [-0.1], [0.2]])], 1))

    @property
    def core(self) -> nn.Module:
        return self.net

    @property
    def learner(self) -> Any:
        return self.net["learner"]

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        return TensorDict({"lr": obs["lr"]}, batch_size=[len(obs["lr"])])

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        with_one = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        moved: Tensor = self.learner(with_one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return moved + t.reshape(-1, 1, 1, 1) - cond["lr"]

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        return x0.sigmoid()

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        return image.clamp(0.01, 0.99).logit()

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["lr"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1, 0, steps + 1)


class ToySource(Source):
    """Contexts of random pixels, whose truth is the input."""

    scale, size = 1, (4, 4)
    provides = frozenset({"lr", "hr"})

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(index))
        return Sample(f"{index}/0", image, image)


def closeness(sr: Tensor, lr: Tensor) -> dict[str, Tensor]:
    """Minus the distance to the LR image; one sample of a large batch can't be scored."""
    distance = (sr - lr).abs().flatten(1).mean(1)
    total = -distance
    if len(sr) >= 4:
        total = total.index_fill(0, torch.tensor([0]), torch.nan)
    return {"total": total, "distance": distance}


class ToyTask(SRTask):
    """Remembers which contexts were asked for."""

    def __init__(self, size: int = 7) -> None:
        super().__init__(ToySource(size), make(closeness))
        self.asked: list[int] = []

    def context(self, indices: Tensor | Iterable[int]) -> Context:
        context = super().context(indices)
        self.asked += context.index.tolist()
        return context


class ToyAgent(Agent):
    """Regresses the velocity towards the LR image, weighted by the samples' rewards."""

    name = "toy"
    sampling: Sampling | None = Sampling(steps=2)
    sampler = "old"

    def __init__(self, policy: FlowPolicy, group_size: int = 4, epochs: int = 2) -> None:
        super().__init__(policy, group_size=group_size, epochs=epochs, ema=0.5)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        kept = rollout[rollout["valid"]] if "valid" in rollout else rollout
        self.stats = {"dropped": float(len(rollout) - len(kept))}
        return kept

    def loss(self, batch: TensorDict) -> TensorDict:
        noise = Noise(derive_seeds(self.updates, 0, batch["seed"], stream="times"))
        x0 = self.policy.to_latent(batch["lr"], batch["cond"])
        t, eps = noise.uniform(), noise.normal(x0.shape[1:])
        s = t.reshape(-1, 1, 1, 1)
        error = self.policy.velocity((1 - s) * x0 + s * eps, t, batch["cond"]) - (eps - x0)
        weight = batch["reward"].exp()
        return TensorDict({"loss_flow": (weight * error.square().flatten(1).mean(1)).mean(), "weight": weight.mean()})


@dataclass
class Toy:
    """Makes toy runs in one folder."""

    folder: Path

    def run(self, *, task: SRTask | None = None, agent: Agent | None = None, **settings: Any) -> Runner:
        agent = agent or ToyAgent(self.policy())
        own = {name: settings.pop(name) for name in ("loggers", "evaluation", "on_evaluation") if name in settings}
        chosen = {"iterations": 6, "contexts": 2, "lr": 1e-2, "prefetch": 0, "checkpoint_every": 2, **settings}
        return Runner(
            task or ToyTask(), agent.policy, agent, RunnerSettings(**chosen),  # type: ignore[arg-type]
            seed=5, folder=self.folder, quiet=True, **own,
        )  # fmt: skip

    @staticmethod
    def policy(adapters: bool = True) -> ToyPolicy:
        policy = ToyPolicy()
        if adapters:
            policy.add_adapters(rank=3, alpha=3)
        return policy

    agent = staticmethod(ToyAgent)
    task = staticmethod(ToyTask)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)
