"""A reward and an agent from a package that is installed beside srgym, made of what the tutorials show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, shown
from PIL import Image
from skimage import data

TUTORIALS = ROOT / "docs" / "tutorials"
PYPROJECT = shown(TUTORIALS / "own_reward.md", "[build-system]")
PYPROJECT += '[project.entry-points."srgym.agents"]\nrwr = "my_package.agents:RWR"\n'
TINY = ["policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
        "lora.rank=2", "runner.contexts=2", "runner.eval_contexts=2", "effort=0.01"]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    root = tmp_path_factory.mktemp("own")
    source, target = root / "source", root / "site"
    (source / "my_package").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "my_package" / "__init__.py").touch()
    (source / "my_package" / "rewards.py").write_text(shown(TUTORIALS / "own_reward.md", "register_reward"))
    (source / "my_package" / "agents.py").write_text(shown(TUTORIALS / "own_agent.md", "(Agent)"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    (root / "photographs").mkdir()
    for i in range(10):
        Image.fromarray(data.astronaut()[10 * i : 10 * i + 96, 100:196]).save(root / "photographs" / f"{i}.png")
    return target


def srgym(site: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-m", "srgym", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_listed_and_checked(site: Path) -> None:
    rows = {row["name"]: row for row in json.loads(srgym(site, "rewards", "--json"))}
    assert (rows["edges"]["origin"], rows["edges"]["licence"]) == ("my-package", "not stated")
    assert "ok" in srgym(site, "rewards", "check", "edges", "size=64")


def test_both_train_on_ones_own_photographs(site: Path, tmp_path: Path) -> None:
    srgym(site, "train", "experiment=smoke", "agent=rwr", "agent.group_size=2", "agent.temperature=0.3", "reward=edges",
          "env=hr_folder", f"env.path={site.parent / 'photographs'}", "env.preset=mild", "runner.images_every=0",
          f"out={tmp_path}")  # fmt: skip
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["complete"] and "reward=edges" in run["command"]


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_four_agents_and_ones_own_are_compared_on_ones_own_photographs(site: Path, tmp_path: Path) -> None:
    mine = ["env=hr_folder", f"env.path={site.parent / 'photographs'}", "env.preset=mild", "env.size=64"]
    out = tmp_path / "out"
    srgym(site, "compare", "agent=nft,flow_grpo,dpo,refl,rwr", "reward=edges", "experiment=compare_small",
          "seed=0,1,2", *mine, *TINY, "agent.group_size=2", "budget.images=8", "evaluations=1", "limit=2", "pictures=1",
          "metrics=[psnr_y]", "jobs=2", f"out={out}")  # fmt: skip
    report = (out / "report.md").read_text()
    plan = json.loads((out / "compare.json").read_text())
    assert set(plan["entries"]) == {"nft", "flow_grpo", "dpo", "refl", "rwr"}
    assert all(entry["control"] for entry in plan["entries"].values())
    assert not plan["failed"]
    for wanted in ("rwr", "temperature", "Run again", f"torch {plan['made_with']['torch']}"):
        assert wanted in report


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_oars_runs_on_ones_own_photographs_with_ones_own_reward(site: Path, tmp_path: Path) -> None:
    srgym(site, "train", "experiment=oars", "env=hr_folder", f"env.path={site.parent / 'photographs'}",
          "env.preset=mild", "reward=edges", "agent=rwr", *TINY, "stages.cold_start.runner.contexts=2",
          "report.limit=2", "report.pictures=1", f"out={tmp_path / 'run'}")  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()
