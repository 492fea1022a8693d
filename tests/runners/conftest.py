"""A toy run: a policy of a few numbers, an agent, a task and settings, all fast enough for tests of the loop."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.policies.base import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.rewards.base import RewardOutput
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings


class ToyPolicy(FlowPolicy):
    """v = a x + b + c t, at scale 1; its `old` weights are a second set of numbers."""

    name = "toy"
    scale = 1
    lora_targets = ()

    def __init__(self) -> None:
        super().__init__()
        self.learner = nn.Linear(3, 3)
        with torch.no_grad():
            self.learner.weight.copy_(torch.eye(3) * 0.5)
            self.learner.bias.copy_(torch.tensor([0.1, -0.1, 0.2]))

    @property
    def core(self) -> nn.Module:
        return self.learner

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        return TensorDict({"lr": obs["lr"]}, batch_size=[len(obs["lr"])])

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        moved: Tensor = self.learner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return moved + t.reshape(-1, 1, 1, 1) - cond["lr"]

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        return x0.sigmoid()

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        return image.clamp(0.01, 0.99).logit()

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["lr"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def save_base(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: p.detach().clone() for name, p in self.state_dict().items()}, folder / "model.safetensors")

    def load_base(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.load_state_dict(load_file(folder / "model.safetensors"))


class ToyTask:
    """Contexts of random pixels; the reward is minus the distance to the LR image."""

    scale = 1
    reward = SimpleNamespace(has_map=False)

    def __init__(self, size: int = 7) -> None:
        self._size = size
        self.source = SimpleNamespace(provides=frozenset({"lr", "hr"}))
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._size

    def context(self, indices: Tensor) -> SimpleNamespace:
        self.asked += indices.tolist()
        images = torch.stack([_image(int(index)) for index in indices])
        return SimpleNamespace(index=indices, lr=images, hr=images, prompt=None)

    def score(self, context: Any, sr: Tensor, group: Tensor | None = None) -> RewardOutput:
        wanted = context.lr.repeat_interleave(len(sr) // len(context.lr), 0)
        total = -(sr - wanted).abs().flatten(1).mean(1)
        valid = torch.ones(len(sr), dtype=torch.bool)
        valid[0] = len(sr) < 4  # one sample of a large batch can't be scored
        return RewardOutput(total.where(valid, torch.nan), valid, {"distance": -total})


def _image(index: int) -> Tensor:
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(index))


class ToyAgent:
    """Regresses the velocity towards the LR image, weighted by the samples' rewards; keeps a moving average."""

    needs: frozenset[Any] = frozenset()
    sampling: Sampling | None = Sampling(steps=2)
    sampler = "old"

    def __init__(self, policy: FlowPolicy, group_size: int = 4, epochs: int = 2) -> None:
        self.policy, self.group_size, self.epochs = policy, group_size, epochs
        self.stats: dict[str, float] = {}
        self.steps = 0
        self.average = {name: p.detach().clone() for name, p in policy.trainable_parameters()}

    def prepare(self, rollout: TensorDict) -> TensorDict:
        kept = rollout[rollout["valid"]] if "valid" in rollout else rollout
        self.stats = {"dropped": float(len(rollout) - len(kept))}
        return kept

    finished = False

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for _ in range(self.epochs):
            yield rows

    def loss(self, batch: TensorDict) -> TensorDict:
        noise = Noise(derive_seeds(self.steps, 0, batch["seed"], stream="times"))
        x0 = self.policy.to_latent(batch["lr"], batch["cond"])
        t, eps = noise.uniform(), noise.normal(x0.shape[1:])
        s = t.reshape(-1, 1, 1, 1)
        error = self.policy.velocity((1 - s) * x0 + s * eps, t, batch["cond"]) - (eps - x0)
        weight = batch["reward"].exp()
        return TensorDict({"loss_flow": (weight * error.square().flatten(1).mean(1)).mean(), "weight": weight.mean()})

    def after_update(self) -> None:
        self.steps += 1
        for name, parameter in self.policy.trainable_parameters():
            self.average[name].lerp_(parameter.detach(), 0.5)

    def after_iteration(self) -> None:
        pass

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        yield

    def state(self) -> dict[str, Any]:
        return {**{f"average/{name}": value for name, value in self.average.items()}, "steps": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self.average = {k.removeprefix("average/"): v for k, v in state.items() if k.startswith("average/")}


@dataclass
class Toy:
    """Makes toy runs in one folder."""

    folder: Path

    def run(self, *, task: ToyTask | None = None, agent: Any = None, loggers: Any = (), **settings: Any) -> Runner:
        policy = ToyPolicy() if agent is None else agent.policy
        chosen = {"iterations": 6, "contexts": 2, "lr": 1e-2, "prefetch": 0, "checkpoint_every": 2, **settings}
        return Runner(
            task or ToyTask(), policy, agent or ToyAgent(policy), RunnerSettings(**chosen),  # type: ignore[arg-type]
            seed=5, folder=self.folder, loggers=loggers, quiet=True,
        )  # fmt: skip

    policy = staticmethod(ToyPolicy)
    agent = staticmethod(ToyAgent)
    task = staticmethod(ToyTask)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)
