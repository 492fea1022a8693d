"""The walk of one LR image from its source to the gradient: through which files it is handed, and from where.

    python tools/walk.py

runs one iteration of DiffusionNFT on the compact policy under `sys.setprofile` and prints the files of srgym whose
functions were handed the image or what was made of it (a tensor of at least three dimensions, a TensorDict, a sample or
a context), in the order they were entered first, and from which other files each was entered.
"""

import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensordict import TensorDict

from srgym.agents import DiffusionNFT
from srgym.envs import Context, SRTask, sources
from srgym.envs.sources import Sample
from srgym.policies.compact import CompactPolicy
from srgym.rewards import make
from srgym.runners import Runner, RunnerSettings

__all__ = ["walk"]

_PACKAGES = ("agents", "envs", "policies", "rewards", "runners")


def _is_image(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() >= 3
    return isinstance(value, (TensorDict, Sample, Context)) and not isinstance(value, type)


def _file(frame: FrameType | None) -> str | None:
    """The srgym file that a frame runs, such as "envs/task.py"."""
    if frame is None:
        return None
    parts = Path(frame.f_code.co_filename).parts
    at = next((i for i, part in enumerate(parts) if part in _PACKAGES and "site-packages" not in parts[:i]), None)
    return "/".join(parts[at:]) if at is not None and "srgym" in frame.f_globals.get("__name__", "") else None


def walk() -> dict[str, set[str]]:
    """The files that the image passes, in order, each with the files that it was entered from."""
    entered: dict[str, set[str]] = {}

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            here = _file(frame)
            names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
            carries = any(_is_image(frame.f_locals.get(name)) for name in names)
        elif event == "return":
            here, carries = _file(frame), _is_image(argument)
        else:
            return
        if here is None or not carries:
            return
        caller = frame.f_back
        while caller is not None and _file(caller) is None:
            caller = caller.f_back  # through libraries, to whoever of ours called them
        there = _file(caller)
        entered.setdefault(here, set())
        if there is not None and there != here:
            entered[here].add(there)

    policy = CompactPolicy()
    policy.add_adapters(rank=2, alpha=4)
    task = SRTask(sources.make("photographs", size=32, crops=4), make("ssim_y"))
    agent = DiffusionNFT(policy, task.reward, group_size=2, steps=2)
    settings = RunnerSettings(iterations=1, contexts=1, prefetch=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(task, policy, agent, settings, seed=0, folder=Path(folder), quiet=True)
        sys.setprofile(profile)
        try:
            runner._step(None)
        finally:
            sys.setprofile(None)
    return entered


if __name__ == "__main__":
    passed = walk()
    for number, (name, origins) in enumerate(passed.items(), 1):
        print(f"{number:2}. {name:32} from {', '.join(sorted(origins)) or '-'}")
    print(f"{len(passed)} files; the most entrances of one: {max(len(origins) for origins in passed.values())}")
