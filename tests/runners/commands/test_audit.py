"""`srgym rewards audit`: from the command to its page, gone on with, and right about a reward known to be bad."""

import json
from pathlib import Path

import pytest
from audit_table import table

from srgym.runners.commands.cli import main

TINY = [
    "policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
    "lora.rank=2", "lora.alpha=2", "runner.iterations=1", "runner.contexts=1", "contexts=2", "samples=3", "attacked=1",
    "steps=1", "ascent=2", "judges=[psnr_y,ssim_y,structure_texture]",
]  # fmt: skip
CRISP = """
import torch

def crisp(sr):
    '''How much neighbours differ: what sharp edges and pixel blocks have most of.'''
    return (sr[..., 1:] - sr[..., :-1]).square().mean((1, 2, 3))
"""


@pytest.fixture
def crisp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "crisp_reward.py").write_text(CRISP)
    monkeypatch.syspath_prepend(tmp_path)
    return "crisp_reward:crisp"


def test_a_bad_reward_fails_by_the_names_of_its_lines_and_an_audit_goes_on(
    tmp_path: Path, crisp: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    command = ["rewards", "audit", crisp, *TINY, "agent.group_size=2", f"out={out}"]
    assert main(command) == 1
    record = json.loads((out / "audit.json").read_text())
    failed = {line["name"] for line in record["lines"] if line["holds"] is False}
    assert {"bicubic over nearest", "over-sharpening", "noise", "checkerboard"} <= failed
    assert record["judges"]["fidelity"] == ["psnr_y", "ssim_y"] and not record["passes"]
    page = (out / "report.html").read_text()
    assert "over-sharpening" in page and "Fails" in page

    first = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    capsys.readouterr()
    assert main(command) == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == first
    assert "audit: " not in capsys.readouterr().out  # no part was measured again
    assert json.loads((out / "settings.json").read_text())["env"]["split"] == "test"
    assert main([*command[:-1], "env.split=validation", f"out={tmp_path / 'other'}"]) == 1
    assert json.loads((tmp_path / "other" / "settings.json").read_text())["env"]["split"] == "validation"
    trained = json.loads((tmp_path / "other" / "training" / "config.json").read_text())
    assert next(iter(trained["stages"].values()))["env"]["split"] == "train"
    assert main([*command[:-1], "contexts=3", f"out={out}"]) == 2
    assert "holds an audit of other settings" in capsys.readouterr().err


def test_what_cannot_be_audited_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "audit"]) == 2
    assert "srgym rewards audit expects one reward, got 0" in capsys.readouterr().err
    assert main(["rewards", "audit", "psnr", f"out={tmp_path}"]) == 2
    assert "psnr_y" in capsys.readouterr().err
    assert main(["rewards", "audit", "psnr_y", "samples=1", f"out={tmp_path}"]) == 2
    assert "samples: expected at least 3, got 1" in capsys.readouterr().err


def test_audits_are_put_side_by_side(tmp_path: Path) -> None:
    lines = {"good": [("truth first", True), ("shift", None)], "bad": [("truth first", False), ("shift", True)]}
    for name, said in lines.items():
        (tmp_path / name).mkdir()
        listed = [{"name": line, "holds": holds} for line, holds in said]
        (tmp_path / name / "audit.json").write_text(json.dumps({"lines": listed}))
    assert table(tmp_path).splitlines()[2:] == ["| good | 1 of 1 | none |", "| bad | 1 of 2 | truth first |"]
