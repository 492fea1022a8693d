"""The SLURM script: what it asks for, and that the training it starts is saved by USR1 and queued again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srgym.runners.commands.cli import main

SMOKE = [
    "experiment=smoke", "heldout=null", "logger=csv", "runner.images_every=0", "runner.device=cpu",
    "stages.cold_start.runner.iterations=1", "runner.checkpoint_every=0",
]  # fmt: skip

SRUN = """#!/bin/bash
# One node: runs the command, and passes signals on to it, as srun does.
while [[ $1 == --* ]]; do shift; done
"$@" &
task=$!
trap 'kill -USR1 "$task"' USR1
while wait "$task"; kill -0 "$task" 2>/dev/null; do :; done
wait "$task"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$CALLS"; fi
"""
SBATCH = """#!/bin/bash
echo "Submitted batch job 7" && echo "sbatch $*" >> "$CALLS"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a cluster whose commands are small scripts; what they are asked is in CALLS."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    return {
        **os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "4242",
        "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def launch(*arguments: str) -> int:
    return main(["launch", "slurm", *arguments])


def test_the_script_asks_for_what_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a run"
    assert launch(
        "nodes=2", "gpus=8", "cpus=4", "time=1-12:00:00", "partition=gpu", "account=me", "lead=120", "memory=200G",
        "sbatch=--qos=long --constraint=h100", "setup=module load cuda", "experiment=oars_qwen", "seed=3",
        "reward.scorer.engine.urls=[http://node7:8000,http://127.0.0.1:9]", f"out={out}",
    ) == 0  # fmt: skip
    shown = capsys.readouterr().out
    path = out / "train.slurm"
    assert f"submit it with: sbatch {path}" in shown and "reward server http://127.0.0.1:9 " in shown
    assert "node7" not in shown
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    asked = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}
    assert asked == {
        "--job-name=oars_qwen", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=32",
        "--mem=200G", "--time=1-12:00:00", "--partition=gpu", "--account=me", "--requeue", "--signal=B:USR1@120",
        "--open-mode=append", f"--output={out}/slurm-%j.log", "--export=ALL", "--qos=long", "--constraint=h100",
    }  # fmt: skip
    assert "module load cuda" in text and "--nproc-per-node 8" in text and sys.executable in text
    assert (
        f"experiment=oars_qwen seed=3 'reward.scorer.engine.urls=[http://node7:8000,http://127.0.0.1:9]' 'out={out}'"
        in text
    )


def test_another_script_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(*SMOKE, f"out={tmp_path}") == launch(*SMOKE, f"out={tmp_path}") == 0
    assert launch(*SMOKE, f"out={tmp_path}", "nodes=2") == 2
    assert "train.slurm is there already and differs" in capsys.readouterr().err
    assert launch(*SMOKE, f"out={tmp_path}", "nodes=2", "replace=true") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["experimnt=smoke"], "did you mean 'experiment'"),
        (["time=soon"], "time is as SLURM writes it (12:00:00, 2-00:00:00 or minutes), got 'soon'"),
        (["lead=10"], "lead above 30 seconds, got 1, 1 and 10"),
        (["overwrite=true"], "srgym launch can't take overwrite="),
    ],
)
def test_wrong_calls_are_sentences(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(*SMOKE, f"out={tmp_path}", *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "train.slurm").exists()
    assert main(["launch", "pbs"]) == 2


def test_sbatch_is_asked(tmp_path: Path, cluster: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", cluster["PATH"])
        patch.setenv("CALLS", cluster["CALLS"])
        assert launch(*SMOKE, f"out={tmp_path / 'run'}", "submit=true") == 0
        patch.setenv("PATH", "")
        assert launch(*SMOKE, f"out={tmp_path / 'run'}", "submit=true") == 2
    told = capsys.readouterr()
    assert "Submitted batch job 7" in told.out and "found no sbatch on this machine" in told.err
    assert Path(cluster["CALLS"]).read_text() == f"sbatch {tmp_path / 'run' / 'train.slurm'}\n"


def test_a_job_saves_before_its_time_is_over_and_goes_on_when_it_is_queued_again(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    """The script as a cluster runs it: USR1 to its shell, once training is under way."""
    out = tmp_path / "run"
    settings = [*SMOKE, f"out={out}", "gpus=0", "stages.reinforce.runner.iterations=100000"]
    assert launch(*settings) == 0
    job = subprocess.Popen(
        ["bash", out / "train.slurm"], env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log, until = out / "stages" / "reinforce" / "metrics.csv", time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) > 1) and time.monotonic() < until:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    told = job.communicate(timeout=120)[0]
    assert job.returncode != 0 and "stopped by SIGUSR1 after saving" in told and "queued again" in told, told
    assert Path(cluster["CALLS"]).read_text() == "requeue 4242\n"
    checkpoint = max((out / "stages" / "reinforce" / "checkpoints").iterdir())
    done = json.loads((checkpoint / "values.json").read_text())["iteration"]
    assert done >= 1 and "complete" not in told

    # Queued again: the run's own budget is free to change between sessions, so let it end with the next iteration.
    assert launch(*settings[:-1], f"stages.reinforce.runner.iterations={done + 1}", "replace=true") == 0
    again = subprocess.run(["bash", out / "train.slurm"], env=cluster, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    assert Path(cluster["CALLS"]).read_text() == "requeue 4242\n"
    record = json.loads((out / "run.json").read_text())
    assert record["complete"] and record["stages"]["reinforce"]["iterations"] == done + 1
