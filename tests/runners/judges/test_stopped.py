"""Killed at any point and started again, a set is the same to the byte, and nobody is asked twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srgym.runners.commands.cli import main

SMALL = [
    "inputs=photographs", "size=64", "preset=mild", "train=6", "validation=1", "test=1", "part=2",
    "methods=[bicubic,{policy: compact, samples: 2, steps: 1}]",
]  # fmt: skip
WHO = [
    f"annotator.{stage}={who}"
    for stage, who in (("anchor", "compact"), ("compare", "compact"), ("describe", "statistics"))
]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".owner.json")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    assert main(["judge", "pool", f"out={folder}", *SMALL]) == 0
    pool = contents(folder)
    assert main(["judge", "label", str(folder), "most_inverted=1.0", *WHO]) == 0
    return pool, contents(folder)


def killed(words: list[str], folder: Path, there) -> None:
    """Run a command until `there` holds, and kill it."""
    command = [sys.executable, "-m", "srgym", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    while not there(folder) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def lines(folder: Path, name: str) -> int:
    path = folder / "answers" / name
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_pool_that_was_killed_goes_on_to_the_same_bytes(whole, tmp_path):
    folder = tmp_path / "set"
    words = ["judge", "pool", f"out={folder}", *SMALL]
    killed(words, folder, lambda own: len(list(own.glob("inputs/part-*.parquet"))) >= 2)
    killed(words, folder, lambda own: len(list(own.glob("candidates/part-*.parquet"))) >= 3)
    assert len(list(folder.glob("candidates/part-*.parquet"))) < 8  # it was stopped in the middle
    assert main(words) == 0
    assert contents(folder) == whole[0]


def test_labels_that_were_killed_go_on_to_the_same_bytes(whole, tmp_path):
    folder = tmp_path / "set"
    for name, content in whole[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    words = ["judge", "label", str(folder), "most_inverted=1.0", *WHO]
    killed(words, folder, lambda own: lines(own, "anchor.compact.jsonl") >= 8)
    assert lines(folder, "anchor.compact.jsonl") >= 8
    killed(words, folder, lambda own: lines(own, "compare.compact.jsonl") >= 12)
    killed(words, folder, lambda own: lines(own, "describe.statistics.jsonl") >= 3)
    assert main(words) == 0
    assert contents(folder) == whole[1]


def test_what_is_typed_wrong_is_one_sentence(whole, tmp_path, capsys):
    for words, told in (
        (["judge", "lable", "x"], "did you mean 'label'?"),
        (["judge", "pool", f"out={tmp_path / 'x'}", "sise=64"], "unknown setting 'sise'; did you mean 'size'?"),
        (["judge", "pool", f"out={tmp_path / 'x'}", "size=60"], "expected size as a multiple of 16"),
        (["judge", "pool", *SMALL], "expects out=SET"),
        (["judge", "label", str(tmp_path)], "found no set.json"),
        (["judge", "label", str(tmp_path), "stages=[anchr]"], "expected stages among anchor, compare"),
        (["judge", "pool", f"out={tmp_path / 'x'}", "config=minni"], "did you mean 'mini'?"),
        (["judge", "status"], "expects SET, got nothing"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
