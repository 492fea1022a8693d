"""One process and two give the same losses and the same LoRA; a split policy is saved and resumed whole."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict
from writers import TINY

from srgym.agents import DiffusionNFT
from srgym.policies import load
from srgym.policies.compact import CompactPolicy
from srgym.runners.loop.collect import imagined
from srgym.runners.loop.distributed import World, agree, like, shard, whole

# Rollouts and microbatches are cut where a group ends, so that the same products are summed on one process and on two.
SETTINGS = [
    "experiment=smoke", "runner.contexts=4", "runner.rollout_batch=4", "runner.microbatch=4", "runner.prefetch=1",
    "runner.images_every=0", "runner.threads=1", "runner.device=cpu", "logger=csv", "heldout=null", "lora.alpha=7",
    "stages.cold_start.runner.iterations=1",
]  # fmt: skip
# Full weights are trained in the cold start, which can't be split: that stage says ddp itself.
FSDP = ["runner.parallel=fsdp", "stages.cold_start.runner.parallel=ddp"]
LONG = ["stages.cold_start.runner.iterations=5000", "runner.checkpoint_every=0"]
WRITER = [
    "experiment=realsr_r1", "policy.weights=null", *(f"policy.{key}={value}" for key, value in TINY.items()),
    "env.size=32", "runner.contexts=4", "runner.rollout_batch=4",
    "runner.microbatch=4", "runner.iterations=2", "agent.group_size=4", "runner.threads=1", "runner.device=cpu",
    "logger=csv", "heldout=null", "report=null", "stages.cold_start.runner.iterations=2", "lora.rank=2",
    "stages.cold_start.runner.contexts=4", "stages.cold_start.runner.microbatch=4", "agent.credit=sum", "env.crops=8",
]  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {
    "alone": {"processes": 1},
    "ddp": {"processes": 2},
    "stopped": {"processes": 2, "settings": [*FSDP, "stages.reinforce.runner.iterations=1"]},
    # As if "stopped" had ended in the midst of its last stage but one.
    "fsdp": {
        "processes": 2,
        "settings": FSDP,
        "forget": ["stages/reinforce/policy/policy.json", "stages/merged/policy/policy.json"],
    },
    "grpo": {"processes": 1, "settings": ["agent=flow_grpo", "agent.std=batch", "agent.group_size=3"]},
    "grpo_ddp": {"processes": 2, "settings": ["agent=flow_grpo", "agent.std=batch", "agent.group_size=3"]},
    "writer": {"processes": 1, "base": WRITER},
    "writer_ddp": {"processes": 2, "base": WRITER},
    "writer_fsdp": {"processes": 2, "base": WRITER, "settings": FSDP},
    "killed": {"processes": 2, "settings": LONG, "signal": [1, signal.SIGKILL]},
    "silent": {"processes": 2, "settings": [*LONG, "runner.patience=3"], "signal": [1, signal.SIGSTOP]},
    "told": {"processes": 2, "settings": LONG, "signal": [1, signal.SIGUSR1]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All jobs, done in one process that forks the others: their folders, exit codes and outputs."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: root / ("fsdp" if name == "stopped" else name) for name in JOBS}
    jobs = [
        {**job, "out": str(folders[name]), "settings": [*job.get("base", SETTINGS), *job.get("settings", [])]}
        for name, job in JOBS.items()
    ]
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("distributed_worker.py")), json.dumps(jobs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE, text=True, check=True, timeout=280,
    )  # fmt: skip
    done = dict(zip(JOBS, json.loads(ran.stdout.splitlines()[-1]), strict=True))
    return {name: (folders[name], done[name]["codes"], done[name]["outputs"]) for name in JOBS}


def adapters(out, stage="reinforce"):
    folder = out / "stages" / stage / "policy"
    return {path.stem: load_file(path) for path in folder.glob("adapter_*.safetensors")}


def rows(out, stage="reinforce"):
    with (out / "stages" / stage / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def difference(found, expected):
    """Between two LoRAs as one vector each, relative. (Where a gradient is as small as AdamW's epsilon, one entry alone
    moves by more: there the update is the quotient of two roundings.)"""
    assert set(found) == set(expected)
    one, other = (torch.cat([lora[key].flatten() for key in sorted(expected)]).double() for lora in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("two", ["writer_ddp", "writer_fsdp"])
def test_two_processes_write_what_one_does(runs, two):
    (alone, codes, outputs), (out, two_codes, two_outputs) = runs["writer"], runs[two]
    assert codes == [0] and two_codes == [0, 0], (outputs, two_outputs)
    for stage in ("grpo", "shuffled"):
        for name, expected in adapters(alone, stage).items():
            assert difference(adapters(out, stage)[name], expected) <= 1e-5, (stage, name)
        ours, theirs = rows(out, stage), rows(alone, stage)
        assert len(ours) == len(theirs) > 0
        for found, expected in zip(ours, theirs, strict=True):
            for key in ("reward/generation", "reward/format", "loss/policy", "agent/rows"):
                assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-5, abs=1e-6), (stage, key)


@pytest.mark.parametrize("one, two", [("alone", "ddp"), ("alone", "fsdp"), ("grpo", "grpo_ddp")])
def test_two_processes_do_what_one_does(runs, one, two):
    """The split run was stopped after an iteration, too, and taken up again from its checkpoint."""
    (alone, codes, outputs), (out, two_codes, two_outputs) = runs[one], runs[two]
    assert codes == [0] and two_codes == [0, 0], (outputs, two_outputs)
    for name, expected in adapters(alone).items():
        assert difference(adapters(out)[name], expected) <= 1e-6, name
    for stage in ("cold_start", "reinforce"):
        ours, theirs = rows(out, stage), rows(alone, stage)
        assert len(ours) == len(theirs) > 0
        for found, expected in zip(ours, theirs, strict=True):
            for key in expected:
                if key.startswith(("loss", "reward/")) and expected[key] not in ("", "nan"):
                    assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-6, abs=1e-7), (stage, key)
                if key.startswith(("agent/groups", "agent/rows", "agent/samples")) or key == "cost/images":
                    assert found[key] == expected[key], (stage, key)
            if two != "fsdp":  # split, a process without rows of its own runs forwards that weigh nothing
                assert float(found["cost/forwards"]) == float(expected["cost/forwards"])
    policy = load(out / "stages" / "merged" / "policy")
    assert policy.predict(torch.rand(1, 3, 8, 8)).shape == (1, 3, 32, 32)
    assert json.loads((out / "run.json").read_text())["complete"] is True


@pytest.mark.parametrize("name", ["killed", "silent"])
def test_a_lost_process_ends_the_others_with_a_sentence(runs, name):
    _, codes, outputs = runs[name]
    assert codes[0] == 1 and "[process 0]: process 0 of 2 lost the others" in outputs[0], outputs[0]


def test_a_signal_to_any_process_saves_and_stops_all(runs):
    out, codes, outputs = runs["told"]
    assert codes == [128 + signal.SIGUSR1] * 2 and all("stopped by SIGUSR1 after saving" in text for text in outputs)
    assert len(list(out.glob("stages/cold_start/checkpoints/*/manifest.json"))) == 1


def test_contexts_are_shared_out_whole():
    contexts = torch.arange(7)
    shares = [World(rank, 3).share(contexts) for rank in range(3)]
    assert torch.equal(torch.cat(shares), contexts) and [len(share) for share in shares] == [2, 2, 3]
    with pytest.raises(ValueError, match="runner.contexts=2 can't be shared by 3 processes"):
        World(0, 3).share(torch.arange(2))
    with pytest.raises(ValueError, match="runner.contexts=7 can't be shared evenly by 3 .* expected a multiple of 3"):
        World(0, 3, sharded=True).share(contexts)


def test_what_cannot_be_split_is_a_sentence(tiny_policy: CompactPolicy):
    with pytest.raises(ValueError, match="fsdp splits the base under a LoRA: expected lora settings, got lora=null"):
        shard(tiny_policy)
    tiny_policy.rows = 8  # as the foundation models' policies have it
    with pytest.raises(ValueError, match=r"expected runner.microbatch=64 to be at most policy.rows=8"):
        shard(tiny_policy, microbatch=64)


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
        {"seconds": 1.0, "finished": False, "signal": None, "iteration": 2},
        {"seconds": 3.0, "finished": True, "signal": 15, "iteration": 2},
    ]
    assert agree(told) == (3.0, True, 15)
    assert agree(told[:1]) == (1.0, False, None)
    with pytest.raises(ValueError, match=r"at iterations \[2, 1\]"):
        agree([told[0], {**told[1], "iteration": 1}])


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
    rows = agent.prepare(imagined(rolled))
    assert len(rows) > 0 and (rolled["reward"] == 1).all()
    assert torch.isfinite(agent.loss(rows[:1])["loss_policy"])
