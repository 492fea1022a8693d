"""OARS, and the comparison, on a user's own folders, to the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from srgym import make_runner
from srgym.runners.run.config import ConfigError

TINY = ["policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
        "effort=0.01", "lora.rank=2", "runner.contexts=2", "runner.eval_contexts=2",
        "stages.cold_start.runner.contexts=2", "report.limit=2", "report.pictures=1", "logger=csv"]  # fmt: skip


def learnt(*overrides: str) -> tuple[Any, str]:
    run = make_runner("experiment=oars", *TINY, *overrides)
    run.learn()
    page = run.report()
    assert page is not None
    return run, page.with_suffix(".md").read_text()


def test_oars_runs_on_a_folder_of_ground_truth(folders: Path, tmp_path: Path) -> None:
    run, report = learnt("env=hr_folder", f"env.path={folders / 'hr'}", "env.preset=mild", f"out={tmp_path / 'run'}")
    record = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert record["env"]["split"] == "test"  # a tenth of the images, which nothing was trained on
    assert not record["seen"]
    assert "The claim" in report
    assert run.config.stages[0].sections["env"]["split"] == "train"


def test_oars_runs_on_pairs_and_its_non_reference_stage_on_lr_alone(folders: Path, tmp_path: Path) -> None:
    run, _ = learnt("env=paired_folders", f"env.lr={folders / 'lr'}", f"env.hr={folders / 'hr'}",
                    "stages.non_reference.env.name=lr_folder", f"stages.non_reference.env.path={folders / 'lr'}",
                    f"out={tmp_path / 'run'}")  # fmt: skip
    sections = {stage.name: stage.sections["env"] for stage in run.config.stages}
    assert sections["non_reference"]["name"] == "lr_folder"
    assert sections["non_reference"]["size"] == 64  # the run's
    assert sections["cold_start"]["split"] == "train"


def test_what_the_report_needs_is_looked_at_before_training(folders: Path, tmp_path: Path) -> None:
    own = ["experiment=oars", *TINY, "env=hr_folder", f"out={tmp_path / 'run'}"]
    for override, sentence in (
        ("report.limt=3", "did you mean 'report.limit'"),
        ("report.kind=oar", "report.kind is oars or realsr_r1, got 'oar'"),
        ("+report.metrics=[psnr]", "unknown reward 'psnr'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_runner(*own, f"env.path={folders / 'hr'}", override).learn()
    few = tmp_path / "few"
    few.mkdir()
    (few / "a.png").write_bytes((folders / "hr" / "0.png").read_bytes())
    with pytest.raises(ValueError, match="expected at least 3 images to split"):
        make_runner(*own, f"env.path={few}").learn()
    assert not (tmp_path / "run" / "stages").exists()
    with pytest.raises(ConfigError, match="unknown setting 'stages.non_reference.env.pth'"):
        make_runner(*own, "stages.non_reference.env.name=lr_folder", "stages.non_reference.env.pth=x")
