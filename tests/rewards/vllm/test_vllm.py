"""The whole path through a real vLLM: the protocol, the constraint, the safety, and equality with this process."""

import base64
import csv
import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srgym.files import to_png as png
from srgym.rewards import make
from srgym.rewards.compass.mllm import MLLMScorer, SoftScorer
from srgym.rewards.later import settled
from srgym.rewards.realsr_r1.generation import AXES
from srgym.rewards.serving.client import Client, ServerRefused
from srgym.rewards.serving.local import TransformersEngine
from srgym.rewards.serving.parsing import score_pattern, score_reply
from srgym.rewards.serving.prompts import COMPASS_FIELDS
from srgym.rewards.serving.question import Question, Reply
from srgym.rewards.serving.server import Server, serve_environment
from srgym.runners.commands.cli import main

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    """Three LR images and four SR images of each."""
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(3, 3, 16, 16, generator=generator).repeat_interleave(4, 0)
    coarse = torch.rand(12, 3, 4, 4, generator=generator)
    return lr, torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


@pytest.fixture
def served(server: Server) -> dict[str, Any]:
    return {"engine": "served", "urls": [server.url], "token": server.token, "model": "compass"}


@pytest.fixture(scope="module")
def local(tiny_qwen3vl: Path) -> TransformersEngine:
    return TransformersEngine(tiny_qwen3vl, device="cpu", dtype="float32")


def test_soft_scores_are_those_of_the_same_model_in_this_process(served: Any, local: Any, pairs: Any) -> None:
    theirs, ours = settled(SoftScorer(served)(*pairs)), SoftScorer(local)(*pairs)
    assert theirs[3].all()
    # Two implementations in float32: their log-probabilities agree to some 1e-6.
    for a, b in zip(theirs[:3], ours[:3], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
        assert b.std() > 1e-3


def test_read_scores_are_those_of_the_same_model_in_this_process(served: Any, local: Any, pairs: Any) -> None:
    theirs, ours = settled(MLLMScorer(served)(*pairs)), MLLMScorer(local)(*pairs)
    assert theirs[3].all()
    assert len(set(zip(*(column.tolist() for column in ours[:3]), strict=True))) > 1
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)


def test_a_models_llm_in_one_process_gives_the_same(
    vllm_python: str, tiny_qwen3vl: Path, local: Any, pairs: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    lr, sr = pairs
    save_file({"lr": lr, "sr": sr.contiguous()}, tmp_path / "images.safetensors")
    script, source = Path(__file__).with_name("in_process.py"), Path(__file__).parents[3] / "src"
    environment = serve_environment("unused", cpu=True) | {
        "PYTHONPATH": str(source),
        "VLLM_RPC_BASE_PATH": str(tmp_path),
    }
    done = subprocess.run(
        [vllm_python, str(script), str(tiny_qwen3vl), str(tmp_path / "images.safetensors")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("scores: ")]
    assert lines, done.stderr[-3000:]
    scores = json.loads(lines[0].removeprefix("scores: "))
    for name, kind, tolerance in (("mllm", MLLMScorer, 0.0), ("soft", SoftScorer, 2e-5)):
        for a, b in zip(scores[name], kind(local)(lr, sr), strict=True):
            torch.testing.assert_close(torch.tensor(a, dtype=b.dtype), b, atol=tolerance, rtol=0)


def test_compass_runs_on_the_server(served: Any, pairs: Any) -> None:
    lr, sr = pairs
    reward = make("compass", scorer={"name": "mllm", "engine": served})
    output = reward(sr, lr=lr, group=torch.arange(3).repeat_interleave(4))
    assert output.valid.all()
    assert ((output.total >= -0.452) & (output.total <= 5)).all()


def test_a_whole_rollout_is_in_flight_at_once_and_comes_back_by_group(server: Server) -> None:
    client = Client(server.url, model="compass", token=server.token)
    generator = torch.Generator().manual_seed(1)
    images = [png(torch.rand(3, 64, 64, generator=generator)) for _ in range(48)]
    pattern = score_pattern(COMPASS_FIELDS)
    asked = [Question("score", (im,), seed=i, pattern=pattern, temperature=1.0) for i, im in enumerate(images)]
    arrived = dict(client.stream(asked, lambda r: score_reply(r, COMPASS_FIELDS), groups=[i // 8 for i in range(48)]))
    assert sorted(arrived) == list(range(6))
    assert all(answer is not None for answers in arrived.values() for answer in answers)
    assert client.stats["lost"] == 0
    again = client.ask(asked, lambda r: score_reply(r, COMPASS_FIELDS))
    assert again == [answer for label in range(6) for answer in arrived[label]]  # the seed decides, not the batch


def test_decoding_stops_behind_the_scores(server: Server) -> None:
    client = Client(server.url, model="compass", token=server.token)
    pattern = score_pattern(COMPASS_FIELDS)[:-2] + r',"description":"(aa)*a"\}'
    question = Question(
        "score", (png(torch.zeros(3, 32, 32)),), pattern=pattern, stop=('"description"',), max_tokens=64
    )
    replies: list[Reply] = []
    [scores] = client.ask([question], lambda reply: (replies.append(reply), score_reply(reply, COMPASS_FIELDS))[1])
    assert scores is not None
    assert replies[0].stopped
    assert "description" not in replies[0].text


def test_the_group_judge_and_refreward_run_on_the_server(served: Any, pairs: Any) -> None:
    lr, sr = pairs
    group = torch.arange(3).repeat_interleave(4)
    judged = make("srgym.rewards.realsr_r1.reward:RealSRR1", generation={"name": "judge", "engine": served})
    output = judged(sr, lr=lr, group=group)
    assert output.valid.all()
    axes = torch.stack([output.components[f"generation/{axis}"] for axis in AXES])
    torch.testing.assert_close(output.total, axes.mean(0))
    rated = make("srgym.rewards.refreward:RefReward", engine=served)(sr, lr=lr)
    assert rated.valid.all()
    assert ((rated.total >= 0) & (rated.total <= 1)).all()


def test_a_stranger_is_turned_away(server: Server) -> None:
    question = Question("score", (png(torch.zeros(3, 32, 32)),), max_tokens=1)
    with pytest.raises(ServerRefused, match="answered 401"):
        Client(server.url, model="compass", token="a-guess").ask([question], lambda reply: reply)
    with pytest.raises(ServerRefused, match="answered 404"):
        Client(server.url, model="another", token=server.token).ask([question], lambda reply: reply)
    with pytest.raises(ServerRefused, match="answered 400"):
        too_many = Question("score", (png(torch.zeros(3, 32, 32)),) * 6, max_tokens=1)
        Client(server.url, model="compass", token=server.token).ask([too_many], lambda reply: reply)


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("http://127.0.0.1:{port}/health", "from one of the allowed domains"),
        ("file:///etc/hostname", "Cannot load local files"),
    ],
)
def test_an_image_is_never_fetched(server: Server, address: str, refusal: str) -> None:
    address = address.format(port=server.url.rsplit(":", 1)[1])
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "?"}]
    status, said = _post(server, content)
    assert status >= 400
    assert refusal in said
    inside = base64.b64encode(png(torch.zeros(3, 32, 32))).decode()
    content[0]["image_url"] = {"url": f"data:image/png;base64,{inside}"}
    assert _post(server, content)[0] == 200


def _post(server: Server, content: list[dict[str, Any]]) -> tuple[int, str]:
    body = {"model": "compass", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.token}"}
    request = urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_run_trains_on_the_server(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRGYM_SERVE_TOKEN", server.token)
    # Greedy decoding of random weights says much the same of all images; at temperature 1 scores vary in a group.
    arguments = [
        "experiment=smoke", "agent=nft", "reward=compass_mllm", f"reward.scorer.engine.urls=[{server.url}]",
        "+reward.scorer.temperature=1.0", "runner.eval_every=0", "runner.images_every=0", "runner.autocast=off",
        "logger=csv", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(["train", *arguments]) == 0
    with (tmp_path / "run" / "stages" / "reinforce" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["reward/invalid"]]
    assert [float(row["reward/invalid"]) for row in rows] == [0.0, 0.0]
    assert all(float(row["reward/spread_in_groups"]) > 0 and float(row["cost/updates"]) > 0 for row in rows)
