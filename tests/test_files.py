"""What is written to disk: folders that belong to one process at a time."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srgym.errors import Refusal
from srgym.files import check_folder, locked, naming, write_json, write_whole
from srgym.runners.commands.cli import main
from srgym.runners.loop.checkpoint import Checkpoints
from srgym.runners.loop.loggers import CSVLogger
from srgym.sealed import file_hash, restore, verify, write_folder, write_tensors

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


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that reaches the disk before the content leaves an empty file after a loss of power."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("flushed"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("renamed"), replace(*paths))[1])
    write_json(tmp_path / "run.json", {"complete": True})
    assert done == ["flushed", "renamed"]
    assert json.loads((tmp_path / "run.json").read_text()) == {"complete": True}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_weights_and_json_have_the_permissions_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.iterdir())] == [0o666 & ~umask] * 2


def test_the_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((i + 1,), float(i)) for i in range(20)}
    metadata = {f"key{i}": "x" for i in range(20)}
    for run in range(6):
        order = sorted(tensors, reverse=run % 2 == 1)
        write_tensors(tmp_path / f"{run}.safetensors", {name: tensors[name] for name in order}, metadata)
    assert len({file_hash(path) for path in tmp_path.iterdir()}) == 1


FULL = """import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # what a full disk answers, but in its number
from srgym.runners.commands.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("room", "file"), [(1000, "config.json"), (20_000, "policy.safetensors")])
def test_a_full_disk_gets_a_sentence_that_names_a_file(room: int, file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(room), "train", "experiment=smoke", "logger=csv", f"out={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert last.startswith("srgym: ") and f"{file}: File too large; what was saved before is kept" in last


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, full = tmp_path / "run.json", OSError(errno.ENOSPC, "No space left on device")
    write_json(path, 1)

    def fail(descriptor: int) -> None:
        raise full

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole(path, b"2")
    assert raised.value.filename == str(path) and raised.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"] and path.read_text() == "1\n"
    with pytest.raises(KeyError), naming(path):
        raise KeyError("not the disk's")


def test_no_moment_of_replacing_a_folder_loses_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames, `keep=1` had neither the old checkpoint nor the new one."""
    folder = tmp_path / "00000003"
    write_folder(folder, lambda draft: write_json(draft / "values.json", {"try": 1}))
    rename, count = Path.rename, 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, lambda draft: write_json(draft / "values.json", {"try": 2}))
    monkeypatch.undo()
    assert not folder.exists()
    latest = Checkpoints(tmp_path, keep=1).latest()
    assert latest is not None and latest.folder == folder and latest.values == {"try": 1}
    verify(folder)
    restore(folder)  # nothing to do
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_log_that_starts_again_has_no_step_twice(tmp_path: Path) -> None:
    """A run killed before its first checkpoint starts again at step 0, which its log held already."""
    path = tmp_path / "metrics.csv"
    for _ in range(2):
        CSVLogger(path).scalars(0, {"eval/reward": 1.0})
    assert path.read_text().splitlines() == ["step,eval/reward", "0,1"]
    log = CSVLogger(path, after=0)  # from a checkpoint before the first step
    log.scalars(1, {"eval/reward": 2.0})
    assert path.read_text().splitlines() == ["step,eval/reward", "0,1", "1,2"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"stages": 3, "seed": 0}', "\x00"])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_record_is_named(name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"stages": {}, "seed": 0, "overrides": ["experiment=smoke"]}')
    (tmp_path / name).write_text(content)
    for command in (["train", "experiment=smoke", f"out={tmp_path}"], ["train", f"resume={tmp_path}"]):
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and str(tmp_path / name) in said[0]
    assert (tmp_path / name).read_text() == content
