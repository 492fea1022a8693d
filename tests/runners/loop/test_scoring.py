"""A judge that answers from elsewhere scores a rollout while it is drawn, and changes no number by that."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from srgym import rewards
from srgym.rewards.base import Reward
from srgym.rewards.info import describe
from srgym.runners.loop.interrupt import Interrupted
from srgym.runners.loop.loggers import Logger
from srgym.runners.loop.scoring import Scoring


class Judge:
    """Scores elsewhere, one image after another, each in `seconds`; keeps what it was asked."""

    def __init__(self, score: Callable[..., Tensor], seconds: float = 0.0) -> None:
        self._score, self._seconds = score, seconds
        self._pool = ThreadPoolExecutor(1)
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def begin(self, sr: Tensor, **beside: Any) -> Callable[[], Tensor]:
        self.asked.append(len(sr))
        self.threads.add(threading.current_thread().name)

        def answer() -> Tensor:
            time.sleep(self._seconds * len(sr))
            return self._score(sr, **beside)

        future: Future[Tensor] = self._pool.submit(answer)
        return future.result


def of_each(judge: Judge) -> Reward:
    def each(sr: Tensor, lr: Tensor) -> Any:
        return judge.begin(sr, lr=lr)

    return Reward(each, describe(each, "each"))


def of_groups(judge: Judge) -> Reward:
    def together(sr: Tensor, lr: Tensor, group: Tensor) -> Any:
        return judge.begin(sr, lr=lr, group=group)

    return Reward(together, describe(together, "together", group=True))


def ranked(sr: Tensor, lr: Tensor, group: Tensor) -> Tensor:
    """A sample's rank in its group by `closeness`, from 0 to 1: wrong wherever a group was cut."""
    score = (sr.mean((2, 3)) - lr.mean((2, 3))).square().sum(1)
    same = group[:, None] == group[None, :]
    return ((score[:, None] > score[None, :]) & same).float().sum(1) / same.float().sum(1)


def collected(toy: Any, reward: Reward, rollout_batch: int | None = None, groups: int = 3) -> TensorDict:
    from srgym.runners.loop.collect import collect

    agent = toy.agent(toy.policy(), group_size=4)
    task = toy.task(7, reward)
    context = task.context(torch.arange(groups))
    return collect(task, agent.policy, agent, context, seed=1, iteration=0, rollout_batch=rollout_batch)


@pytest.mark.parametrize("batch", [None, 1, 3, 4, 5, 8])
def test_judging_meanwhile_changes_no_bit(toy: Any, batch: int | None) -> None:
    each, together = describe(toy.closeness, "closeness"), describe(ranked, "ranked", group=True)
    pairs = [(Reward(toy.closeness, each), of_each(Judge(toy.closeness)))]
    pairs += [(Reward(ranked, together), of_groups(Judge(ranked)))]
    for mine, theirs in pairs:
        expected, found = collected(toy, mine, batch), collected(toy, theirs, batch)
        assert expected["reward"].unique().numel() > 2
        for name in ("reward", "valid", "sr", "seed"):
            assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(("batch", "each", "together"), [
    (3, [3, 3, 3, 3], [4, 4, 4]), (5, [5, 5, 2], [4, 4, 4]), (8, [8, 4], [8, 4]), (None, [12], [12]),
])  # fmt: skip
def test_groups_that_are_judged_together_wait_for_their_last(
    toy: Any, batch: int | None, each: list[int], together: list[int]
) -> None:
    one, many = Judge(toy.closeness), Judge(ranked)
    collected(toy, of_each(one), batch)
    collected(toy, of_groups(many), batch)
    assert (one.asked, many.asked) == (each, together)
    assert one.threads == many.threads == {threading.current_thread().name}


def test_a_sum_asks_all_its_judges_before_it_waits_for_one(toy: Any) -> None:
    slow, quick = Judge(toy.closeness, 0.05), Judge(toy.closeness, 0.05)
    mixed = rewards.make({"sum": {"a": {"name": of_each(slow)}, "b": {"name": of_each(quick), "weight": 2.0}}})
    before = time.monotonic()
    found = collected(toy, mixed)
    assert time.monotonic() - before < 2 * 12 * 0.05
    torch.testing.assert_close(
        found["reward"], 3 * collected(toy, Reward(toy.closeness, describe(toy.closeness, "c")))["reward"]
    )


def test_texts_and_steps_travel_with_their_images(toy: Any) -> None:
    """A policy that writes: each image's text is its first pixel, its step is the image itself."""
    seen: list[tuple[int, Sequence[str], Sequence[Tensor]]] = []

    def read(sr: Tensor, text: Sequence[str], intermediate: Sequence[Tensor], group: Tensor) -> Any:
        assert [f"{float(image[0, 0, 0]):.6f}" for image in sr] == list(text)
        assert torch.equal(intermediate[0], sr)
        seen.append((len(sr), text, intermediate))
        return lambda: sr.mean((1, 2, 3))

    class Writing(type(toy.policy())):  # type: ignore[misc]
        gives = frozenset({"text", "intermediate"})

        def made(self, rolled: TensorDict) -> dict[str, Any]:
            text = [f"{float(image[0, 0, 0]):.6f}" for image in rolled["sr"]]
            return {"text": text, "intermediate": [rolled["sr"]]}

    policy, reward = Writing(), Reward(read, describe(read, "read"))
    task = toy.task(7)
    task._reward = reward
    scoring = Scoring(task, policy, task.context(torch.arange(2)), 3)
    images = torch.rand(6, 3, 4, 4)
    for part in TensorDict({"sr": images}, batch_size=[6]).split(2):
        scoring.add(part)
    assert torch.equal(scoring.scores().total, images.mean((1, 2, 3)))
    assert [count for count, _, _ in seen] == [3, 3]


class Kept(Logger):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def scalars(self, step: int, values: Any) -> None:
        self.rows.append(dict(values))


def slowed(policy: Any, seconds: float) -> Any:
    """A policy whose sampler takes that long for a sample."""
    sample = policy.sample

    def slow(cond: TensorDict, *given: Any) -> TensorDict:
        time.sleep(seconds * len(cond))
        return sample(cond, *given)

    policy.sample = slow
    return policy


def test_with_a_judge_as_slow_as_the_sampler_a_tenth_of_an_iteration_is_waited(toy: Any) -> None:
    """16 groups of 4 at 5 ms a sample, 0.32 s on either side: of 17 parts of time one is waited for."""
    shares = {}
    for batch in (4, None):
        kept, judge = Kept(), Judge(toy.closeness, 0.005)
        agent = toy.agent(slowed(toy.policy(), 0.005), group_size=4)
        toy.run(
            task=toy.task(100, of_each(judge)), agent=agent, loggers=[kept], iterations=2, contexts=16,
            rollout_batch=batch, checkpoint_every=0,
        ).learn()  # fmt: skip
        shares[batch] = min(row["cost/waiting_seconds"] / row["cost/iteration_seconds"] for row in kept.rows)
    assert shares[4] < 0.1
    assert shares[None] > 2 * shares[4]


def test_a_judge_that_fails_stops_the_run_with_its_own_error_and_all_is_saved(toy: Any) -> None:
    judge, calls = Judge(toy.closeness), []

    def failing(sr: Tensor, lr: Tensor) -> Any:
        calls.append(len(sr))
        wait = judge.begin(sr, lr=lr)

        def answer() -> Tensor:
            if len(calls) > 2 * 4:
                raise ValueError("the server turned the question down")
            return wait()

        return answer

    run = toy.run(task=toy.task(7, Reward(failing, describe(failing, "failing"))), rollout_batch=2, checkpoint_every=0)
    with pytest.raises(ValueError, match="turned the question down") as raised:
        run.learn()
    assert any("while the reward 'failing' scored" in note for note in raised.value.__notes__)
    again = toy.run(rollout_batch=2)
    assert again.resume() and again.iteration == 2


def test_a_signal_while_a_judge_is_waited_for_is_answered_after_the_iteration(toy: Any) -> None:
    import os
    import signal

    def signalling(sr: Tensor, lr: Tensor) -> Any:
        def answer() -> Tensor:
            os.kill(os.getpid(), signal.SIGTERM)
            return toy.closeness(sr, lr)

        return answer

    run = toy.run(task=toy.task(7, Reward(signalling, describe(signalling, "signalling"))), checkpoint_every=0)
    with pytest.raises(Interrupted, match="after saving"):
        run.learn()
    again = toy.run()
    assert again.resume() and again.iteration == 1
