"""Each paper's reward drives `srgym train` with NFT, from the command line to the numbers in metrics.csv."""

import base64
import csv
import hashlib
import json
import math
import random
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from srgym.runners.commands.cli import main

SMOKE = [
    "experiment=smoke", "agent=nft", "runner.eval_every=0", "runner.images_every=0", "runner.autocast=off",
    "logger=csv",
]  # fmt: skip

# Where a reward's section keeps what asks a server.
ENGINE = {"compass_mllm": "scorer.engine", "realsr_r1": "generation.engine", "refreward": "engine"}


def scores(body: Mapping[str, Any]) -> str:
    """What a model might answer: scores that follow from the images, and so differ inside a group."""
    *parts, _ = body["messages"][0]["content"]
    images = [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in parts]
    a, b = hashlib.blake2b(images[-1], digest_size=2).digest()
    if body["model"] == "compass":
        return json.dumps({"fidelity": round(a / 255, 2), "q_lr": 2.0, "q_sr": round(1 + b / 64, 2)})
    if body["model"] == "refreward":
        return json.dumps({"consistency": round(1 + a / 64, 2), "naturalness": round(1 + b / 64, 2)})
    marks = [list(hashlib.blake2b(image, digest_size=3).digest()) for image in images[1:]]  # the first is LR
    axes = ("quality", "realism", "consistency")
    names = re.findall(r'"([A-Z])":', body["structured_outputs"]["regex"])
    given = {
        n: dict(zip(axes, (m * 10 // 255 for m in mark), strict=True)) for n, mark in zip(names, marks, strict=True)
    }
    return json.dumps(given)


def say(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def honest(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
    return say(scores(body))


def settings(reward: str, *urls: str, **changes: Any) -> list[str]:
    """What a user types for a served reward."""
    where = f"reward.{ENGINE[reward]}"
    given = {"timeout": 5, "deadline": 20, "backoff": 0.001, **changes}
    # `failures` isn't in the section's file, so Hydra wants a + before it.
    plus = {key: "+" if key == "failures" else "" for key in given}
    options = [f"{plus[key]}{where}.{key}={value}" for key, value in given.items()]
    return [f"reward={reward}", f"{where}.urls=[{','.join(urls)}]", *options]


def numbers(folder: Path) -> list[dict[str, float]]:
    """The rows of the RL stage that hold an iteration."""
    with (folder / "stages" / "reinforce" / "metrics.csv").open() as file:
        rows = [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if "reward/invalid" in row]


def trained(folder: Path, *arguments: str) -> list[dict[str, float]]:
    assert main(["train", *SMOKE, *arguments, f"out={folder}"]) == 0
    return numbers(folder)


def moved(rows: list[dict[str, float]]) -> bool:
    """Whether all was scored, scores differed inside groups, and the policy was changed by them."""
    return len(rows) == 2 and all(
        row["reward/invalid"] == 0
        and row["reward/spread_in_groups"] > 0
        and row["agent/rows"] > 0
        and row["optim/gradient_norm"] > 0
        for row in rows
    )


@pytest.mark.parametrize(
    ("reward", "components"),
    [
        (["reward=compass"], {"fidelity", "q_lr", "q_sr", "delta_q"}),
        (["reward=compass_full_reference"], {"fidelity", "q_lr", "q_sr", "delta_q"}),
        (["reward=finpercep"], {"fault_mean"}),
        (["reward=realsr_r1", "reward.generation=structure_texture"], {"generation"}),
    ],
    ids=["compass", "compass_full_reference", "finpercep", "realsr_r1"],
)
def test_a_reward_in_this_process_trains(reward: list[str], components: set[str], tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", *reward)
    assert moved(rows)
    assert all(math.isfinite(row[f"reward/{name}"]) for row in rows for name in components)


@pytest.mark.parametrize(
    ("reward", "model", "total"),
    [
        ("compass_mllm", "compass", None),
        ("realsr_r1", "judge", lambda row: row["reward/generation"]),
        ("refreward", "refreward", lambda row: ((row["reward/consistency"] + row["reward/naturalness"]) / 2 - 1) / 4),
    ],
)
def test_a_served_reward_trains(reward: str, model: str, total: Any, start_server: Any, tmp_path: Path) -> None:
    server = start_server(honest)
    server.models = (model,)
    rows = trained(tmp_path / "run", *settings(reward, server.url))
    assert moved(rows)
    # 2 iterations of 2 groups of 4, where the judge is asked once a group.
    assert server.requests == (2 * 2 if model == "judge" else 2 * 2 * 4)
    for row in rows:
        assert row["reward/mean"] == pytest.approx(total(row), abs=1e-5) if total else row["reward/q_lr"] == 2.0


def test_faults_cost_samples_and_never_invent_scores(start_server: Any, tmp_path: Path) -> None:
    draw, told = random.Random(3), []

    def faulty(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        if draw.random() < 0.3:
            faults = [
                (500, "oops"),
                (200, "<html>"),
                say('{"consistency": NaN, "naturalness": 3}'),
                say("about 4 of 5"),
            ]
            return draw.choice(faults)
        answer = json.loads(scores(body))
        told.append(((answer["consistency"] + answer["naturalness"]) / 2 - 1) / 4)
        return honest(body, headers)

    server = start_server(faulty)
    options = settings("refreward", server.url, retries=0, failures=1000)
    rows = trained(tmp_path / "run", *options, "runner.iterations=6", "runner.checkpoint_every=0")
    lost = [int(row["reward/invalid"]) for row in rows]
    assert len(rows) == 6
    assert sum(lost) == server.requests - len(told) == 6 * 8 - len(told) > 0
    # What was logged is the mean of what the server said, of nothing else.
    at = 0
    for row, missing in zip(rows, lost, strict=True):
        said = told[at : at + 8 - missing]
        at += len(said)
        assert row["reward/mean"] == pytest.approx(sum(said) / len(said), abs=1e-5)
    assert sum(row["agent/rows"] for row in rows) > 0


def test_a_model_that_answers_nonsense_trains_nothing_and_says_so(
    start_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server(lambda *_: say("I can't tell."))
    options = [*settings("refreward", server.url, retries=0), "runner.iterations=5", f"out={tmp_path / 'run'}"]
    assert main(["train", *SMOKE, *options]) == 1
    assert "'refreward' gave no valid score in 3 iterations" in capsys.readouterr().err
    rows = numbers(tmp_path / "run")
    assert [row["reward/invalid"] for row in rows] == [8.0] * 2  # the third ended it
    assert all(math.isnan(row["reward/mean"]) and row["agent/rows"] == 0 for row in rows)
    assert rows[-1]["cost/updates"] == 0


def test_a_server_that_dies_ends_the_run_and_it_goes_on_from_its_checkpoint(
    start_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive = True

    def mortal(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        nonlocal alive
        alive = alive and server.requests <= 16
        return honest(body, headers) if alive else (503, "gone")

    server, folder = start_server(mortal), tmp_path / "run"
    options = settings("refreward", server.url, retries=0, failures=1000)
    command = ["train", *SMOKE, *options, "runner.iterations=9", f"out={folder}"]
    assert main(command) == 2
    refused = capsys.readouterr().err
    assert "srgym: no server of the model 'refreward' has replied to any question of 3 batches in a row" in refused
    assert "stage 'reinforce', iteration 5, reward 'refreward'" in refused.splitlines()[-1]
    rows = numbers(folder)
    assert [row["reward/invalid"] for row in rows] == [0, 0, 8, 8]  # the third silent batch ended it
    assert rows[-1]["cost/updates"] == rows[1]["cost/updates"] > 0
    server.handler = honest
    assert main(command) == 0
    rows = numbers(folder)
    assert [row["reward/invalid"] for row in rows] == [0, 0, 8, 8, 0, 0, 0, 0, 0]


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("reward", list(ENGINE))
def test_without_a_server_nothing_is_trained(reward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMOKE, *settings(reward, nobody()), f"out={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"^srgym: no server of the model '\w+' answers at http://127.0.0.1:\d+ \(.*refused\)", told)
    assert "srgym serve" in told
    assert not list(tmp_path.rglob("checkpoints")) and not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reward.engine.urls=[]", "at least one server"),
        ("reward.engine.urls=null", "at least one server"),
        ("reward.engine.urls=[localhost]", "expected the base address of a server"),
        ("reward.engine.limit=0", "limit >= 1"),
        ("+reward.engine.url=x", "engine 'served'"),
    ],
)
def test_wrong_settings_of_a_served_reward_are_one_sentence(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMOKE, "reward=refreward", change, f"out={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("srgym: ") and message in told[-1]


def test_a_server_of_another_model_or_with_a_secret_is_refused(
    start_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server(honest)
    server.models = ("compass",)
    assert main(["train", *SMOKE, *settings("refreward", server.url), f"out={tmp_path / 'run'}"]) == 2
    assert "serves 'compass', and not the model 'refreward'" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_with_the_replicas_that_are_there(start_server: Any, tmp_path: Path) -> None:
    server = start_server(honest)
    rows = trained(tmp_path / "run", *settings("refreward", nobody(), server.url))
    assert moved(rows)
