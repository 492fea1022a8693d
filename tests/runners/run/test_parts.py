"""The parts of the loop: budgets and learning rates, the order of contexts, the cost that is counted, evaluation."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import srgym
from srgym.rewards import make
from srgym.runners.loop.heldout import Heldout
from srgym.runners.loop.instrument import Meter, instrumented
from srgym.runners.loop.sampler import ContextSampler
from srgym.runners.loop.schedule import Budget, learning_rate
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.run.build import build_heldout


@given(size=st.integers(1, 40), cuts=st.lists(st.integers(1, 15), max_size=12), seed=st.integers(0, 2**40))
def test_contexts_come_without_replacement_however_they_are_taken(size: int, cuts: list[int], seed: int) -> None:
    sampler, whole = ContextSampler(size, seed), ContextSampler(size, seed)
    taken = [int(index) for cut in cuts for index in sampler.take(cut)]
    assert taken == whole.take(sum(cuts)).tolist() if cuts else taken == []
    for start in range(0, len(taken) - size + 1, size):
        assert sorted(taken[start : start + size]) == list(range(size))
    resumed = ContextSampler(size, seed)
    resumed.taken = sampler.taken
    assert torch.equal(resumed.take(5), sampler.take(5))


def test_looking_ahead_takes_nothing() -> None:
    sampler = ContextSampler(7, seed=1)
    ahead = sampler.peek(3, ahead=5)
    sampler.take(5)
    assert torch.equal(sampler.take(3), ahead)


def test_budgets_end_at_the_first_limit() -> None:
    budget = Budget(iterations=10, images=100)
    assert budget.progress(5, 20, 1e9) == 0.5
    assert budget.progress(2, 80, 0) == 0.8
    assert budget.progress(50, 0, 0) == 1.0
    assert Budget(seconds=20).progress(10**6, 10**6, 5) == 0.25
    assert Budget(iterations=0).progress(0, 0, 0) == 1.0
    with pytest.raises(ValueError, match=r"runner\.images is at least 0, got -1"):
        Budget(images=-1)


def test_learning_rates() -> None:
    assert learning_rate(2.0, "constant", 0.0, 0.7) == 2.0
    assert learning_rate(2.0, "cosine", 0.0, 0.5) == pytest.approx(1.0)
    assert learning_rate(2.0, "cosine", 0.0, 1.0) == pytest.approx(0.0)
    assert learning_rate(2.0, "cosine", 0.2, 0.1) == pytest.approx(1.0)
    assert learning_rate(2.0, "cosine", 0.2, 0.2) == pytest.approx(2.0)
    assert learning_rate(2.0, "warmup", 0.5, 0.25) == pytest.approx(1.0)
    assert learning_rate(2.0, "warmup", 0.5, 0.9) == 2.0
    assert math.isclose(learning_rate(2.0, "cosine", 0.2, 0.6), 1.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"contexts": 0}, "runner.contexts is at least 1, got 0"),
        ({"schedule": "linear"}, "runner.schedule is one of constant, cosine, warmup, got 'linear'"),
        ({"warmup": 1.0}, "share of the budget"),
        ({"clip": 0.0}, "runner.clip above 0"),
        ({"eval_every": -1}, "runner.eval_every is at least 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunnerSettings(**settings)


def test_flops_of_a_forward(toy: Any) -> None:
    policy = toy.policy()
    cond = policy.encode({"lr": torch.rand(5, 3, 4, 4)})
    x, t = torch.rand(5, 3, 4, 4), torch.rand(5)
    meter = Meter(policy)
    with instrumented(policy, meter):
        with torch.no_grad():
            policy.velocity(x, t, cond)
        policy.velocity(x, t, cond)
    # A linear layer 3 -> 3 at 16 pixels: 2 * 9 * 16 = 288; with gradient the backward of all weights is 2 more.
    assert meter.forwards == 10
    assert meter.flops == 5 * 288 + 5 * 3 * 288
    assert "velocity" not in policy.__dict__


def test_a_policy_may_say_what_a_forward_costs(toy: Any) -> None:
    policy = toy.policy()
    policy.flops_per_forward = 7.0
    meter = Meter(policy)
    with instrumented(policy, meter), torch.no_grad():
        policy.velocity(torch.rand(2, 3, 4, 4), torch.rand(2), policy.encode({"lr": torch.rand(2, 3, 4, 4)}))
    assert meter.flops == 14


def test_unknown_autocast(toy: Any) -> None:
    policy = toy.policy()
    with (
        pytest.raises(ValueError, match=r"runner\.autocast is one of off, bf16, got 'fp16'"),
        instrumented(policy, Meter(policy), "fp16"),
    ):
        pass


def test_evaluation_is_the_same_each_time_and_under_the_average(toy: Any) -> None:
    policy = toy.policy()
    agent = toy.agent(policy)
    heldout = Heldout(toy.task(20), count=3, steps=2, seed=3)
    first = heldout.evaluate(policy, agent)
    assert heldout.evaluate(policy, agent) == first
    assert set(first) == {"eval/reward", "eval/distance", "eval/psnr_y"}
    assert first["eval/reward"] == pytest.approx(-first["eval/distance"], abs=1e-6)
    with torch.no_grad():
        policy.learner.bias += 1.0  # the learner moves on, and the average with it
    assert heldout.evaluate(policy, agent) != first

    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        with torch.no_grad():
            policy.learner.bias -= 1.0
            yield
            policy.learner.bias += 1.0

    agent.averaged = averaged
    assert heldout.evaluate(policy, agent)["eval/reward"] == pytest.approx(first["eval/reward"], abs=1e-5)
    picture = heldout.picture(policy, agent)
    assert picture.shape == (3, 3 * 4, 3 * 4)  # 3 contexts down, LR | SR | HR across


def test_evaluations_share_a_row_with_their_iteration(toy: Any, tmp_path: Path) -> None:
    from srgym.runners.loop.loggers import CSVLogger

    runner = toy.run(loggers=[CSVLogger(tmp_path / "metrics.csv")], eval_every=2, iterations=5, log_every=5)
    runner._heldout = Heldout(toy.task(20), count=2, steps=1)
    runner.learn()
    lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    at = lines[0].index("eval/reward")
    assert [line[0] for line in lines[1:] if line[at]] == ["0", "2", "4", "5"]
    assert len(lines) == 5


def test_make_runner_is_reached_from_the_top(tmp_path: Path) -> None:
    run = srgym.make_runner("runner.iterations=1", experiment="compact_base", out=str(tmp_path / "run"), seed=4)
    (stage,) = run.config.stages
    assert (run.config.seed, stage.sections["runner"]["iterations"]) == (4, 1)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_on_images_that_are_trained_on_is_said(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (32, 32), (40 * i, 90, 20)).save(tmp_path / f"{i}.png")
    env = {"name": "hr_folder", "path": str(tmp_path), "preset": "bicubic", "split": "all"}
    settings, reward = RunnerSettings(iterations=1, eval_every=1), make("psnr_y")
    with pytest.warns(UserWarning, match="env.split=train keeps them apart"):
        build_heldout(settings, env, {"split": "validation"}, reward, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_heldout(settings, {**env, "split": "train"}, {"split": "validation"}, reward, 0)
