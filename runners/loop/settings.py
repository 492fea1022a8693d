"""The runner section of the settings, and which settings a run may change between its sessions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from srgym.errors import Refusal
from srgym.runners.loop.schedule import Budget
from srgym.settings import Count, Natural, Positive, check_arguments

__all__ = ["RunnerSettings", "same_config"]

_Decay = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class RunnerSettings:
    """How a stage is run. `configs/runner/default.yaml` gives every key with its default.

    Attributes:
        iterations, images, seconds: the budget (see `Budget`); the first that is reached ends the stage.
        contexts: contexts an iteration collects.
        microbatch: rows in one forward and backward. A memory knob: results don't depend on it.
        rollout_batch: samples drawn in one rollout, and scored by a judge elsewhere while the next are drawn; None: all
            at once. A memory knob too.
        lr, weight_decay, betas, clip: AdamW's, and the norm that gradients are clipped to.
        schedule, warmup: see `learning_rate`.
        autocast: "bf16", "off", or "auto" (bf16 where the device computes in it), for the policy's forwards alone.
        threads: torch's threads; None: one a core.
        device: "auto", "cpu", "cuda", ...
        parallel: "ddp" or "fsdp", where several processes share the run (see `srgym.runners.loop.distributed`).
        patience: seconds that a process waits for the others before it gives them up.
        patience_rewards: iterations in a row without one valid score that end the run.
        prefetch: iterations whose contexts are made ahead, in one thread.
        log_every, eval_every, images_every, checkpoint_every: iterations between two; 0: never (a last checkpoint
            and evaluation come at the end anyway).
        eval_contexts, eval_steps: held-out contexts, and the sampler's steps on them.
        keep: checkpoints kept.
    """

    iterations: Count | None = None
    images: Count | None = None
    seconds: Positive | None = None
    contexts: Count = 8
    microbatch: Count = 64
    rollout_batch: Count | None = None
    lr: Annotated[float, Ge(0), Lt(math.inf)] = 3e-4
    weight_decay: Annotated[float, Ge(0), Lt(math.inf)] = 1e-4
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    clip: Positive = 1.0
    schedule: Literal["constant", "cosine", "warmup"] = "constant"
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    autocast: Literal["off", "bf16", "auto"] = "off"
    threads: Count | None = None
    device: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    patience: Positive = 900.0
    patience_rewards: Count = 3
    prefetch: Natural = 1
    log_every: Natural = 1
    eval_every: Natural = 0
    eval_contexts: Natural = 16
    eval_steps: Count = 6
    images_every: Natural = 0
    checkpoint_every: Natural = 50
    keep: Count = 2

    def __post_init__(self) -> None:
        check_arguments(RunnerSettings, vars(self), "runner.")
        object.__setattr__(self, "betas", tuple(self.betas))

    @property
    def budget(self) -> Budget:
        return Budget(self.iterations, self.images, self.seconds)


# Keys that may change between the sessions of one run: they don't enter its results, or lengthen it.
_FREE = {
    "runner.": ("iterations", "images", "seconds", "microbatch", "rollout_batch", "threads", "device", "parallel",
                "patience", "patience_rewards", "prefetch", "log_every", "images_every", "checkpoint_every", "keep"),
    "engine.": ("urls", "limit", "timeout", "deadline", "retries", "backoff", "patience"),  # a server may have moved
}  # fmt: skip


def same_config(stored: Mapping[str, Any], own: Mapping[str, Any], run: Path, path: str = "") -> None:
    """Check that a run goes on with the settings it was started with, but for those that don't enter its results.

    Raises:
        ValueError: naming the first setting that differs.
    """
    for key in sorted(set(stored) | set(own)):
        if any(path.endswith(section) and key in keys for section, keys in _FREE.items()):
            continue
        before, now = stored.get(key), own.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            same_config(before, now, run, f"{path}{key}.")
        elif before != now:
            raise Refusal(
                f"the run in {run} was started with {path}{key}={before}, and now it is {now}: "
                "go on with the same settings, choose another folder (out=), or start afresh (overwrite=true)"
            )
