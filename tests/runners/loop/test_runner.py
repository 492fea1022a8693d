"""The loop: what it collects, that the cut of a batch doesn't matter, and that a resumed run is the same run."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import digest

from srgym.policies.flow import FlowPolicy
from srgym.runners.loop.health import Failed
from srgym.runners.loop.loggers import CSVLogger, Logger
from srgym.runners.loop.settings import same_config


class Kept(Logger):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def scalars(self, step: int, values: Any) -> None:
        self.rows.append((step, dict(values)))


def weights(policy: FlowPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in policy.trainable_parameters()])


def test_counts_and_logs(toy: Any) -> None:
    kept = Kept()
    runner = toy.run(loggers=[kept])
    cost = runner.learn()
    # 6 iterations of 2 contexts with 4 samples each; 2 updates an iteration
    assert (cost["iterations"], cost["images"], cost["updates"]) == (6, 48, 12)
    # forwards: 8 samples x 2 steps, and 7 valid rows x 2 epochs with gradient
    assert cost["forwards"] == 6 * (16 + 14)
    assert [step for step, _ in kept.rows] == [1, 2, 3, 4, 5, 6]
    last = kept.rows[-1][1]
    assert last["reward/invalid"] == 1
    assert last["agent/dropped"] == 1
    assert last["agent/rows"] == 7
    assert last["reward/mean"] == pytest.approx(-last["reward/distance"], abs=0.05)
    assert {"reward/spread_in_groups", "loss", "loss/flow", "agent/weight", "optim/lr", "cost/flops"} <= set(last)


def test_a_loss_and_a_number_of_one_name_are_logged_apart(toy: Any) -> None:
    policy = toy.policy()
    agent = toy.agent(policy)
    whole = agent.loss

    def with_drift(rows: Any) -> Any:
        terms = whole(rows)
        terms["loss_drift"], terms["drift"] = 0.1 * terms["loss_flow"].detach(), terms["loss_flow"].detach()
        return terms

    agent.loss = with_drift
    kept = Kept()
    toy.run(agent=agent, iterations=1, loggers=[kept]).learn()
    last = kept.rows[-1][1]
    assert last["loss/drift"] == pytest.approx(0.1 * last["agent/drift"])
    assert last["loss"] == pytest.approx(last["loss/flow"] + last["loss/drift"])


@pytest.mark.parametrize("change", [{"microbatch": 3}, {"rollout_batch": 3}, {"prefetch": 2}])
def test_memory_knobs_do_not_change_the_result(toy: Any, change: dict[str, int]) -> None:
    reference, changed = toy.run(checkpoint_every=0), toy.run(checkpoint_every=0, **change)
    reference.learn()
    changed.learn()
    # summation order differs between cuts, in float32
    torch.testing.assert_close(weights(changed.policy), weights(reference.policy), rtol=0, atol=1e-6)


def test_every_context_comes_once_an_epoch(toy: Any) -> None:
    task = toy.task(7)
    toy.run(task=task, iterations=7).learn()
    assert sorted(task.source.asked[:7]) == sorted(task.source.asked[7:]) == list(range(7))
    assert task.source.asked[:7] != task.source.asked[7:]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resumed_is_the_same_run(toy: Any, tmp_path: Path, stop: int) -> None:
    whole = toy.run(checkpoint_every=0)
    whole.learn()
    toy.folder = tmp_path / "cut"
    first = toy.run(iterations=stop, schedule="constant")
    first.learn()
    second = toy.run()
    assert second.resume()
    assert second.iteration == stop
    second.learn()
    assert torch.equal(weights(second.policy), weights(whole.policy))
    assert digest(second.policy) == digest(whole.policy)
    assert second.images == whole.images
    assert second.meter.forwards == whole.meter.forwards


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_reward_that_fails_costs_nothing_of_what_was_learnt(toy: Any, tmp_path: Path, prefetch: int) -> None:
    whole = toy.run(checkpoint_every=0)
    whole.learn()
    toy.folder = tmp_path / "failing"
    task, scored = toy.task(), []
    score = task.begin

    def failing(*given: Any) -> Any:
        scored.append(given)
        if len(scored) == 4:
            raise ValueError("the server is gone")
        return score(*given)

    task.begin = failing
    with pytest.raises(ValueError, match="the server is gone"):
        toy.run(task=task, checkpoint_every=0, prefetch=prefetch).learn()
    again = toy.run(checkpoint_every=0)
    assert again.resume() and again.iteration == 3
    again.learn()
    assert torch.equal(weights(again.policy), weights(whole.policy))


def test_resume_refuses_other_settings(toy: Any) -> None:
    toy.run().learn()
    with pytest.raises(ValueError, match=r"started with seed=5, and now it is 6"):
        runner = toy.run()
        runner.config["seed"] = 6
        runner.resume()


def test_a_server_that_moved_is_no_other_setting(tmp_path: Path) -> None:
    engine = {"engine": "served", "urls": ["http://here:8000"], "retries": 3}
    before = {"reward": {"name": "compass", "scorer": {"name": "mllm", "engine": engine}}}
    moved = {
        "reward": {"name": "compass", "scorer": {"name": "mllm", "engine": {**engine, "urls": ["http://there:1"]}}}
    }
    same_config(before, moved, tmp_path)
    moved["reward"]["scorer"]["engine"]["engine"] = "vllm"
    with pytest.raises(ValueError, match=r"started with reward.scorer.engine.engine=served, and now it is vllm"):
        same_config(before, moved, tmp_path)


def test_log_has_no_step_twice_after_a_crash(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = toy.run(loggers=[CSVLogger(path)], checkpoint_every=4)
    first.learn()
    with path.open("a") as file:
        file.write("7,0.5")  # cut short by a crash
    CSVLogger(path, after=4).scalars(5, {"late": 1.0})
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[-1]["late"] == "1"
    assert rows[0]["late"] == ""


def test_agents_that_sample_for_themselves_get_contexts(toy: Any) -> None:
    policy = toy.policy()
    agent = toy.agent(policy, group_size=2, epochs=1)
    agent.sampling = None
    seen = []
    agent.prepare = lambda rows: seen.append(rows) or rows[:0]
    runner = toy.run(agent=agent, iterations=1)
    runner.learn()
    assert {"index", "group", "seed", "lr", "hr", "cond"} == set(seen[0].keys())
    assert runner.updates == 0
    assert runner.images == 4


def test_a_loss_that_stays_broken_ends_the_run(toy: Any) -> None:
    policy = toy.policy()
    agent = toy.agent(policy)
    whole = agent.loss
    agent.loss = lambda rows: whole(rows).apply(lambda value: value * float("nan"))
    before = weights(policy)
    with pytest.raises(Failed, match="non-finite gradient"):
        toy.run(agent=agent, iterations=50).learn()
    assert torch.equal(weights(policy), before)


def test_a_budget_is_needed(toy: Any) -> None:
    with pytest.raises(ValueError, match=r"runner\.iterations, runner\.images or runner\.seconds"):
        toy.run(iterations=None).learn()


def test_images_end_a_run(toy: Any) -> None:
    assert toy.run(iterations=None, images=20).learn()["images"] == 24


def test_bf16_reaches_the_velocity_only(toy: Any) -> None:
    policy = toy.policy()
    seen = {}
    plain = policy.net.shift.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen["velocity"] = plain(x)
        return seen["velocity"]

    policy.net.shift.forward = forward
    task = toy.task()
    score = task.begin

    def scored(context: Any, sr: torch.Tensor, of: torch.Tensor) -> Any:
        seen["autocast"], seen["sr"] = torch.is_autocast_enabled("cpu"), sr
        return score(context, sr, of)

    task.begin = scored
    toy.run(task=task, agent=toy.agent(policy), iterations=1, autocast="bf16").learn()
    assert seen["velocity"].dtype is torch.bfloat16
    assert seen["sr"].dtype is torch.float32
    assert not seen["autocast"]
