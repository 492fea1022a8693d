"""`srgym export`: a run's policy in diffusers' format, and a card that says how it came about."""

import json

import pytest
import torch

from srgym.policies.export import import_lora
from srgym.runners.commands.cli import main


@pytest.fixture
def run(make_tiny, shake, tmp_path):
    """A run's folder as training leaves it, with a tiny SD3's LoRA."""
    policy = make_tiny("sd3", on_disk=True)
    policy.add_adapters(rank=2, alpha=4)
    shake(policy, "ema")
    folder = tmp_path / "run" / "stages" / "main"
    policy.save(folder / "policy")
    (folder / "metrics.csv").write_text("iteration,loss,eval/reward,eval/psnr_y\n0,,0.1,20\n1,0.5,0.25,21.5\n2,0.4,,\n")
    stage = {"kind": "train", "reward": {"name": "dists"}, "env": {"name": "hr_folder", "size": 64}, "agent": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"stages": {"main": stage}}))
    record = {"policy": "stages/main/policy", "command": ["srgym", "train", "reward=dists"], "stages": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run", policy


@pytest.mark.parametrize("given", ["", "stages/main/policy"])
def test_the_lora_of_a_run_and_its_card(run, make_tiny, given, tmp_path):
    folder, policy = run
    out = tmp_path / "out"
    named = ["base_model=stabilityai/sd3", "licence=stabilityai-community"]
    assert main(["export", f"policy={folder / given}", f"out={out}", *named]) == 0
    again = make_tiny("sd3", on_disk=True)
    import_lora(again, out)
    ours, theirs = policy.adapter_deltas("ema"), again.adapter_deltas("ema")
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    card = (out / "README.md").read_text()
    for said in (
        "| Base model | stabilityai/sd3 |", "| Reward | dists |", "| Data | hr_folder (size 64) |",
        "srgym train reward=dists", "| psnr_y | 21.5 |", "| reward | 0.25 |", 'license: "stabilityai-community"',
    ):  # fmt: skip
        assert said in card, said


def test_a_whole_model(run, tmp_path):
    folder, _ = run
    assert main(["export", f"policy={folder}", f"out={tmp_path / 'model'}", "form=merged"]) == 0
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert "| Base model | sd3 |" in (tmp_path / "model" / "README.md").read_text()


def test_wrong_calls_are_sentences(run, tmp_path, tiny_policy, capsys):
    folder, _ = run
    tiny_policy.save(tmp_path / "compact")
    for given, message in (
        (["policy=nowhere", "out=o"], "expected the folder of a saved policy or of a run, found neither"),
        ([f"policy={folder}", "out=o", "form=zip"], "form is lora or merged, got 'zip'"),
        ([f"policy={tmp_path / 'compact'}", "out=o"], "got 'compact', which has no such format"),
        (["out=o"], "srgym export needs policy=PATH"),
    ):
        assert main(["export", *given]) == 2
        assert message in capsys.readouterr().err
