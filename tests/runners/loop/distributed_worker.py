"""Runs `srgym train` on several forked processes, one job after the other; torch is imported once for all of them.

A script, not a test. A job is {"out": FOLDER, "processes": N, "settings": [...]}; it may have "signal": [rank, number],
sent once the first iteration is logged, and "forget": [PATH], files of its folder that are deleted before. Prints one
line of JSON: each job's exit codes and outputs.

usage: distributed_worker.py JOBS_AS_JSON
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import diffusers.utils  # noqa: F401 - what a run imports, imported before the forks
import peft.tuners.lora  # noqa: F401
import torch

import srgym.runners.loop.loggers
import srgym.runners.run.build
from srgym.runners.commands.cli import main as srgym


def child(command: list[str], told: dict[str, str], output: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(told)
        code = srgym(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def signalled(out: Path, pids: list[int], rank: int, number: int) -> int | None:
    """Send the signal after the first iteration. Returns the process, where it sleeps from then on."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if any(len(log.read_text().splitlines()) > 1 for log in out.glob("stages/*/metrics.csv")):
            break
        time.sleep(0.05)
    os.kill(pids[rank], number)
    return pids[rank] if number == signal.SIGSTOP else None


def run(job: dict[str, Any]) -> dict[str, Any]:
    out, size, started = Path(job["out"]), job["processes"], time.monotonic()
    for name in job.get("forget", []):
        (out / name).unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids, outputs = [], []
    for rank in range(size):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        outputs.append(out.with_name(f"{out.name}.{rank}.txt"))
        alone = {} if size == 1 else {key: str(value) for key, value in told.items()}
        pids.append(child(["train", f"out={out}", *job["settings"]], alone, outputs[-1]))
    asleep = signalled(out, pids, *job["signal"]) if job.get("signal") else None
    codes = {pid: os.waitpid(pid, 0)[1] for pid in pids if pid != asleep}
    if asleep is not None:
        os.kill(asleep, signal.SIGKILL)
        codes[asleep] = os.waitpid(asleep, 0)[1]
    print(f"{out.name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return {
        "codes": [os.waitstatus_to_exitcode(codes[pid]) for pid in pids],
        "outputs": [path.read_text() for path in outputs],
    }


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))


main()
