"""Runs toy runs in forked children, kills them with SIGKILL at random moments, and resumes them until they end.

A script, not a test: torch is imported once for all the runs. Prints one line of JSON: for each run the hash of its
final weights and how often it was killed.

usage: kill_worker.py FOLDER RUNS
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import toys

ITERATIONS, KILLS = 12, 2


def learn(folder: Path) -> None:
    """The child: resume whatever is there, run to the end, write the hash of the weights."""
    runner = toys.Toys(folder).run(iterations=ITERATIONS, checkpoint_every=1, prefetch=1)
    runner.resume()
    runner.learn()
    (folder / "hash").write_text(toys.digest(runner.policy))


def fork(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            learn(folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def reached(folder: Path) -> int:
    places = folder / "checkpoints"
    names = [entry.name for entry in places.iterdir()] if places.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def killed_run(folder: Path, moments: random.Random) -> dict[str, Any]:
    """One run that is killed `KILLS` times, each at a random moment after a random iteration."""
    folder.mkdir()
    kills = 0
    for _ in range(KILLS):
        child = fork(folder)
        goal = reached(folder) + moments.randint(0, (ITERATIONS - 2) // KILLS - 1)
        while reached(folder) < goal and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        if not (folder / "hash").exists():
            os.kill(child, signal.SIGKILL)
            kills += 1
        os.waitpid(child, 0)
    status = os.waitpid(fork(folder), 0)[1]
    found = (folder / "hash").read_text() if status == 0 else f"failed with status {status}"
    shutil.rmtree(folder)
    return {"hash": found, "kills": kills}


def main() -> None:
    root, runs = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    toys.Toys(root / "first").run(iterations=1).learn()  # imports what a run needs, before the forks
    moments = random.Random(7)
    print(json.dumps([killed_run(root / f"run{i}", moments) for i in range(runs)]))


main()
