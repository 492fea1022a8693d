"""A policy is conditioned in every evaluation as it was in training, and what it writes reaches its reward."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym import make_runner
from srgym.agents import DiffusionNFT
from srgym.envs import SRTask, sources
from srgym.policies.flow import FlowPolicy
from srgym.rewards import make
from srgym.rewards.base import Incompatible
from srgym.runners.commands.cli import main
from srgym.runners.compare.cell import run_cell
from srgym.runners.loop.collect import collect
from srgym.runners.measure.evaluation import Evaluation
from srgym.runners.measure.methods import Samples

SEEN: list[Any] = []


class Spy(FlowPolicy):
    """Enlarges LR by a learnt factor of one, and remembers what it was told to condition on."""

    name = f"{__name__}:Spy"
    lora_targets = ("gain",)

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.net = nn.ModuleDict({"gain": nn.Linear(1, 1, bias=False)})

    @property
    def core(self) -> nn.Module:
        return self.net

    @property
    def config(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        SEEN.append(obs["prompt"])
        enlarged = nn.functional.interpolate(obs["lr"], scale_factor=self.scale)
        return TensorDict({"lr": enlarged}, batch_size=[len(enlarged)])

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        return self.net["gain"](x[..., None])[..., 0] - cond["lr"]

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        return x0.clamp(0, 1)

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        return image

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["lr"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1, 0, steps + 1)


TINY = [f"policy={__name__}:Spy", "env.size=32", "env.crops=2", "lora.rank=1", "agent.group_size=2",
        "agent.steps=1", "runner.contexts=2", "runner.iterations=1", "runner.eval_every=1", "runner.eval_contexts=2",
        "runner.eval_steps=1", "reward=ssim_y", "logger=csv"]  # fmt: skip


def prompts() -> set[str | None]:
    """What was seen since the last time, each once."""
    seen = {prompt for batch in SEEN for prompt in (batch or [None])}
    SEEN.clear()
    return seen


@pytest.mark.parametrize("setting", ["false", "true", "'one text for all'"])
def test_every_evaluation_conditions_as_training_does(setting: str, tmp_path: Path) -> None:
    own = {"false": {None}, "'one text for all'": {"one text for all"}}.get(setting)
    split = {name: sources.make("photographs", split=name).prompts() for name in ("train", "validation", "test")}
    expected = {name: own or set(texts) for name, texts in split.items()}
    prompts()
    run = make_runner(*TINY, f"env.prompts={setting}", f"out={tmp_path / 'run'}")
    run.learn()
    seen = prompts()
    assert seen <= expected["train"] | expected["validation"]
    assert seen & expected["validation"]

    assert main(["evaluate", f"policy={tmp_path / 'run'}", f"env.prompts={setting}", "env.size=32", "env.crops=2",
                 "limit=3", "steps=1", "pictures=1", f"out={tmp_path / 'evaluation'}"]) == 0  # fmt: skip
    assert prompts() <= expected["test"]

    from srgym.runners.report.oars_report import write_oars_report

    write_oars_report(tmp_path / "run", metrics=["psnr_y"], limit=3, pictures=1, picture_size=None)
    assert prompts() <= expected["test"]

    request = {"overrides": [*TINY, f"env.prompts={setting}"], "settings": [], "metrics": {"ssim_y": "ssim_y"},
               "reward": "ssim_y", "test": {"split": "test"}, "limit": 3, "steps": 1, "seeds": [0], "pictures": 1,
               "picture_size": None, "baselines": True}  # fmt: skip
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "cell.json").write_text(json.dumps(request))
    run_cell(tmp_path / "cell")
    seen = prompts()
    assert seen <= expected["train"] | expected["validation"] | expected["test"]
    if own is None:
        assert seen & expected["test"] and seen & expected["validation"]


# A policy that writes


class Writer(Spy):
    """Says of each image how many it is, by numbers that stand in the rollout."""

    gives = frozenset({"text"})

    def rollout(self, obs: Mapping[str, Any], sampling: Any, seeds: Tensor) -> TensorDict:
        rolled = super().rollout(obs, sampling, seeds)
        rolled["word"] = torch.arange(len(rolled))
        return rolled

    def made(self, rolled: TensorDict) -> dict[str, Any]:
        return {"text": [f"image {number}" for number in rolled["word"].tolist()]}


def last_word(sr: Tensor, text: list[str]) -> Tensor:
    return torch.tensor([float(line.split()[1]) for line in text]) / 100


def test_what_a_policy_writes_reaches_its_reward_in_training_and_evaluation() -> None:
    source = sources.make("photographs", size=32, crops=2)
    with pytest.raises(Incompatible, match="needs 'text', which the source 'photographs' doesn't give"):
        SRTask(source, make(last_word), policy_gives=Spy.gives)
    policy = Writer()
    policy.add_adapters(rank=1, alpha=1)
    task = SRTask(source, make(last_word), policy_gives=policy.gives)
    agent = DiffusionNFT(policy, task.reward, group_size=2, steps=1)
    rollout = collect(task, policy, agent, task.context([0, 1]), seed=0, iteration=0)
    assert rollout["reward"].tolist() == pytest.approx([0.00, 0.01, 0.02, 0.03])
    assert rollout["valid"].all()
    frame = Evaluation(task, {"word": last_word}, limit=3).measure({"policy": Samples(policy, 1)})
    assert frame["value"].tolist() == pytest.approx([0.00, 0.01, 0.02])
    with pytest.raises(Incompatible, match="metric 'word' needs text"):
        Evaluation(SRTask(source), {"word": last_word}, limit=3).measure({"policy": Samples(Spy(), 1)})


def test_tags_come_with_the_context() -> None:
    class Tagged(type(sources.make("photographs", size=32, crops=2))):  # type: ignore[misc]
        provides = frozenset({"lr", "hr", "tags"})

        def __getitem__(self, index: int) -> Any:
            from dataclasses import replace

            return replace(super().__getitem__(index), tags=("cat", str(index)))

    def seen(sr: Tensor, tags: list[tuple[str, ...]]) -> Tensor:
        return torch.tensor([float(tag[1]) for tag in tags])

    source = Tagged(size=32, crops=2)
    source.provides = Tagged.provides
    task = SRTask(source, make(seen))
    context = task.context([3, 5])
    assert context.tags == [("cat", "3"), ("cat", "5")]
    assert context.hr is not None
    assert task.score(context, context.hr.repeat_interleave(2, 0)).total.tolist() == [3, 3, 5, 5]
