"""A reproduction that is killed, at whatever moment, goes on where it was and ends with the same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]

CLAIM = """
paper: OARS
source: a test
title: Training helps
says: Training raises luma's accuracy.
arms:
  start: {experiment: smoke, probe: {kind: evaluate}, seeds: one}
  cold: {experiment: smoke, stages: [cold_start], seeds: one}
  trained:
    experiment: smoke
    stages: [reinforce]
    overrides: [stages.reinforce.start_from=@cold/stages/cold_start/policy]
contrasts:
  - {of: trained, over: start, metric: psnr_y, expect: up, says: it rises}
"""


def command(claims: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "srgym", "reproduce", "claim=tiny", f"claims={claims}", f"out={out}", "jobs=2",
            "seeds=2", "effort=8", "limit=4", "steps=2", "pictures=0", "metrics={psnr_y: {name: psnr_y}}"]  # fmt: skip


@pytest.mark.parametrize("moment", ["one cell done", "none done", "in the middle of a run"])
def test_killed_anywhere_it_goes_on(tmp_path: Path, moment: str) -> None:
    claims, out, whole = tmp_path / "claims", tmp_path / "killed", tmp_path / "whole"
    claims.mkdir()
    (claims / "tiny.yaml").write_text(CLAIM)
    process = subprocess.Popen(command(claims, out), start_new_session=True)
    wanted = {"one cell done": "cells/*/done.json", "none done": "cells/*/cell.json",
              "in the middle of a run": "cells/diffusion_nft_*/run/stages/*/checkpoints/*"}[moment]  # fmt: skip
    deadline = time.monotonic() + 1500
    while not list(out.glob(wanted)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists()
    done = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/done.json")}
    time.sleep(8)  # the cells see that their parent is gone, save and end
    again = subprocess.run(command(claims, out), capture_output=True, text=True, timeout=1500, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (out / "report.html").is_file() and (out / "report.md").is_file()
    later = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/done.json")}
    assert all(later[name] == moment for name, moment in done.items())  # what was done wasn't run again
    subprocess.run(command(claims, whole), check=True, timeout=1500)
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "results.parquet") for folder in (out, whole)))
