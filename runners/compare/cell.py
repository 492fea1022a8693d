"""One cell of a comparison, a process of its own: `python -m srgym.runners.compare.cell FOLDER`, asked by cell.json.

It is a run as `srgym train` makes it, whose evaluations are written down image by image, and an evaluation of the final
policy on the test contexts.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from srgym import policies
from srgym.files import locked, to_png, write_json, write_whole
from srgym.runners.compare.executor import DONE, end_with_parent
from srgym.runners.measure.evaluation import (
    Evaluation,
    draw,
    evaluation_record,
    mapping_reward,
    save_evaluation,
    spread_indices,
)  # fmt: skip
from srgym.runners.measure.methods import Method, Samples, baselines
from srgym.runners.run.build import build_policy, build_task, larger_crops, pick_device, use_threads
from srgym.runners.run.config import RunConfig, compose, resolve
from srgym.runners.run.stages import Run
from srgym.sealed import read_object

__all__ = ["Progress", "Recorder", "main", "run_cell"]


# `seconds` are those of training; `evaluating` what all evaluations so far took beside it.
_COSTS = ("iteration", "images", "seconds", "flops", "evaluating")


class Recorder:
    """Writes every evaluation of a run down, image by image: rows of a CSV file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, frame: pd.DataFrame, cost: Mapping[str, float], seconds: float) -> None:
        """Add an evaluation, in place of any at this iteration or later: a session that was killed made those."""
        earlier = pd.read_csv(self._path) if self._path.is_file() else pd.DataFrame({"iteration": [], "evaluating": []})
        earlier = earlier[earlier["iteration"] < cost["iterations"]]
        evaluating = float(earlier["evaluating"].max()) if len(earlier) else 0.0
        values = (cost["iterations"], cost["images"], cost["seconds"] - evaluating, cost["flops"], evaluating + seconds)
        rows = frame[["metric", "photograph", "crop", "value"]].copy()
        for i, (column, value) in enumerate(zip(_COSTS, values, strict=True)):
            rows.insert(i, column, value)
        whole = pd.concat([earlier, rows]) if len(earlier) else rows
        write_whole(self._path, whole.to_csv(index=False).encode())


class Progress:
    """Writes the share that is done where whoever started the cell looks for it, once a second at most."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, -1.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self._written >= 1 or share >= 1:
            self._written = now
            write_json(self._path, {"share": share})


def run_cell(folder: Path) -> None:
    """Do what `cell.json` in the folder asks; a run whose last stage makes a reward model is trained alone.

    - `overrides`: of `srgym train`; None for a starting policy that isn't trained.
    - `settings`: the overrides that say env and policy of such a start.
    - `metrics`: labels to reward specifications; `reward`: the label of the one that is trained on.
    - `test`: changes of the env section for the final evaluation, or another section, if it has a name; `limit`,
      `steps`, `seeds`, `pictures`, `picture_size`: of it; `baselines`: whether to score what costs no reinforcement
      learning, too.
    """
    request, started = read_object(folder / "cell.json", {}), time.monotonic()
    config = resolve(*compose([*(request["overrides"] or request["settings"]), f"out={folder / 'run'}"]))
    first = os.environ.get("RANK", "0") == "0"  # of several processes that share the training, the one that writes
    with locked(folder) if first else nullcontext():
        cost = {} if request["overrides"] is None else _train(folder, request, config)
        if first:
            final = _evaluate(folder, request, config) if config.stages[-1].kind != "scorer" else None
            spent = {"seconds": time.monotonic() - started, "cpu": time.process_time()}
            write_json(folder / DONE, {"request": request, "cost": cost, "policy": final, **spent})


def _train(folder: Path, request: Mapping[str, Any], config: RunConfig) -> dict[str, float]:
    """Train what is asked, and return what all stages cost together."""
    run = Run(
        config, quiet=True, metrics=request["metrics"], reward=request["reward"],
        on_evaluation=Recorder(folder / "evaluations.csv"), on_progress=Progress(folder / "progress.json"),
    )  # fmt: skip
    cost: dict[str, float] = {}
    for stage in run.learn().values():
        cost = {key: cost.get(key, 0.0) + value for key, value in stage.items()}
    return cost


def _evaluate(folder: Path, request: Mapping[str, Any], config: RunConfig) -> str | None:
    """Score the final policy on the test contexts; returns its folder, None for one that comes from its settings."""
    stage = config.stages[-1]
    use_threads(stage.sections["runner"]["threads"])
    saved = None if request["overrides"] is None else f"run/stages/{stage.name}/policy"
    env = dict(request["test"]) if "name" in request["test"] else {**stage.sections["env"], **request["test"]}
    policy = policies.load(folder / saved) if saved else build_policy(stage.sections["policy"], env)
    policy = policy.to(pick_device(stage.sections["runner"]["device"]))
    methods: dict[str, Method] = {"policy": Samples(policy, request["steps"])}
    if request["baselines"]:
        methods |= baselines(policy, request["steps"])
    task = build_task(env)
    evaluation = Evaluation(task, request["metrics"], seeds=request["seeds"], limit=request["limit"])
    record = evaluation_record(methods, evaluation.metrics, env=env, contexts=len(task))
    save_evaluation(evaluation.measure(methods), record, folder)
    if request["pictures"]:
        task = larger_crops(task, env, request["picture_size"])
        shown = spread_indices(len(task), request["pictures"])
        reward = mapping_reward(evaluation.metrics)
        _save_pictures(folder / "pictures", draw(task, {"policy": methods["policy"]}, shown, reward=reward))
    return saved


def _save_pictures(folder: Path, pictures: Sequence[Mapping[str, Any]]) -> None:
    listed = []
    for i, picture in enumerate(pictures):
        files = {}
        for name, image in picture.items():
            if name != "id":
                files[name] = f"{i}_{name.lower().replace(', ', '_')}.png"
                write_whole(folder / files[name], to_png(image))
        listed.append({"id": picture["id"], "files": files})
    write_json(folder / "pictures.json", listed)


def main(arguments: Sequence[str], run: Callable[[Path], None] = run_cell) -> int:
    """Run the cell in a folder; 0, or 2 with a sentence, or 128 + n when stopped by signal n."""
    end_with_parent()
    try:
        run(Path(arguments[0]))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        code = getattr(error, "exit_code", None)  # a run that saved before it stopped
        if code is None:
            raise
        print(error, file=sys.stderr)
        return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
