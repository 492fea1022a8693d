"""Commands that are killed at each of their file operations, or at random moments, and then run again: they end, and
with the files that an undisturbed run leaves."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign.forks import digests, forked, policy_of
from campaign.tally import Tally

TINY = ["policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
        "env.size=32"]  # fmt: skip
Command = tuple[Callable[[Path, Path], list[str]], list[str]]
COMMANDS: dict[str, Command] = {
    "train": (
        lambda out, _: ["train", "experiment=smoke", "logger=csv", f"out={out}"],
        ["stages/*/policy/*", "stages/*/pictures/*"],
    ),
    "merge": (
        lambda out, run: ["merge", f"into={run}/stages/cold_start/policy", f"lora={run}/stages/reinforce/policy",
                          f"out={out}"],
        ["*", "*/*"],
    ),
    "evaluate and its report": (
        lambda out, run: ["evaluate", f"policy={run}", "limit=2", "env.size=32", "pictures=1", "metrics=[psnr_y]",
                          f"out={out}"],
        ["results.csv", "results.parquet", "report_files/*"],
    ),
}  # fmt: skip


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_file_operation(name: str, tmp_path: Path, tally: Tally) -> None:
    make, patterns = COMMANDS[name]
    run = policy_of(tmp_path / "run")
    what = f"{name}: killed at each file operation, then run again"
    code, count = forked(make(tmp_path / "whole", run), tmp_path / "whole")
    assert code == 0 and count > 0
    expected, out = digests(tmp_path / "whole", patterns), tmp_path / "killed"
    for last in range(count):
        shutil.rmtree(out, ignore_errors=True)
        killed, _ = forked(make(out, run), out, last)
        code, _ = forked(make(out, run), out)
        same = digests(out, patterns) == expected
        wrong = killed != -signal.SIGKILL or code != 0 or not same
        tally.add(
            what, f"operation {last}: {killed}, then {code}, files {'equal' if same else 'differ'}" if wrong else None
        )
    tally.settle(what)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_a_comparison_killed_at_random_leaves_no_process_and_ends_the_same(tmp_path: Path, tally: Tally) -> None:
    what = "compare: killed (SIGKILL, SIGHUP, SIGTERM) at random, then run again; cells left running"
    settings = ["agent=nft", "reward=ssim_y", "seed=0", "budget.iterations=2", "steps=1", "limit=2", "pictures=0",
                "jobs=2", "metrics=[psnr_y]", "lora.rank=2", "runner.contexts=2", "runner.eval_contexts=2",
                "runner.eval_steps=1", "agent.group_size=2", "agent.steps=2", *TINY]  # fmt: skip

    def start(out: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "srgym", "compare", *settings, f"out={out}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took, expected = time.monotonic() - began, digests(tmp_path / "whole", ["results.csv"])
    moments = random.Random(3)
    for trial in range(6):
        out = tmp_path / f"killed{trial}"
        process = start(out)
        time.sleep(moments.uniform(0.2, 0.9) * took)
        process.send_signal((signal.SIGKILL, signal.SIGHUP, signal.SIGTERM)[trial % 3])
        process.wait()
        end = time.monotonic() + 20
        while (left := _processes(str(out))) and time.monotonic() < end:
            time.sleep(0.1)
        code = start(out).wait()
        same = digests(out, ["results.csv"]) == expected
        wrong = bool(left) or code != 0 or not same
        tally.add(
            what, f"trial {trial}: left {left}, then {code}, results {'equal' if same else 'differ'}" if wrong else None
        )
    tally.settle(what)


def _processes(mark: str) -> list[int]:
    """Processes whose command line has a word."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words, stat = (place / "cmdline").read_bytes().decode(errors="replace"), (place / "stat").read_text()
            except OSError:
                continue
            if mark in words and stat.rpartition(")")[2].split()[0] != "Z":
                found.append(int(place.name))
    return found
