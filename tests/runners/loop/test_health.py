"""A run that doesn't learn any more says so and fails; an error of a user's code says where the run was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from srgym import rewards
from srgym.errors import Refusal
from srgym.runners.commands.cli import main
from srgym.runners.loop.health import Failed, Health
from srgym.runners.loop.settings import RunnerSettings

SMOKE = ["train", "experiment=smoke", "logger=csv", "runner.threads=1", "runner.images_every=0"]
RL = "stages.reinforce"


def health(tmp_path: Path, patience: int = 3) -> Health:
    return Health("main", "mine", "nft", patience, tmp_path)


def test_iterations_without_a_valid_score_end_a_run_and_name_what_is_saved(tmp_path: Path) -> None:
    watch = health(tmp_path)
    (tmp_path / "00000040").mkdir()
    nothing = {"reward/invalid": 8.0, "reward/spread_in_groups": float("nan")}
    watch.scored(40, 8, nothing)
    watch.scored(41, 8, nothing)
    watch.scored(42, 8, {**nothing, "reward/invalid": 7.0})  # one valid score, and patience begins anew
    watch.scored(43, 8, nothing)
    watch.scored(44, 8, nothing)
    with pytest.raises(Failed, match=r"'mine' gave no valid score in 3 iterations.*iteration 46.*until iteration 40"):
        watch.scored(45, 8, nothing)


def test_many_invalid_scores_and_groups_without_spread_are_warned_of_once(tmp_path: Path) -> None:
    watch = health(tmp_path)
    with pytest.warns(UserWarning, match="25% of the scores of 'mine' are invalid"):
        watch.scored(0, 8, {"reward/invalid": 2.0, "reward/spread_in_groups": 0.1})
    with pytest.warns(UserWarning, match="scores the samples of each group alike"):
        watch.scored(1, 8, {"reward/invalid": 0.0, "reward/spread_in_groups": 0.0})
    watch.scored(2, 8, {"reward/invalid": 3.0, "reward/spread_in_groups": 0.0})  # a warning would be an error here
    watch.scored(3, 8, {"reward/invalid": 1.0, "reward/spread_in_groups": 0.1})


def test_nothing_to_learn_from_ends_a_run(tmp_path: Path) -> None:
    watch = health(tmp_path, patience=1)
    for iteration in range(9):
        watch.learnt(iteration, 0.0)
    with pytest.raises(Failed, match="10 iterations had nothing to learn from.*nothing was saved before"):
        watch.learnt(9, 0.0)


@pytest.mark.filterwarnings("ignore:stage")
def test_a_reward_of_nothing_but_nan_ends_a_run(toy: Any) -> None:
    def hollow(sr: Tensor) -> Tensor:
        return sr.mean((1, 2, 3)) * float("nan")

    run = toy.run(task=toy.task(reward=rewards.make(hollow)), iterations=40)
    with pytest.raises(Failed, match="'hollow' gave no valid score in 3 iterations"):
        run.learn()
    assert run.iteration == 2  # the third, which isn't over


def test_a_weight_that_is_no_number_is_never_saved(toy: Any) -> None:
    agent = toy.agent(toy.policy())
    run = toy.run(agent=agent, iterations=40, checkpoint_every=2)

    def explode() -> None:
        if run.updates >= 10:
            with torch.no_grad():
                next(p for p in agent.policy.parameters() if p.requires_grad).fill_(float("inf"))

    agent.after_update = explode
    with pytest.raises(Failed, match=r"isn't finite any more; lower runner\.lr"):
        run.learn()
    [kept, *_] = sorted((run.folder / "checkpoints").iterdir(), reverse=True)
    other = toy.run(agent=toy.agent(toy.policy()), iterations=40)
    assert other.resume() and other.iteration == int(kept.name)
    assert all(torch.isfinite(p).all() for p in other.policy.parameters())


def test_a_users_error_keeps_its_place_and_is_told_where_the_run_was(toy: Any) -> None:
    def fragile(sr: Tensor) -> Tensor:
        if run.iteration == 3:
            raise FileNotFoundError("no such file: 'my_table.csv'")
        return sr.mean((1, 2, 3))

    run = toy.run(task=toy.task(reward=rewards.make(fragile)), iterations=40)
    with pytest.raises(FileNotFoundError, match="my_table") as caught:
        run.learn()
    assert not isinstance(caught.value, Refusal)
    assert "fragile" in [entry.name for entry in caught.traceback]
    scoring, place = caught.value.__notes__
    assert scoring.startswith("while the reward 'fragile' scored SR images of [8, 3, 4, 4]")
    assert place.startswith("stage 'main', iteration 4, reward 'fragile'") and "until iteration 3 is in" in place


BROKEN = """
def broken(sr):
    raise ValueError("my own mistake")

def hollow(sr):
    return sr.mean((1, 2, 3)) / 0 - sr.mean((1, 2, 3)) / 0
"""


@pytest.fixture
def mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mistakes_of_a_user.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SRGYM_DEBUG", "0")
    return "mistakes_of_a_user"


@pytest.mark.filterwarnings("ignore:stage")
def test_the_command_line_tells_a_users_mistake_from_a_refusal(
    tmp_path: Path, mistakes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="my own mistake"):
        main([*SMOKE, f"reward={mistakes}:broken", f"out={tmp_path / 'a'}"])
    assert main([*SMOKE, f"reward={mistakes}:hollow", f"{RL}.runner.iterations=9", f"out={tmp_path / 'b'}"]) == 1
    assert "gave no valid score in 3 iterations" in capsys.readouterr().err
    assert main([*SMOKE, "runner.lr=-1", f"out={tmp_path / 'c'}"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*SMOKE, "runner.lr=-1", f"out={tmp_path / 'c'}", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:stage")
def test_a_diverged_run_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"{RL}.runner.lr=1e6", f"{RL}.runner.iterations=30", f"{RL}.runner.clip=1e9"]
    assert main([*SMOKE, *settings, f"out={tmp_path / 'a'}"]) == 1
    assert "stage 'reinforce'" in capsys.readouterr().err
    assert not (tmp_path / "a" / "stages" / "reinforce" / "policy").exists()


@pytest.mark.parametrize(
    "setting", [{"clip": float("nan")}, {"lr": float("nan")}, {"lr": float("inf")}, {"patience": float("nan")}]
)
def test_settings_that_are_no_numbers_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(Refusal, match=f"runner.{next(iter(setting))}: expected"):
        RunnerSettings(iterations=1, **setting)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"loss_policy": torch.zeros(())}, "expected a TensorDict of scalars, got dict"),
        (TensorDict({"policy": torch.zeros(())}), r"expected a term named loss_\*, which is learnt from, got policy"),
        (torch.zeros(()), "expected a TensorDict of scalars, got Tensor"),
    ],
)
def test_a_loss_of_another_form_is_refused_in_words(toy: Any, terms: Any, message: str) -> None:
    agent = toy.agent(toy.policy())
    agent.loss = lambda batch: terms
    with pytest.raises(Refusal, match=f"ToyAgent.loss: {message}"):
        toy.run(agent=agent).learn()
