"""Every experiment on every kind of source that can feed it: composed and built always, to its report in a campaign."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from srgym.runners.commands.cli import main
from srgym.runners.run.build import build_task
from srgym.runners.run.config import compose, options, resolve

TINY = ["policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
        "effort=0.01", "runner.contexts=2", "runner.eval_contexts=2", "logger=csv"]  # fmt: skip
SCORER = {
    "compass_compact": ["groups=2", "validation_groups=2", "steps=2"],
    "finpercep_compact": ["contexts=2", "validation_contexts=2", "steps=[0,2]"],
}
COMPARE = ["seed=0", "budget.images=16", "budget.iterations=2", "limit=2", "pictures=1", "jobs=2", "steps=1"]
PAIRS = "paired_folders"
# What a source can't be for an experiment: its LR is made at another scale, or there is no ground truth to learn from.
# Documents are told from a degradation's record, which pairs haven't got.
MADE = ("compact_base", "compact_vlcot", "realsr_r1", "realsr_r1_7b")
FED = {
    name: ("photographs", "hr_folder") if name in MADE else ("photographs", "hr_folder", PAIRS)
    for name in options("experiment")
}


def source(name: str, folders: Path) -> list[str]:
    return {
        "photographs": ["env=photographs"],
        "hr_folder": ["env=hr_folder", f"env.path={folders / 'hr'}", "env.preset=mild"],
        PAIRS: ["env=paired_folders", f"env.lr={folders / 'lr'}", f"env.hr={folders / 'hr'}"],
    }[name]


def kind(experiment: str) -> str:
    text = resources.files("srgym.configs").joinpath("experiment", f"{experiment}.yaml").read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    return "compare" if "compare" in written else "train"


CASES = [(experiment, fed) for experiment, sources in FED.items() for fed in sources]


@pytest.mark.parametrize(("experiment", "fed"), CASES)
def test_it_is_composed_and_its_contexts_are_made(experiment: str, fed: str, folders: Path) -> None:
    tree, line = compose([f"experiment={experiment}", *source(fed, folders), "env.size=64"])
    for stage in resolve(tree, line).stages:
        env = stage.sections["env"]
        if env["name"] == "lr_folder":  # real LR, beside the source of the other stages
            env = {**env, "path": str(folders / "lr"), "size": 64}
        task = build_task(env)
        assert task.context([0]).lr.shape[-1] == 64 // env["scale"]
        # Held apart from what is tested on, but where that is what is tuned on.
        assert env["split"] == ("test" if stage.name == "ttt" else "train")


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("experiment", "fed"), [case for case in CASES if not case[0].endswith(("_qwen", "_paper", "_flux", "_sd3"))]
)
def test_it_runs_to_its_report(experiment: str, fed: str, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [kind(experiment), f"experiment={experiment}", *source(fed, folders), *TINY, f"out={out}"]
    command += [f"stages.scorer.scorer.{setting}" for setting in SCORER.get(experiment, ())]
    command += COMPARE if command[0] == "compare" else []
    assert main(command) == 0
    if command[0] == "compare" or experiment == "oars":
        assert (out / "report.html").is_file()
    else:
        assert (out / "run.json").is_file()
