"""One process and two give the same losses and the same LoRA; a split policy is saved and resumed whole."""

import csv
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from srgym.agents import DiffusionNFT
from srgym.policies import load
from srgym.runners.collect import rows_anyway
from srgym.runners.distributed import World, agree, like, whole

# Rollouts and microbatches are cut where a group ends, so that the same products are summed on one process and on two.
SETTINGS = (
    "experiment=smoke", "runner.contexts=4", "runner.rollout_batch=4", "runner.microbatch=4", "runner.prefetch=1",
    "runner.images_every=0", "runner.threads=1", "runner.device=cpu", "logger=csv", "heldout=null", "lora.alpha=7",
)  # fmt: skip


def train(out, processes, *settings):
    """`srgym train` on so many processes, as torchrun starts them; returns their outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "srgym", "train", *SETTINGS, f"out={out}", *settings]
    started = []
    for rank in range(processes):
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        alone = {} if processes == 1 else {key: str(value) for key, value in told.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **alone}
        started.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    outputs = [process.communicate(timeout=240)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def adapters(out, stage="reinforce"):
    folder = out / "stages" / stage / "policy"
    return {path.stem: load_file(path) for path in folder.glob("adapter_*.safetensors")}


def rows(out, stage="reinforce"):
    with (out / "stages" / stage / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    train(out, 1)
    return out


def difference(found, expected):
    """Between two LoRAs as one vector each, relative. (Where a gradient is as small as AdamW's epsilon, one entry alone
    moves by more: there the update is the quotient of two roundings.)"""
    assert set(found) == set(expected)
    one, other = (torch.cat([lora[key].flatten() for key in sorted(expected)]).double() for lora in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(alone, tmp_path, parallel):
    """The split run is stopped after an iteration too, and taken up again from its checkpoint."""
    out = tmp_path / "run"
    # Full weights are trained in the cold start, which can't be split: that stage says ddp itself.
    settings = (f"runner.parallel={parallel}", "stages.cold_start.runner.parallel=ddp")
    if parallel == "fsdp":
        train(out, 2, *settings, "stages.reinforce.runner.iterations=1")
        for stage in ("reinforce", "merged"):
            (out / "stages" / stage / "policy" / "policy.json").unlink()
    train(out, 2, *settings)
    for name, expected in adapters(alone).items():
        assert difference(adapters(out)[name], expected) <= 1e-6, name
    for stage in ("cold_start", "reinforce"):
        ours, theirs = rows(out, stage), rows(alone, stage)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            for key in other:
                if key.startswith(("loss", "reward/")) and other[key] not in ("", "nan"):
                    assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-6, abs=1e-7), f"{stage} {key}"
            assert one["cost/images"] == other["cost/images"]
    policy = load(out / "stages" / "merged" / "policy")
    assert policy.predict(torch.rand(1, 3, 8, 8)).shape == (1, 3, 32, 32)
    assert json.loads((out / "run.json").read_text())["complete"] is True


def test_contexts_are_shared_out_whole():
    contexts = torch.arange(7)
    shares = [World(rank, 3).share(contexts) for rank in range(3)]
    assert torch.equal(torch.cat(shares), contexts) and [len(share) for share in shares] == [2, 2, 3]
    with pytest.raises(ValueError, match="runner.contexts=2 can't be shared by 3 processes"):
        World(0, 3).share(torch.arange(2))


def test_one_process_is_as_if_there_were_no_others():
    world = World()
    batch = TensorDict({"x": torch.arange(5)}, batch_size=[5])
    parts = list(world.parts(batch, 2, None))
    assert [len(part) for part, _ in parts] == [2, 2, 1] and sum(share for _, share in parts) == pytest.approx(1)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    world.sum_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(2)) and world.sum({"a": 1.0}) == {"a": 1.0}
    assert whole(parameter) is parameter and torch.equal(like(parameter, parameter), parameter)
    assert world.main and world.alone and World.start() == world and not world.any(False)


def test_all_go_on_with_the_same_time_and_end():
    told = [
        {"seconds": 1.0, "finished": False, "signal": None},
        {"seconds": 3.0, "finished": True, "signal": 15},
    ]
    assert agree(told) == (3.0, True, 15)
    assert agree(told[:1]) == (1.0, False, None)


class Told(World):
    """A process of two whose messages are made up."""

    def gather(self, value):
        return [value, 5]


def test_a_process_without_rows_still_takes_part_where_the_policy_is_split():
    """The other has 5 rows in microbatches of 2: three forwards here too, of weight 0."""
    spare = TensorDict({"x": torch.arange(3)}, batch_size=[3])
    parts = list(Told(0, 2, sharded=True).parts(None, 2, spare))
    assert [(part["x"].tolist(), share) for part, share in parts] == [([0], 0.0)] * 3
    assert list(Told(0, 2, sharded=False).parts(None, 2, spare)) == []
    few = TensorDict({"x": torch.arange(3)}, batch_size=[3])
    parts = list(Told(0, 2, sharded=True).parts(few, 2, few))
    assert [(part["x"].tolist(), share) for part, share in parts] == [([0, 1], 0.25), ([2], 0.125), ([0], 0.0)]


def test_a_rollout_without_anything_to_learn_still_gives_rows(tiny_policy):
    tiny_policy.add_adapters(rank=2)
    agent = DiffusionNFT(tiny_policy, None, group_size=4, steps=2, filter={"mean": 0.9, "limit": 0.05, "scale": 1})
    rolled = tiny_policy.rollout({"lr": torch.rand(2, 3, 8, 8)}, agent.sampling, torch.arange(8))
    rolled["reward"], rolled["valid"] = torch.ones(8), torch.ones(8, dtype=torch.bool)
    rolled["group"], rolled["index"] = torch.arange(2).repeat_interleave(4), torch.zeros(8, dtype=torch.int64)
    rolled["seed"], rolled["components"] = torch.arange(8), TensorDict({"a": torch.ones(8)}, batch_size=[8])
    assert len(agent.prepare(rolled)) == 0
    stats = agent.stats
    rows = rows_anyway(agent, rolled)
    assert len(rows) > 0 and agent.stats is stats and (rolled["reward"] == 1).all()
    assert torch.isfinite(agent.loss(rows[:1])["loss_policy"])
