"""What is written to disk: folders that belong to one process at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from srgym.errors import Refusal
from srgym.files import check_folder, locked
from srgym.runners.commands.cli import main

HOLD = """import sys, time, pathlib
from srgym.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the folder `held`."""
    folder = tmp_path / "held"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()


def test_a_folder_is_one_processs_until_that_ends_however_it_ends(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = holder
    with pytest.raises(Refusal, match=f"{folder} is in use by process {process.pid} on "), locked(folder):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(folder):
        assert json.loads((folder / ".owner.json").read_text())["process"] == os.getpid()
    assert not (folder / ".owner.json").exists()


@pytest.mark.parametrize("command", ["train experiment=smoke", "train experiment=smoke overwrite=true"])
def test_no_run_enters_a_folder_in_use(
    command: str, holder: tuple[Path, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, process = holder
    (folder / "config.json").write_text("{}")
    assert main([*command.split(), f"out={folder}"]) == 2
    assert f"in use by process {process.pid}" in capsys.readouterr().err
    assert (folder / "config.json").read_text() == "{}"


def test_no_comparison_enters_a_folder_in_use(
    holder: tuple[Path, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, process = holder
    assert main(["compare", "agent=nft", "seed=0", f"out={folder}"]) == 2
    assert f"in use by process {process.pid}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "new" / "deeper")
    with pytest.raises(Refusal, match=f"expected a folder, or a place for one, and {tmp_path / 'file'} is a file"):
        check_folder(tmp_path / "file" / "below")
