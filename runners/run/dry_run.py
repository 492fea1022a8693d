"""`srgym train --dry-run`: what a run will need, said before anything is loaded, and on a GPU tried for one step."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from srgym import agents
from srgym.policies.estimate import PEAKS, Batches, Estimate, estimate
from srgym.policies.flow import FlowPolicy
from srgym.policies.workload import Workload
from srgym.runners.loop.loggers import check_loggers
from srgym.runners.run.build import any_reward, build_policy, build_skeleton, check_order, check_parts
from srgym.runners.run.config import RunConfig, StageConfig

__all__ = ["Measured", "dry_run", "measure", "workload"]

_GIB = 2**30
_ASSUMED = "H100"
_SHARE = 0.4
_STREAM = 3e12  # bytes a second that such a device reads of its memory
_SMALL = 1e8  # parameters, below which a processor will do


@dataclass(frozen=True)
class Measured:
    """One step that was run: seconds of a forward, an update and a decoding, and the peak in bytes (None: no GPU)."""

    forward: float
    update: float
    decode: float
    peak: int | None

    def __str__(self) -> str:
        peak = "" if self.peak is None else f", {self.peak / _GIB:.1f} GiB at the worst"
        return f"measured: forward {self.forward:.3f} s, update {self.update:.3f} s, decoding {self.decode:.3f} s{peak}"


def dry_run(config: RunConfig) -> str:
    """For every stage that trains: parameters, memory, operations and time; on a GPU a step of the worst stage too.

    Nothing is written, and without a GPU no policy is loaded. Files and folders that aren't here are named at the end.

    Raises:
        ValueError: for settings that can't be.
    """
    summary: list[str] = []
    worst: tuple[float, StageConfig] | None = None
    known: dict[str, tuple[str, Estimate]] = {}
    missing: dict[str, None] = {}
    check_order(config.stages)
    check_loggers(config.logger)
    for stage in [stage for stage in config.stages if stage.kind == "train"]:
        try:
            agent = check_parts(stage.sections, config.tree["heldout"])
        except FileNotFoundError as error:
            missing[str(error)], agent = None, None
        work = workload(stage) if agent is None else agent.workload()
        key = json.dumps([stage.sections[name] for name in ("policy", "env", "agent", "lora")] + [_knobs(stage)])
        if work is None:
            name = stage.sections["agent"]["name"]
            summary += [f"stage {stage.name}", f"  unknown: agent '{name}' doesn't say what it costs (Agent.workload)"]
            continue
        like, predicted = known.get(key) or (stage.name, _predict(stage, work))
        known[key] = like, predicted
        lines = str(predicted).splitlines() if like == stage.name else []
        summary += [f"stage {stage.name}" + ("" if lines else f": as {like}"), *(f"  {line}" for line in lines)]
        summary += [f"  {line}" for line in _time(stage, predicted)]
        if worst is None or predicted.peak > worst[0]:
            worst = (predicted.peak, stage)
    if worst is not None:
        summary += _fit(*worst)
    return "\n".join([*summary, *(f"missing here: {message}" for message in missing)])


def _knobs(stage: StageConfig) -> list[Any]:
    return [stage.sections["runner"].get(name) for name in ("contexts", "microbatch", "rollout_batch")]


def workload(stage: StageConfig) -> Workload | None:
    """What the stage's agent says that an iteration costs, built on a policy without storage; None: it doesn't say."""
    return agents.make(stage.sections["agent"], build_skeleton(stage.sections), any_reward()).workload()


def _batches(stage: StageConfig) -> Batches:
    return Batches(*_knobs(stage))


def _sections(stage: StageConfig) -> tuple[str, dict[str, Any], tuple[int, int]]:
    """A stage's policy by name, its options, and the LR images' size."""
    env, options = stage.sections["env"], dict(stage.sections["policy"])
    name = options.pop("name")
    scale = options.get("scale") or env.get("scale") or 4
    if "scale" in options:
        options["scale"] = scale
    side = (env.get("size") or 512) // scale
    return name, options, (side, side)


def _predict(stage: StageConfig, work: Workload) -> Estimate:
    name, options, (height, width) = _sections(stage)
    return estimate(name, options, work, _batches(stage), height=height, width=width, lora=stage.sections["lora"])


def _device() -> tuple[str, float, int | None]:
    """(name, peak operations a second, bytes of memory): of the GPU here, else of an assumed one."""
    if not torch.cuda.is_available():
        return f"an {_ASSUMED} (there is no GPU here)", PEAKS[_ASSUMED], None
    facts = torch.cuda.get_device_properties(0)
    known = [peak for part, peak in PEAKS.items() if part in facts.name]
    return facts.name, known[0] if known else PEAKS[_ASSUMED], facts.total_memory


def _processor() -> tuple[str, float]:
    """This processor's operations a second, as a product of matrices attains them."""
    matrix = torch.ones(768, 768)
    torch.mm(matrix, matrix)
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    return "this processor", 2 * 768**3 / (time.perf_counter() - started)


def _time(stage: StageConfig, predicted: Estimate) -> list[str]:
    name, peak, memory = _device()
    if memory is None and predicted.parameters["network"] < _SMALL:
        name, peak = _processor()
    seconds = predicted.seconds(peak, _SHARE)
    lines = [f"{seconds:.3g} s an iteration on {name} at {_SHARE:.0%} of its peak, rewards not counted"]
    if predicted.streamed > _STREAM:
        lines.append(
            f"writing token by token reads {predicted.streamed / 1e12:.3g} TB of weights an iteration: at "
            f"{_STREAM / 1e12:g} TB a second {predicted.streamed / _STREAM:.3g} s more"
        )
        seconds += predicted.streamed / _STREAM
    iterations = stage.sections["runner"].get("iterations")
    if iterations:
        lines.append(f"{_hours(seconds * iterations)} for {iterations} iterations")
    return lines


def _hours(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"


def _fit(peak: float, stage: StageConfig) -> list[str]:
    """Whether the worst stage fits the GPU here, and if so one step of it, run."""
    name, _, memory = _device()
    if memory is None:
        return []
    if peak > 0.95 * memory:
        return [
            f"stage {stage.name} needs {peak / _GIB:.0f} GiB, and {name} has {memory / _GIB:.0f}: lower "
            "runner.microbatch and policy.rows, set policy.text_encoder=offload and policy.decode_tile=256, or shard "
            "the model over several GPUs (runner.parallel=fsdp)"
        ]
    policy = build_policy(stage.sections["policy"], stage.sections["env"])
    lora = stage.sections["lora"]
    if lora is not None:
        policy.add_adapters(lora["rank"], lora["alpha"], tuple(lora["targets"]) if lora.get("targets") else None)
    rows = stage.sections["runner"]["microbatch"]
    if not isinstance(policy, FlowPolicy):
        return []
    return [f"stage {stage.name}, {measure(policy.to('cuda'), rows, _sections(stage)[2])}"]


def measure(policy: FlowPolicy, rows: int, size: tuple[int, int]) -> Measured:
    """Run one forward, one update and one decoding of `rows` random LR images, after one to warm up."""
    cuda = policy.device.type == "cuda"
    with torch.no_grad():
        cond = policy.encode({"lr": torch.rand(1, 3, *size, device=policy.device), "prompt": None})
    cond = cond[torch.zeros(rows, dtype=torch.int64, device=policy.device)]
    x = torch.randn(rows, *policy.latent_shape(cond), device=policy.device)
    t = torch.full((rows,), 0.5, device=policy.device)

    def forward() -> None:
        with torch.no_grad():
            policy.velocity(x, t, cond)

    def update() -> None:
        policy.velocity(x, t, cond).float().square().mean().backward()  # type: ignore[no-untyped-call]
        policy.zero_grad(set_to_none=True)

    def decode() -> None:
        with torch.no_grad():
            policy.decode(x[:1], cond[:1])

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    forward_time, update_time, decode_time = (_timed(run, cuda) for run in (forward, update, decode))
    return Measured(forward_time, update_time, decode_time, torch.cuda.max_memory_allocated() if cuda else None)


def _timed(run: Callable[[], None], cuda: bool) -> float:
    run()
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
