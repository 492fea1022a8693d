"""Checkpoints: whole or not there, found again when a newer one is damaged, and equal runs after kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import digest

from srgym.runners.loop.checkpoint import Checkpoints
from srgym.runners.loop.interrupt import Interrupted, listening
from srgym.sealed import Damaged, verify, write_folder


def test_killed_at_random_moments_ends_with_the_same_weights(toy: Any, tmp_path: Path) -> None:
    whole = toy.run(iterations=12, checkpoint_every=1, prefetch=1)
    whole.learn()
    expected = digest(whole.policy)
    folder = tmp_path / "killed"
    folder.mkdir()
    script = Path(__file__).with_name("kill_worker.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "10"], capture_output=True, text=True, check=True, timeout=240
    )
    runs = json.loads(done.stdout.splitlines()[-1])
    assert [run["hash"] for run in runs] == [expected] * 10
    assert sum(run["kills"] for run in runs) >= 10


@pytest.mark.parametrize("kind, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_save_and_stop_after_the_iteration(toy: Any, tmp_path: Path, kind: signal.Signals, code: int) -> None:
    whole = toy.run()
    whole.learn()
    toy.folder = tmp_path / "stopped"
    task = toy.task()
    context = task.context

    def signalled(indices: torch.Tensor) -> Any:
        if len(task.source.asked) == 4:  # at the start of the third iteration
            os.kill(os.getpid(), kind)
        return context(indices)

    task.context = signalled
    stopped, outside = toy.run(task=task, checkpoint_every=0), signal.signal(kind, signal.SIG_DFL)  # nohup ignores HUP
    try:
        with pytest.raises(Interrupted, match=f"{kind.name} after saving") as raised:
            stopped.learn()
        assert raised.value.exit_code == code
        assert signal.getsignal(kind) is signal.SIG_DFL
    finally:
        signal.signal(kind, outside)
    resumed = toy.run()
    assert resumed.resume()
    assert resumed.iteration == 3
    resumed.learn()
    assert digest(resumed.policy) == digest(whole.policy)


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _damage(folder: Path, how: str) -> None:
    if how == "changed":
        _flip(folder / "policy.safetensors")
    elif how == "missing":
        (folder / "optimizer.safetensors").unlink()
    elif how == "extra":
        (folder / "stray.json").write_text("{}")
    else:
        (folder / "manifest.json").write_text('{"sha256": {')


@pytest.mark.parametrize(
    "how, named", [("changed", "policy"), ("missing", "optimizer"), ("extra", "stray"), ("manifest", "manifest")]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(toy: Any, how: str, named: str) -> None:
    whole = toy.run()
    whole.learn()
    _damage(toy.folder / "checkpoints" / "00000006", how)
    again = toy.run()
    with pytest.warns(UserWarning, match=rf"damaged checkpoint: .*00000006.*{named}.*using the one before"):
        assert again.resume()
    assert again.iteration == 4
    again.learn()
    assert digest(again.policy) == digest(whole.policy)


def test_without_a_whole_checkpoint_a_run_starts_afresh(toy: Any) -> None:
    toy.run(iterations=2).learn()
    _damage(toy.folder / "checkpoints" / "00000002", "changed")
    again = toy.run()
    with pytest.warns(UserWarning, match="there is none before, so this starts afresh"):
        assert not again.resume()
    assert again.iteration == 0


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (1, 2, 10):
        checkpoints.save(number, {"policy": {"w": torch.full((2,), float(number))}}, {"iteration": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000010"]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.values == {"iteration": 10}
    assert latest.tensors["policy"]["w"].tolist() == [10.0, 10.0]


def test_only_safetensors_and_json_are_written(toy: Any) -> None:
    toy.run().learn()
    suffixes = {path.suffix for path in toy.folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    write_folder(folder, lambda draft: (draft / "a.json").write_text("1"))

    def fails(draft: Path) -> None:
        (draft / "a.json").write_text("2")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_folder(folder, fails)
    assert (folder / "a.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    verify(folder)
    shutil.copy(folder / "a.json", folder / "b.json")
    with pytest.raises(Damaged, match=r"b\.json is not in the manifest"):
        verify(folder)
