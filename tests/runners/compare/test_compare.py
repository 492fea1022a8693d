"""Comparisons: what is planned, that cells run once and fail alone, and what the report makes of them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srgym.files import write_json
from srgym.rewards.kin import installed_judges
from srgym.runners.commands.cli import main
from srgym.runners.compare import comparison
from srgym.runners.compare.board import seconds_left
from srgym.runners.compare.comparison import make_executor
from srgym.runners.compare.executor import Cell, LocalExecutor, SlurmExecutor, read_done, run_cells
from srgym.runners.compare.plan import make_plan, tuned_plan
from srgym.runners.measure.evaluation import save_evaluation
from srgym.runners.report import write_compare_report
from srgym.runners.report.comparison_folder import read_comparison
from srgym.runners.report.comparison_report import plane_axes
from srgym.runners.report.curve_data import path, seed_curves, targets
from srgym.runners.run.config import ConfigError, compose
from srgym.runners.run.overrides import merge_known, read_override, take_values, words

# The command line


def test_values_are_read_as_hydra_reads_them():
    settings = {"metrics": ["psnr_y"], "policy": {}, "budget": {"images": None}, "out": "runs/x"}
    chosen, rest = take_values(
        ["metrics=[a,b]", "policy={sft: A/b, oars: c}", "budget.images=100", "out=runs/new", "agent=nft,dpo"],
        settings, ("agent",),
    )  # fmt: skip
    assert chosen == {"metrics": ["a", "b"], "policy": {"sft": "A/b", "oars": "c"}, "budget": {"images": 100},
                      "out": "runs/new"}  # fmt: skip
    assert rest == ["agent=nft,dpo"]
    assert settings["budget"] == {"images": None}
    assert read_override("agent=nft,dpo").swept == ("nft", "dpo")
    assert read_override("agent=nft").swept == ()
    assert take_values(["metrics=a,b"], settings)[0]["metrics"] == ["a", "b"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("metrix=[a]", "unknown setting 'metrix'; did you mean 'metrics'?"),
        ("budget.imagse=3", "unknown setting 'budget.imagse'; did you mean 'budget.images'?"),
        ("metrics", "expected metrics=value, got 'metrics'"),
        ("out=[", "can't read 'out=['"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(argument: str, said: str):
    with pytest.raises(ConfigError, match=re.escape(said)):
        take_values([argument], {"metrics": [], "budget": {"images": None}, "out": ""}, ("agent",))


def test_a_file_may_not_bring_a_key_that_there_is_not():
    assert merge_known({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}, "x") == {"a": 1, "b": {"c": 3}}
    with pytest.raises(ConfigError, match=r"x\.b sets 'd'"):
        merge_known({"b": {"c": 2}}, {"b": {"d": 3}}, "x")
    assert set(words({"name": "compass", "of": ["a", {"b": 1}]})) == {"name", "compass", "of", "a", "b"}


# The plan


def test_every_agent_and_seed_is_a_run_and_each_agent_has_a_control(tmp_path: Path):
    plan = make_plan(["agent=nft,flow_grpo", "seed=0,1,2", "budget.images=960", "reward=ssim_y", f"out={tmp_path}"])
    assert [entry.label for entry in plan.entries] == ["nft", "flow_grpo"]
    roles = [(cell.label, cell.role, cell.seed) for cell in plan.cells]
    assert roles[:4] == [
        ("nft", "agent", 0),
        ("nft", "agent", 1),
        ("nft", "agent", 2),
        ("nft, random reward", "control", 0),
    ]
    assert len({cell.name for cell in plan.cells}) == 8
    first = plan.cells[0].request["overrides"]
    assert {"agent=nft", "reward=ssim_y", "seed=0", "runner.images=960", "runner.iterations=null"} <= set(first)
    # 960 images in iterations of 8 contexts and 24 samples are 5 iterations: evaluated after each.
    assert "runner.eval_every=1" in first
    control = plan.cells[3].request["overrides"]
    assert "reward=random" in control
    assert "reward=ssim_y" not in control
    assert plan.held_out == ["structure_texture", "psnr_y", "psnr_chroma", *installed_judges()]  # ssim_y is trained on
    assert next(iter(plan.metrics)) == "ssim_y"
    assert plan.starts[0].request["overrides"] is None
    assert [cell.request["pictures"] for cell in plan.cells[:4]] == [4, 0, 0, 0]


def test_what_labelled_a_reward_is_no_independent_metric(tmp_path: Path):
    plan = make_plan(["agent=nft", "reward=compass", f"out={tmp_path}"])
    assert "structure_texture" in plan.metrics  # measured all the same
    assert plan.held_out == ["psnr_y", "ssim_y", "psnr_chroma", *installed_judges()]


def test_what_was_said_of_a_reward_is_not_said_of_the_control(tmp_path: Path):
    plan = make_plan(["agent=nft", "agent.group_size=4", "reward=compass", "reward.gamma=5", f"out={tmp_path}"])
    agent, control = plan.cells[0].request["overrides"], plan.cells[-1].request["overrides"]
    assert "reward.gamma=5" in agent
    assert not any("gamma" in override for override in control)
    assert "agent.group_size=4" in control
    assert plan.entries[0].label == "nft"
    with pytest.raises(ConfigError, match="needs quotes"):
        make_plan(["start=[agent=cold_start]"])


def test_named_entries_and_their_rewards(tmp_path: Path):
    plan = make_plan(["entries={COMPASS: ['reward=compass'], dQ: ['reward=delta_q']}", "seed=3", f"out={tmp_path}"])
    assert [(e.label, e.reward) for e in plan.entries] == [("COMPASS", "compass"), ("dQ", "delta_q")]
    assert plan.metrics["delta_q"]["form"] == "delta_q"
    assert plan.metrics["compass"]["form"] == "compass"


def test_a_class_named_by_its_path_is_called_by_its_name(tmp_path: Path):
    plan = make_plan(["agent=nft,srgym.agents.dpo:DPO", f"out={tmp_path}"])
    assert [e.label for e in plan.entries] == ["nft", "DPO"]
    assert "agent=srgym.agents.dpo:DPO" in "".join(plan.entries[1].overrides).replace("\\", "")


def test_a_trained_start_is_what_the_others_start_from(tmp_path: Path):
    start = "start=['agent=cold_start','lora=null','runner.iterations=3']"
    plan = make_plan(["agent=nft", "agent.group_size=4", start, f"out={tmp_path}", "controls=0"])
    assert "agent.group_size=4" not in plan.starts[0].request["overrides"]
    weights = f"policy.weights={tmp_path / 'cells' / 'start' / 'run' / 'stages' / 'main' / 'policy'}"
    assert weights in plan.cells[0].request["overrides"]
    with pytest.raises(ConfigError, match="without a LoRA"):
        make_plan(["agent=nft", "start=['agent=cold_start']", f"out={tmp_path}"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agent=nft,flow_gripo"], "did you mean 'flow_grpo'"),
        (["agent=nft", "runner.contextz=3"], "unknown setting 'runner.contextz'"),
        (["budget.imagse=3"], "unknown setting 'budget.imagse'"),
        (["seed=0,0"], "seed is a number or several different ones"),
        (["agent=nft,nft"], "two entries have the same label"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_anything_runs(arguments: list[str], said: str, capsys, tmp_path):
    assert main(["compare", *arguments, f"out={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["hacking_demo", "nft_vs_grpo"])
def test_the_committed_comparisons_are_whole(name: str, tmp_path: Path):
    plan = make_plan([f"experiment={name}", f"out={tmp_path}"])
    assert len(plan.entries) >= 2
    assert any(cell.role == "control" for cell in plan.cells)
    tree, _ = compose([f"experiment={name}"])
    assert tree["name"] == name
    if name == "nft_vs_grpo":
        assert [entry.agent for entry in plan.entries] == ["diffusion_nft", "flow_grpo"]
        assert len({cell.seed for cell in plan.cells}) >= 3
        assert [e.agent for e in make_plan([f"experiment={name}", "agent=dpo", f"out={tmp_path}"]).entries] == ["dpo"]
    else:
        assert [entry.reward for entry in plan.entries] == ["compass", "delta_q"]


# Cells

SCRIPT = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); request = json.loads((folder / "cell.json").read_text())
def stopped(*_): (folder / "saved").touch(); sys.exit(143)
signal.signal(signal.SIGTERM, stopped)
(folder / "started").touch()
if request["do"] == "wait": time.sleep(60)
if request["do"] == "fail": sys.exit("agent 'x' and reward 'y' don't fit")
(folder / "done.json").write_text(json.dumps({"request": request, "cost": {}, "seconds": 1.0}))
"""


def cell(folder: Path, name: str, do: str) -> Cell:
    return Cell(folder / name, name, "agent", 0, {"do": do})


def test_cells_run_once_and_fail_alone(tmp_path: Path):
    cells = [cell(tmp_path, "a", "end"), cell(tmp_path, "b", "fail"), cell(tmp_path, "c", "end")]
    heard: list[str] = []
    executor = LocalExecutor(2, command=(sys.executable, "-c", SCRIPT))
    outcomes = run_cells(cells, executor, lambda outcome, i, n: heard.append(f"{outcome.cell.name} {n}"))
    assert [outcome.error for outcome in outcomes] == [None, "agent 'x' and reward 'y' don't fit", None]
    assert sorted(heard) == ["a 3", "b 3", "c 3"]
    for name in "abc":
        (tmp_path / name / "started").unlink()
    again = run_cells(cells, executor)
    assert [(tmp_path / name / "started").exists() for name in "abc"] == [False, True, False]
    assert again[0].error is None
    with pytest.raises(ValueError, match=r"was run with do=end, and now it is wait"):
        read_done(cell(tmp_path, "a", "wait"))


def test_a_cell_waits_for_those_that_it_needs(tmp_path: Path):
    """Before its turn in the list, with a slot free; one whose need failed isn't run, and says so."""
    needing = replace(cell(tmp_path, "later", "end"), needs=("first",))
    bereft = replace(cell(tmp_path, "never", "end"), needs=("bad",))
    cells = [needing, bereft, cell(tmp_path, "bad", "fail"), cell(tmp_path, "first", "end")]
    ended: list[str] = []
    executor = LocalExecutor(4, command=(sys.executable, "-c", SCRIPT))
    outcomes = run_cells(cells, executor, lambda outcome, i, n: ended.append(outcome.cell.name))
    assert ended.index("first") < ended.index("later")
    assert [outcome.error for outcome in outcomes] == [
        None, "needs bad, which failed", "agent 'x' and reward 'y' don't fit", None,
    ]  # fmt: skip
    assert not (tmp_path / "never" / "started").exists()


def test_stopped_cells_may_save_themselves(tmp_path: Path):
    waiting = [cell(tmp_path, name, "wait") for name in "vw"]

    def stop_when_begun(running: Sequence[Cell], left: int) -> None:
        if running and all((c.folder / "started").exists() for c in running):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(waiting, LocalExecutor(2, command=(sys.executable, "-c", SCRIPT)), on_poll=stop_when_begun)
    assert all((c.folder / "saved").exists() for c in waiting)
    assert [read_done(c) for c in waiting] == [None, None]


def test_cells_end_with_the_process_that_started_them(tmp_path: Path):
    """However it ends: SIGKILL leaves it no time to tell them."""
    script = (
        "import time; from srgym.runners.compare.executor import end_with_parent; end_with_parent();"
        f"open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)"
    )
    parent = (
        "import sys, time; from pathlib import Path\n"
        "from srgym.runners.compare.executor import Cell, LocalExecutor\n"
        f"cell = Cell(Path({str(tmp_path)!r}) / 'cell', 'c', 'agent', 0); cell.folder.mkdir()\n"
        f"(job,) = LocalExecutor(1, command=(sys.executable, '-c', {script!r})).start([cell])\n"
        "print(job._process.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    _wait_for((tmp_path / "begun").exists)
    process.kill()
    process.wait()
    _wait_for(lambda: not _lives(child))


def _wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked about doesn't."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


SHOW_DEVICE = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); time.sleep(0.3)
(folder / "done.json").write_text(json.dumps(
    {"request": json.loads((folder / "cell.json").read_text()), "device": os.environ.get("CUDA_VISIBLE_DEVICES")}))
"""


def test_cells_are_dealt_out_to_the_gpus(tmp_path: Path):
    cells = [cell(tmp_path, name, "end") for name in "abcd"]
    executor = LocalExecutor(4, ["3", "5"], command=(sys.executable, "-c", SHOW_DEVICE))
    run_cells(cells, executor)
    assert sorted(json.loads((c.folder / "done.json").read_text())["device"] for c in cells) == ["3", "3", "5", "5"]
    pair = LocalExecutor(1, ["3", "5"], 2, (sys.executable, "-c", SHOW_DEVICE))
    run_cells([cell(tmp_path, "e", "end")], pair)
    assert json.loads((tmp_path / "e" / "done.json").read_text())["device"] == "3,5"
    with pytest.raises(ValueError, match="gpus=3 of each run can't be had of the 2"):
        LocalExecutor(1, ["3", "5"], 3)


def test_cells_run_as_jobs_of_a_cluster(tmp_path: Path):
    pytest.importorskip("submitit")
    cells = [cell(tmp_path, "a", "end"), cell(tmp_path, "b", "fail")]
    settings = {"timeout_min": 1}
    command = (sys.executable, "-c", SCRIPT)
    executor = SlurmExecutor(tmp_path / "jobs", settings, gpus=0, cluster="local", command=command)
    outcomes = run_cells(cells, executor)
    assert [outcome.error for outcome in outcomes] == [None, "agent 'x' and reward 'y' don't fit"]
    with pytest.raises(ValueError, match="executor=slurm: "):
        SlurmExecutor(tmp_path / "jobs", {"timeout_minutes": 1}, cluster="local")


def test_the_time_left_is_that_of_all_cells():
    # Two of 100 s each ended, one runs and is half done after 50 s, two wait: 250 s of work for two at a time.
    assert seconds_left([1, 1, 0.5], [100, 100, 50], waiting=2, slots=2) == 125
    assert seconds_left([0.1], [10], waiting=0, slots=4) == 90  # one cell can't be shared
    assert seconds_left([0.0], [10], waiting=3, slots=1) is None


# Settings of one entry, and the search


def test_settings_are_given_to_one_entry(tmp_path: Path):
    plan = make_plan(["agent=nft,flow_grpo", "seed=0", "settings.nft.lr=0.5", "settings.nft.beta=0.25",
                      "settings.flow_grpo={agent.clip: 0.1}", f"out={tmp_path}"])  # fmt: skip
    nft, grpo = (entry.stage.sections for entry in plan.entries)
    assert (nft["runner"]["lr"], nft["agent"]["beta"], grpo["agent"]["clip"]) == (0.5, 0.25, 0.1)
    assert grpo["runner"]["lr"] != 0.5
    assert [entry.tuned for entry in plan.entries] == [True, True]
    assert {"runner.lr=0.5", "agent.beta=0.25"} <= set(plan.cells[0].request["overrides"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["settings.ntf.lr=1"], "settings.ntf is for no entry of this comparison; did you mean 'nft'?"),
        (["settings.nft.betta=1"], "neither the agent nor the runner has 'betta'; did you mean 'beta'?"),
        (["agent.clip=0.1"], "doesn't mean the same to all agents of this comparison: give it to one, as in "
                             "settings.nft.clip=0.1"),
        (["search={nft: {lr: [1, 2]}, flow_grpo: {lr: [1]}}"], "different numbers of settings (nft 2, flow_grpo 1)"),
        (["search={lr: 3}"], "search expects lists of values for 'nft'"),
        (["jobs=0"], "jobs: expected at least 1, got 0"),
        (["jobs={a: 1}"], "jobs: expected"),
        (["evaluations=0"], "evaluations: expected at least 1, got 0"),
        (["entries={a: 1}"], "entries: expected"),
        (["budget={a: 1}"], "budget: expected 'images' in it, got 'a'"),
        (["budget=3"], "budget: expected a mapping, got 3"),
        (["executor=pbs"], "executor: expected 'local' or 'slurm', got 'pbs'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(arguments: list[str], sentence: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        plan = make_plan(["agent=nft,flow_grpo", f"out={tmp_path}", *arguments])
        make_executor(plan.settings, plan.folder, plan.fixed)


def test_an_agent_on_defaults_beside_a_tuned_one_is_known(tmp_path: Path):
    plan = make_plan(["experiment=compare_small", "agent=nft,cold_start", "seed=0", f"out={tmp_path}"])
    assert [entry.tuned for entry in plan.entries] == [True, False]


def test_as_many_settings_of_each_agent_are_tried_on_validation(tmp_path: Path):
    arguments = ["agent=nft,dpo", "seed=0,1", "search={lr: [1e-3, 3e-3, 1e-2]}", "trials=2", f"out={tmp_path}"]
    plan = make_plan(arguments)
    assert {label: len(cells) for label, cells in plan.trials.items()} == {"nft": 2, "dpo": 2}
    trial = plan.trial_cells[0].request
    assert trial["test"] == {"split": "validation"}
    assert trial["point"][0] in trial["overrides"]
    tuned = tuned_plan(plan, {"nft": ["runner.lr=0.003"], "dpo": ["runner.lr=0.01"]})
    assert [entry.stage.sections["runner"]["lr"] for entry in tuned.entries] == [0.003, 0.01]
    assert all(entry.tuned for entry in tuned.entries)
    assert not tuned.trials


def test_a_comparison_that_was_stopped_after_its_search_goes_on(tmp_path: Path, monkeypatch):
    """What its runs were done with, the search's best, isn't known again before the search has been looked at."""
    plan = make_plan(["agent=nft,dpo", "seed=0,1", "search={lr: [1e-3, 3e-3]}", f"out={tmp_path}"])
    tuned = tuned_plan(plan, {"nft": ["runner.lr=0.003"], "dpo": ["runner.lr=0.001"]})
    assert tuned.cells[0].request != plan.cells[0].request
    write_json(tuned.cells[0].folder / "done.json", {"request": tuned.cells[0].request})

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_cells", stopped)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(plan, told.append)
    assert told == [f"{len(plan.cells) + 4 + 1} runs, 1 of them done already, in {tmp_path}"]


def test_one_control_serves_all_rewards_and_every_policy_has_its_start(tmp_path: Path):
    plan = make_plan(["agent=nft,refl", "reward=ssim_y,psnr_y", "seed=0", f"out={tmp_path}"])
    controls = [c for c in plan.cells if c.role == "control"]
    assert len(controls) == 2
    assert {entry.control for entry in plan.entries} == {c.label for c in controls}
    rewards = [next(o for o in c.request["overrides"] if o.startswith("reward=")) for c in controls]
    assert rewards == ["reward=random", "reward=random_network"]  # REFL follows a gradient
    assert [c.label for c in plan.starts] == ["start"]
    two = make_plan(["agent=nft", "policy=compact,sd3", "seed=0", f"out={tmp_path}"])
    assert [c.label for c in two.starts] == ["start, compact", "start, sd3"]
    assert [entry.start for entry in two.entries] == ["start, compact", "start, sd3"]


# The report of fake cells

METRICS = ("ssim_y", "psnr_y", "lite0_features")
GAINS = {
    "start": {}, "nft": {"ssim_y": 0.10, "psnr_y": 1.0}, "grpo": {"ssim_y": 0.05, "psnr_y": -0.8},
    "nft, random reward": {"ssim_y": -0.02},
}  # fmt: skip
LEVELS = {"ssim_y": 0.6, "psnr_y": 25.0, "lite0_features": 0.8}


def fake_comparison(folder: Path, seeds: int = 3) -> Path:
    """Two agents of three seeds each, a control, the start with its baselines: NFT gains, GRPO games its reward."""
    generator = np.random.default_rng(0)
    of_crop = {metric: generator.normal(0, 0.05, (4, 5)) for metric in METRICS}
    cells = {"start": ("start", "start", 0)}
    cells |= {f"{label}_{seed}": (label, "agent", seed) for label in ("nft", "grpo") for seed in range(seeds)}
    cells |= {"nft_random_reward_0": ("nft, random reward", "control", 0)}
    for name, (label, role, seed) in cells.items():
        place = folder / "cells" / name
        frames = [fake_scores("policy", GAINS[label], of_crop, generator)]
        if role == "start":
            frames.append(fake_scores("bicubic", {"psnr_y": -0.5}, of_crop, generator))
        one = {"reward": "r", "unit": "", "variant": "v", "colour_space": "RGB", "weights": "none"}
        record = {
            "metrics": dict.fromkeys(METRICS, one),
            "methods": {"policy": {"kind": "samples", "colour_fix": "none"}},
        }
        save_evaluation(pd.concat(frames), record, place)
        cost = {"seconds": 10.0, "images": 400, "flops": 1e12} if role != "start" else {}
        write_json(place / "done.json", {"request": {}, "cost": cost, "seconds": 12.0})
        if role != "start":
            fake_curve(label, 1 + 0.1 * seed).to_csv(place / "evaluations.csv", index=False)
        if seed == 0 and role != "control":
            fake_pictures(place / "pictures")
    entries = {
        label: {"overrides": [f"agent={label}"], "reward": "ssim_y", "agent": label} for label in ("nft", "grpo")
    }
    described = {name: {"label": label, "role": role, "seed": seed} for name, (label, role, seed) in cells.items()}
    write_json(folder / "compare.json", {
        "settings": {"targets": [0.5, 0.9]}, "fixed": ["reward=ssim_y"], "metrics": {}, "entries": entries,
        "held_out": ["psnr_y", "lite0_features"], "cells": described,
        "failed": {"grpo_random_reward_0": "grpo and random don't fit"},
    })  # fmt: skip
    return folder


def fake_scores(method: str, gain: dict[str, float], of_crop: dict[str, Any], generator: Any) -> pd.DataFrame:
    rows = [
        (method, f"photo{p}", str(c), metric,
         LEVELS[metric] + of_crop[metric][p, c] + gain.get(metric, 0.0) + generator.normal(0, 0.005), True, 0)
        for metric in METRICS for p in range(4) for c in range(5)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "photograph", "crop", "metric", "value", "valid", "seed"])


def fake_curve(label: str, speed: float) -> pd.DataFrame:
    rows = []
    for step in range(5):
        for metric in METRICS:
            value = LEVELS[metric] + GAINS[label].get(metric, 0.0) * min(1.0, step * speed / 4)
            rows.append((step, 100 * step, 2.0 * step, 1e9 * step, 0.1, metric, "flower", "0", value))
    columns = ["iteration", "images", "seconds", "flops", "evaluating", "metric", "photograph", "crop", "value"]
    twice = [row for row in rows if row[0] == 4]  # a resumed run evaluates its end again
    return pd.DataFrame([*rows, *twice], columns=columns)


def fake_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, side in (("lr", 8), ("policy", 32), ("hr", 32)):
        Image.new("RGB", (side, side), (200, 100, 50)).save(folder / f"0_{name}.png")
    files = {"LR": "0_lr.png", "policy": "0_policy.png", "HR": "0_hr.png"}
    (folder / "pictures.json").write_text(json.dumps([{"id": "photo0/0", "files": files}]))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fake comparison with its report."""
    return write_compare_report(fake_comparison(tmp_path_factory.mktemp("compared"))).parent


def test_the_report_tells_gains_controls_and_alerts(reported: Path):
    text = (reported / "report.md").read_text()
    assert re.search(r"> \*\*Raises its reward\.\*\* \*\*nft\*\*: ssim_y \+0\.(10|09)\d* \[", text)
    assert "Over its random-reward control: +0.12" in text
    assert "Over the best that costs no reinforcement learning (bicubic): +0.1" in text
    assert "> **Without a control.** **grpo**" in text
    assert "> **Alert.** **grpo**: the training reward rises" in text
    assert re.search(r"psnr_y −0\.(80|79)", text)
    assert "grpo and random don't fit" in text
    assert "nft > grpo: 1.000" in text
    assert "| bicubic |" in text
    assert "| nft, random reward |" in text
    assert "photo0/0**: LR, start, nft, grpo, HR" in text
    for title in (
        "images scored",
        "training seconds",
        "model FLOPs",
        "Performance profile",
        "lite0_features against psnr_y",
    ):
        assert title in text
    assert "nft, seed 2" in text
    frame = pd.read_parquet(reported / "results.parquet")
    assert {"method", "run", "role", "photograph", "crop", "metric", "value", "valid", "seed"} == set(frame.columns)
    assert set(frame["role"]) == {"start", "baseline", "agent", "control"}
    assert len(pd.read_csv(reported / "curves.csv")) == 7 * 5 * 3
    assert "data:image/png;base64," in (reported / "report.html").read_text()


def test_costs_are_those_of_the_first_crossing(reported: Path):
    comparison = read_comparison(reported)
    curves = seed_curves(comparison, "nft", "ssim_y", "images")
    assert [x[-1] for x, _ in curves] == [400.0] * 3
    assert targets(comparison, "ssim_y") == pytest.approx({"50% of the best gain": 0.65, "90% of the best gain": 0.69})
    text = (reported / "report.md").read_text()
    # At speeds 1, 1.1 and 1.2, half of NFT's gain is reached after 200, 182 and 167 images: 183 on average.
    assert "| 50% of the best gain (0.65) | nft | 3 of 3 | 183 |" in text
    assert "| 90% of the best gain (0.69) | grpo | 0 of 3 | - | - | - |" in text
    x, y = path(comparison, "grpo", "psnr_y", "ssim_y") or ([], [])
    assert (x[0], y[0]) == pytest.approx((25.0, 0.6))
    assert (x[-1], y[-1]) == pytest.approx((24.2, 0.65))


def test_the_planes_axes_are_judged_with_the_truth_first():
    names = ["compass", "compass.q_sr", "structure_texture", "lite0_features", "psnr_y"]
    assert plane_axes(names) == [("psnr_y", "lite0_features"), ("structure_texture", "compass.q_sr")]
    assert plane_axes(["compass", "compass.q_sr"]) == []


# End to end


def test_compare_runs_resumes_and_reports(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    tiny = ["policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8",
            "policy.middle=8", "env.size=32", "lora.rank=2", "runner.contexts=2", "runner.eval_contexts=2",
            "runner.eval_steps=1", "agent.group_size=2", "agent.steps=2"]  # fmt: skip
    settings = ["budget.iterations=2", "steps=1", "limit=4", "seed=0", "pictures=1", "picture_size=null", "jobs=2",
                "metrics=[psnr_y,lite0_features]"]  # fmt: skip
    command = ["compare", "agent=nft", "reward=ssim_y", f"out={out}", *settings, *tiny]
    assert main(command) == 0
    assert "[2/2]" in capsys.readouterr().out
    comparison = read_comparison(out)
    assert comparison.agents == ["nft"]
    assert comparison.control("nft") == "nft, random reward"
    shares = [json.loads(path.read_text())["share"] for path in sorted(out.glob("cells/*/progress.json"))]
    assert shares == [1.0, 1.0]
    assert comparison.plan["made_with"]["torch"] == torch.__version__
    assert f"torch {torch.__version__}" in (out / "report.md").read_text()
    assert sorted(comparison.curves[comparison.curves["method"] == "nft"]["iteration"].unique()) == [0, 1, 2]
    # Both start from the same policy: before training their held-out scores are equal.
    first = comparison.curves[comparison.curves["iteration"] == 0]
    assert first.groupby(["metric", "photograph", "crop"])["value"].nunique().eq(1).all()
    record = json.loads((out / "cells" / "nft_seed_0" / "run" / "run.json").read_text())
    assert record["complete"]
    monkeypatch.setattr("srgym.runners.compare.comparison.write_compare_report", lambda folder: folder / "report.html")
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a finished cell was run again"))
    assert main(command) == 0
    assert "3 runs, 3 of them done already" in capsys.readouterr().out
    assert main([*command, "steps=2"]) == 2
    assert "was run with steps=1, and now it is 2" in capsys.readouterr().err


def test_the_search_behind_the_committed_comparison_is_of_equal_effort_and_sees_no_test_photograph():
    """As many settings of each agent, each with the same budget, on the settings that the comparison itself has."""
    search, final = make_plan(["experiment=nft_vs_grpo_search"]), make_plan(["experiment=nft_vs_grpo"])
    agents = [entry.agent for entry in search.entries]
    assert sorted(agents) == ["diffusion_nft"] * 6 + ["flow_grpo"] * 6
    assert search.settings["test"] == {"split": "validation"} and final.settings["test"] == {"split": "test"}
    assert {cell.role for cell in search.cells} == {"agent"} and search.fixed == ("experiment=nft_vs_grpo_search",)
    assert [entry.agent for entry in final.entries] == ["diffusion_nft", "flow_grpo"]
    assert sum(cell.role == "control" for cell in final.cells) == 2


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("test={split: tets}", "expected a split of train, validation, test, got 'tets'"),
        ("metrics=[psnr_x]", "did you mean 'psnr_y'"),
        ("metrics=[refreward]", "no server of the model 'refreward' answers at http://127.0.0.1:8002"),
    ],
)
def test_what_the_last_evaluation_would_stumble_over_is_found_first(argument: str, said: str, capsys, tmp_path: Path):
    assert main(["compare", "agent=nft", "reward=ssim_y", "seed=0", argument, f"out={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "cells").exists()


def test_training_an_experiment_of_entries_is_comparing_them(capsys, tmp_path: Path):
    asked = ["experiment=hacking_demo", "seed=3", f"out={tmp_path}", "--print"]
    assert main(["train", *asked]) == 0
    trained = capsys.readouterr().out.splitlines()
    assert main(["compare", *asked]) == 0
    assert trained[1:] == capsys.readouterr().out.splitlines() and "srgym compare" in trained[0]
    assert [line.partition(":")[0] for line in trained[2:4]] == ["COMPASS_seed_3", "COMPASS_random_reward_seed_3"]
    assert main(["train", "experiment=compare_small", "agent=dpo", "--print"]) == 0
    assert "name: dpo" in capsys.readouterr().out
