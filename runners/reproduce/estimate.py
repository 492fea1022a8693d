"""What a reproduction will cost, before anything runs: forwards counted, and timed on this machine."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from srgym.policies import FlowPolicy
from srgym.policies.workload import Workload
from srgym.runners.measure.evaluation import Evaluation
from srgym.runners.measure.methods import Samples
from srgym.runners.reproduce.plan import Planned
from srgym.runners.run.build import build_policy, build_task, use_threads
from srgym.runners.run.config import StageConfig
from srgym.runners.run.dry_run import Measured, measure, workload

__all__ = ["Prices", "make_prices", "seconds_of"]

_ROWS = 8
_CONTEXTS = 4  # that the metrics are timed on
_BEGIN = 8.0  # seconds until a process has imported what it needs
# Seconds of what isn't a policy's forwards, as it was on a processor of 2026.
_UNKNOWN = {"scorer": 320.0, "pairs": 30.0, "agreement": 18.0, "spread": 21.0, "faults": 20.0}


_WRITTEN = {"compact_vlcot": 0.08}  # of a document, drawn and trained on


@dataclass(frozen=True)
class Prices:
    """Seconds of one core: of rows' forward and update by policy and size, and of scoring a context."""

    rows: Mapping[str, Measured]
    context: float


def make_prices(cells: list[Planned], metrics: Mapping[str, Any], steps: int) -> Prices:
    """Time a forward and an update of every flow policy that is planned, and all metrics on a few contexts."""
    use_threads(1)
    rows: dict[str, Measured] = {}
    contexts: list[float] = []
    for planned in cells:
        for stage in planned.config.stages:
            key = _key(planned, stage)
            if key in rows:
                continue
            policy = _fresh(stage)
            if not isinstance(policy, FlowPolicy):
                continue
            side = _size(planned, stage) // policy.scale
            with _Alone() as alone:
                price = measure(policy, _ROWS, (side, side))
            rows[key] = replace(price, forward=alone.share * price.forward, update=alone.share * price.update)
            if not contexts and stage.sections["env"].get("name") == "photographs":
                contexts.append(_scoring(policy, stage, metrics, steps))
    return Prices(rows, contexts[0] if contexts else 0.0)


def _fresh(stage: StageConfig) -> Any:
    """The stage's policy with weights drawn at random: those that it starts from may not be there yet."""
    section = {key: value for key, value in stage.sections["policy"].items() if key != "weights"}
    return build_policy({**section, **({"weights": None} if "weights" in stage.sections["policy"] else {})},
                        stage.sections["env"])  # fmt: skip


def _scoring(policy: FlowPolicy, stage: StageConfig, metrics: Mapping[str, Any], steps: int) -> float:
    evaluation = Evaluation(build_task({**stage.sections["env"], "split": "test"}), metrics, limit=_CONTEXTS)
    method = {"policy": Samples(policy, steps)}
    evaluation.measure(method)
    with _Alone() as alone:
        evaluation.measure(method)
    return alone.seconds / _CONTEXTS


class _Alone:
    """Times what is done inside as if nothing else ran on the machine.

    Attributes:
        seconds: those of this process. share: of the time that went by; 1 where the processor waits for a GPU.
    """

    def __enter__(self) -> "_Alone":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        passed, own = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self.share = 1.0 if torch.cuda.is_available() else min(1.0, own / passed)
        self.seconds = self.share * passed


def _key(planned: Planned, stage: StageConfig) -> str:
    section = {key: value for key, value in stage.sections["policy"].items() if key != "weights"}
    return str((section, _size(planned, stage)))


def _size(planned: Planned, stage: StageConfig) -> int:
    """The side of SR: a stage's own, or of the contexts that it is measured on."""
    return int(stage.sections["env"].get("size") or planned.cell.request.get("test", {}).get("size") or 512)


def seconds_of(planned: Planned, prices: Prices) -> float | None:
    """What a cell takes; None where its policy doesn't say what it computes."""
    request = planned.cell.request
    scored = float(request["limit"] * prices.context)
    probe = request.get("probe")
    if probe is not None:
        return _BEGIN + _UNKNOWN.get(probe["kind"], scored * len(probe.get("weights", [1])))
    total = _BEGIN + scored
    for stage in planned.config.stages:
        if stage.kind == "scorer":
            return total + _UNKNOWN["scorer"]
        if stage.kind != "train":
            continue
        work, price = workload(stage), prices.rows.get(_key(planned, stage))
        written = _WRITTEN.get(stage.sections["policy"]["name"])
        if work is not None and written is not None:
            total += _samples(stage, work) * written
            continue
        if work is None or price is None:
            return None
        total += _training(stage, work, price) + _evaluating(stage, prices)
    return total


def _samples(stage: StageConfig, work: Workload) -> int:
    runner = stage.sections["runner"]
    return int((runner["iterations"] or 0) * runner["contexts"] * work.group_size)


def _training(stage: StageConfig, work: Workload, price: Measured) -> float:
    forward, update = price.forward / _ROWS, price.update / _ROWS
    return float(_samples(stage, work) * (work.forwards * forward + work.forwards_with_gradient * update))


def _evaluating(stage: StageConfig, prices: Prices) -> float:
    runner = stage.sections["runner"]
    every = runner["eval_every"]
    count = 1 + (runner["iterations"] or 0) // every if every else 0
    return float(count * runner["eval_contexts"] * prices.context)
