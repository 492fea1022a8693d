"""The parts of the loop: budgets and learning rates, the order of contexts, the cost that is counted, evaluation."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toys import flawed

import srgym
from srgym.runners.loop.meter import Meter, instrumented
from srgym.runners.loop.sampler import ContextSampler
from srgym.runners.loop.schedule import Budget, learning_rate
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.measure.evaluation import Evaluation, contact_sheet
from srgym.runners.run.build import build_evaluation


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
        ({"contexts": 0}, "runner.contexts: expected at least 1, got 0"),
        ({"schedule": "linear"}, "runner.schedule: expected 'constant', 'cosine' or 'warmup', got 'linear'"),
        ({"warmup": 1.0}, "runner.warmup: expected below 1, got 1.0"),
        ({"clip": 0.0}, "runner.clip: expected above 0, got 0.0"),
        ({"eval_every": -1}, "runner.eval_every: expected at least 0, got -1"),
        ({"lr": "fast"}, "runner.lr: expected a number, got 'fast'"),
        ({"iterations": 1.5}, "runner.iterations: expected a whole number, got 1.5"),
        ({"keep": True}, "runner.keep: expected a whole number, got True"),
        ({"betas": [0.9]}, "runner.betas: expected more values"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunnerSettings(**settings)


def test_flops_of_a_forward(toy: Any) -> None:
    policy = toy.policy(adapters=False)
    cond = policy.encode({"lr": torch.rand(5, 3, 2, 2)})
    x, t = torch.rand(5, 3, 4, 4), torch.rand(5)
    meter = Meter(policy)
    with instrumented(policy, meter):
        with torch.no_grad():
            policy.velocity(x, t, cond)
        policy.velocity(x, t, cond)
    # A linear layer 1 -> 3: 2 * 3 = 6; with gradient the backward of all weights is 2 more.
    assert meter.forwards == 10
    assert meter.flops == 5 * 6 + 5 * 3 * 6
    policy.velocity(x, t, cond)
    assert meter.forwards == 10  # only while it's instrumented


def test_what_half_precision_encoded_is_measured_and_used_in_it(tiny_policy: Any) -> None:
    meter = Meter(tiny_policy)
    with instrumented(tiny_policy, meter, "bf16"), torch.no_grad():
        cond = tiny_policy.encode({"lr": torch.rand(2, 3, 8, 8)})
        x = torch.rand(2, *tiny_policy.latent_shape(cond))
        assert tiny_policy.velocity(x, torch.rand(2), cond).dtype is torch.float32
    assert cond["features"].dtype is torch.bfloat16
    assert meter.forwards == 2 and meter.flops > 0


def test_a_policy_may_say_what_a_forward_costs(toy: Any) -> None:
    policy = toy.policy()
    policy.flops_per_forward = 7.0
    meter = Meter(policy)
    with instrumented(policy, meter), torch.no_grad():
        policy.velocity(torch.rand(2, 3, 4, 4), torch.rand(2), policy.encode({"lr": torch.rand(2, 3, 2, 2)}))
    assert meter.flops == 14


def test_unknown_autocast(toy: Any) -> None:
    policy = toy.policy()
    with (
        pytest.raises(ValueError, match="autocast is one of auto, bf16, off, got 'fp16'"),
        instrumented(policy, Meter(policy), "fp16"),
    ):
        pass


def test_evaluation_is_the_same_each_time_and_under_the_average(toy: Any) -> None:
    policy = toy.policy()
    evaluation = Evaluation(toy.task(20), {"reward": flawed, "psnr_y": "psnr_y"}, reward="reward", seeds=(3,), limit=3)
    runner = toy.run(agent=toy.agent(policy), evaluation=evaluation, eval_every=1, eval_steps=2)

    def evaluated() -> dict[str, float]:
        runner._evaluated = None
        return runner._evaluate()

    first = evaluated()
    assert evaluated() == first
    assert set(first) == {"eval/reward", "eval/distance", "eval/psnr_y"}
    assert first["eval/reward"] == pytest.approx(-first["eval/distance"], abs=1e-6)
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter += 1.0  # the learner moves on; the average doesn't until it is told
    assert evaluated() == first
    policy.sync("default", "ema")
    assert evaluated() != first
    sheet = contact_sheet(evaluation.pictures(runner._methods(), 4))
    assert sheet.shape == (3, 3 * 4, 3 * 4)  # 3 contexts down, LR | SR | HR across


def test_evaluations_share_a_row_with_their_iteration_and_are_told_what_was_spent(toy: Any, tmp_path: Path) -> None:
    from srgym.runners.loop.loggers import CSVLogger

    told: list[tuple[int, float, float]] = []
    runner = toy.run(
        loggers=[CSVLogger(tmp_path / "metrics.csv")], eval_every=2, iterations=5, log_every=5, eval_steps=1,
        evaluation=Evaluation(toy.task(20), {"reward": "psnr_y"}, reward="reward", limit=2),
        on_evaluation=lambda frame, cost, seconds: told.append((len(frame), cost["iterations"], cost["images"])),
    )  # fmt: skip
    runner.learn()
    lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    at = lines[0].index("eval/reward")
    assert [line[0] for line in lines[1:] if line[at]] == ["0", "2", "4", "5"]
    assert len(lines) == 5
    assert told == [(2, 0, 0), (2, 2, 16), (2, 4, 32), (2, 5, 40)]


def test_make_runner_is_reached_from_the_top(tmp_path: Path) -> None:
    run = srgym.make_runner("runner.iterations=1", experiment="compact_base", out=str(tmp_path / "run"), seed=4)
    (stage,) = run.config.stages
    assert (run.config.seed, stage.sections["runner"]["iterations"]) == (4, 1)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_on_images_that_are_trained_on_is_said(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (32, 32), (40 * i, 90, 20)).save(tmp_path / f"{i}.png")
    env = {"name": "hr_folder", "path": str(tmp_path), "preset": "bicubic", "split": "all"}
    settings, metrics = RunnerSettings(iterations=1, eval_every=1), ["psnr_y"]
    with pytest.warns(UserWarning, match="env.split=train keeps them apart"):
        build_evaluation(settings, env, {"split": "validation"}, metrics, "psnr_y", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_evaluation(settings, {**env, "split": "train"}, {"split": "validation"}, metrics, "psnr_y", 0)
