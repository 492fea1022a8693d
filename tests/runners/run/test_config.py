"""Settings: what is refused and how, what wins over what, and how stages get their sections."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from srgym.errors import Refusal
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.run.config import ConfigError, RunConfig, compose, options, resolve

STAGED = """
# @package _global_
defaults:
  - /agent@stages.first.agent: one
  - override /agent: two
  - _self_
name: staged
when:
  agent=two: {agent: {size: 5}, runner: {lr: 0.5}}
stages:
  first:
    lora: null
    runner: {iterations: 7, lr: 0.25}
  second:
    when:
      agent=two: {agent: {size: 6}}
      agent=one: {agent: {width: 3}}
    start_from: base
  third:
    kind: merge
    start_from: first
    lora_from: second
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own configs beside the package's."""
    for name, text in {
        "agent/one.yaml": "name: one\nwidth: 1\n",
        "agent/two.yaml": "name: two\nsize: 1\nclip: 2.0\n",
        "experiment/staged.yaml": STAGED,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def resolved(folder: Path, *overrides: str) -> RunConfig:
    return resolve(*compose(overrides, [folder]))


@pytest.mark.parametrize(
    "override, message",
    [
        ("experiment=stagd", "did you mean 'staged'"),
        ("agent=on", "did you mean 'one'"),
        ("reward=psnr_i", "did you mean 'psnr_y'"),
        ("runner.iteration=3", "did you mean 'runner.iterations'"),
        ("lr=3", "did you mean 'runner.lr'"),
        ("runer.lr=3", "did you mean 'runner.lr'"),
        ("stages.first.runner.iteratons=3", "did you mean 'stages.first.runner.iterations'"),
        ("stages.frist.runner.lr=3", "did you mean 'stages.first.runner.lr'"),
        ("polcy=compact", "did you mean 'policy'"),
        ("runner.lr", "expected key=value, got 'runner.lr'"),
        ("runner.lr=1,2", "asks for several runs"),
        ("runner.betas=[0.9", "can't read"),
        ("effort=0", "effort: expected above 0"),
    ],
)
def test_mistakes_are_named_with_the_nearest(folder: Path, override: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        resolved(folder, "experiment=staged", override)


def test_misspelt_keys_are_refused_before_heavy_imports() -> None:
    script = (
        "import sys; from srgym.runners.commands.cli import main\n"
        "code = main(['train', 'experiment=compact_base', 'runer.lr=1'])\n"
        "print(code, [name for name in ('torch', 'diffusers', 'peft', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "[]"]
    assert done.stderr == "srgym: unknown setting 'runer.lr'; did you mean 'runner.lr'?\n"


def test_precedence(folder: Path) -> None:
    first, second, _ = resolved(folder, "experiment=staged").stages
    assert first.sections["agent"] == {"name": "one", "width": 1}
    assert second.sections["agent"] == {"name": "two", "size": 6, "clip": 2.0}  # the stage's `when` over the run's
    assert (first.sections["runner"]["lr"], second.sections["runner"]["lr"]) == (0.25, 0.5)
    first, second, _ = resolved(folder, "experiment=staged", "agent.size=9", "runner.lr=1").stages
    assert second.sections["agent"]["size"] == 9  # the command line over every `when`
    assert (first.sections["runner"]["lr"], second.sections["runner"]["lr"]) == (0.25, 1)
    first, second, _ = resolved(
        folder, "experiment=staged", "stages.first.runner.lr=2", "stages.first.agent.width=4"
    ).stages
    assert (first.sections["runner"]["lr"], second.sections["runner"]["lr"]) == (2, 0.5)
    assert first.sections["agent"]["width"] == 4


def test_another_agent_does_not_inherit_settings_meant_for_one(folder: Path) -> None:
    first, second, _ = resolved(folder, "experiment=staged", "agent=one").stages
    assert second.sections["agent"] == {"name": "one", "width": 3}
    assert second.sections["runner"]["lr"] != 0.5
    assert first.sections["agent"]["width"] == 1


def test_stages(folder: Path) -> None:
    first, second, third = resolved(folder, "experiment=staged").stages
    assert [stage.name for stage in (first, second, third)] == ["first", "second", "third"]
    assert first.sections["lora"] is None
    assert second.sections["lora"]["rank"] == 32
    assert (third.kind, third.start_from, third.options) == ("merge", "first", {"lora_from": "second"})


def test_no_stages_is_one_stage() -> None:
    config = resolve(*compose(["experiment=compact_base", "out=here", "seed=4"]))
    assert [stage.name for stage in config.stages] == ["main"]
    assert (config.out, config.seed, config.logger) == (Path("here"), 4, ["tensorboard"])


@pytest.mark.parametrize(
    "stage, message",
    [
        ("{start_from: later}", "start_from=later: expected base, previous, a stage before it, or a policy's folder"),
        ("null", r"stages\.only is null: ~stages\.only on the command line leaves a stage out"),
        ("{runer: {lr: 1}}", "unknown key 'runer'; did you mean 'runner'"),
        ("{runner: {lrr: 1}}", r"stages\.only\.runner sets 'lrr', which isn't there; did you mean 'lr'"),
        ("{kind: trian}", "expected 'train', 'merge' or 'scorer'"),
        ("{kind: merge, start_from: base, lora_from: base}", "start_from=base: expected a stage before it"),
        ("{when: {agnt=one: {}}}", "expected section=name"),
    ],
)
def test_bad_stages(folder: Path, stage: str, message: str) -> None:
    path = folder / "experiment" / "bad.yaml"
    path.write_text(f"# @package _global_\ndefaults:\n  - override /agent: one\nstages:\n  only: {stage}\n")
    with pytest.raises(Refusal, match=message):
        resolved(folder, "experiment=bad")


def test_settings_of_a_scorer_stage_reach_it() -> None:
    (stage,) = resolve(*compose(["experiment=compass_compact", "stages.scorer.scorer.groups=7"])).stages
    assert stage.kind == "scorer"
    assert stage.options["scorer"]["groups"] == 7
    assert stage.sections["env"]["size"] == 96


def test_effort_scales_every_budget(folder: Path) -> None:
    first, second, _ = resolved(folder, "experiment=staged", "effort=0.1", "runner.seconds=100").stages
    assert (first.sections["runner"]["iterations"], second.sections["runner"]["iterations"]) == (1, 10)
    assert second.sections["runner"]["seconds"] == pytest.approx(10)


def test_a_reward_without_a_file(folder: Path) -> None:
    path = "srgym.rewards.toys:Random"
    chosen = resolved(folder, "experiment=staged", f"reward={path}", "reward.seed=2").stages[1]
    assert chosen.sections["reward"] == {"name": path, "seed": 2}
    chosen = resolved(folder, "experiment=staged", "reward=random").stages[1]
    assert chosen.sections["reward"]["name"] == "random"


def test_every_runner_setting_is_in_the_config() -> None:
    text = (Path(__file__).parents[3] / "configs" / "runner" / "default.yaml").read_text()
    listed: dict[str, Any] = yaml.safe_load(text)
    assert set(listed) == {field.name for field in fields(RunnerSettings)}
    given = RunnerSettings(**listed)
    free = RunnerSettings(iterations=given.iterations)
    assert given == free  # the file's defaults are the class's


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    config = resolve(*compose([f"experiment={experiment}"]))
    for stage in config.stages:
        if stage.kind == "train":
            RunnerSettings(**stage.sections["runner"])


def test_unknown_folder_of_configs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of configs"):
        compose([], [tmp_path / "none"])


def _parameters(kind: type) -> dict[str, Any]:
    """A constructor's parameters and defaults, those that **options passes on to the base classes too."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in base.__dict__ and base.__module__.startswith("srgym."):
            signature = inspect.signature(base.__init__)  # type: ignore[misc]
            found |= {name: p.default for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    return {name: default for name, default in found.items() if name not in ("self", "pipe")}


@pytest.mark.parametrize("policy", options("policy"))
def test_every_policy_setting_is_in_its_config(policy: str) -> None:
    from srgym.policies.registry import policy_class

    listed = yaml.safe_load((Path(__file__).parents[3] / "configs" / "policy" / f"{policy}.yaml").read_text())
    parameters = _parameters(policy_class(listed.pop("name")))
    assert set(listed) == set(parameters)
    assert listed["scale"] is None  # follows the contexts


def test_every_policy_has_a_config() -> None:
    from srgym.policies import available

    assert set(available()) <= set(options("policy"))


def test_a_stages_own_part_is_said_by_its_name_alone() -> None:
    def names(*overrides: str) -> dict[str, tuple[str, str]]:
        stages = resolve(*compose(["experiment=oars", *overrides])).stages
        return {
            s.name: (s.sections["agent"]["name"], s.sections["reward"]["name"]) for s in stages if s.kind == "train"
        }

    before = names()
    assert names("stages.non_reference.reward=niqe") == {**before, "non_reference": ("diffusion_nft", "niqe")}
    assert names("stages.full_reference.agent=dpo") == {**before, "full_reference": ("dpo", "compass")}
    learnt = names("agent=flow_grpo")
    assert {name: agent for name, (agent, _) in learnt.items()} == {
        "cold_start": "cold_start", "full_reference": "flow_grpo", "non_reference": "flow_grpo",
        "random_reward": "flow_grpo",
    }  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stages_own_part_takes_its_options_beside_it(order: tuple[int, int]) -> None:
    said = ["stages.non_reference.env=lr_folder", "stages.non_reference.env.path=mine"]
    stage = resolve(*compose(["experiment=oars", *(said[i] for i in order)])).stages[2]
    assert (stage.sections["env"]["name"], stage.sections["env"]["path"]) == ("lr_folder", "mine")
    assert stage.sections["env"]["size"] == 64  # the run's


def test_a_setting_that_follows_one_that_is_gone_says_what_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"choose its part as well, stages\.full_reference\.reward=NAME"):
        resolve(*compose(["experiment=oars_qwen", "reward=ssim_y"]))
    said = ["experiment=oars_qwen", "reward=ssim_y", "stages.full_reference.reward=psnr_y"]
    stages = resolve(*compose(said)).stages
    assert [stage.sections["reward"]["name"] for stage in stages[:3]] == ["psnr_y", "psnr_y", "ssim_y"]


def test_the_papers_text_of_oars_differs_where_its_header_says() -> None:
    ours, paper = (
        resolve(*compose([f"experiment={name}"])).stages[2].sections for name in ("oars_qwen", "oars_qwen_paper")
    )
    differing = {key: value for key, value in paper["agent"].items() if ours["agent"][key] != value}
    assert differing == {"form": "plain", "kl": 0, "filter": {**ours["agent"]["filter"], "spread": "var"}}
    assert {key: value for key, value in paper.items() if key != "agent"} == {
        key: value for key, value in ours.items() if key != "agent"
    }
