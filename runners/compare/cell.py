"""One cell of a comparison, a process of its own: `python -m srgym.runners.compare.cell FOLDER`, asked by cell.json.

It is a run as `srgym train` makes it, whose evaluations are written down image by image, and an evaluation of the final
policy on the test contexts.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srgym.files import write_json
from srgym.rewards.base import Reward
from srgym.runners.compare.executor import end_with_parent
from srgym.runners.loop.heldout import Heldout, averaged_weights
from srgym.runners.measure.evaluation import (
    draw,
    evaluate,
    evaluation_record,
    mapping_reward,
    save_evaluation,
    spread_indices,
)
from srgym.runners.measure.methods import Samples, baselines
from srgym.runners.measure.metrics import Metric, make_metrics
from srgym.runners.run.config import RunConfig, StageConfig, compose, resolve
from srgym.runners.run.stages import Run

__all__ = ["CellRun", "RecordedHeldout", "main", "run_cell"]


class RecordedHeldout(Heldout):
    """The evaluation during a run, written down for every image and metric.

    Args:
        metrics: what is measured; the one labelled `reward` is logged as `eval/reward`, its components beside it.
        path: the CSV file; rows are added to it.
        cost: what has been spent: iterations, images, seconds, flops.
    """

    def __init__(
        self,
        inner: Heldout,
        metrics: Sequence[Metric],
        reward: str,
        path: Path,
        cost: Callable[[], Mapping[str, float]],
    ) -> None:
        self.__dict__.update(inner.__dict__)
        self._metrics, self._reward, self._path, self._cost = metrics, reward, path, cost

    def evaluate(self, policy: Any, agent: Any) -> dict[str, float]:
        started, spent = time.monotonic(), self._cost()
        with averaged_weights(policy, agent):
            frame = evaluate(
                {"policy": Samples(policy, self._sampling.steps)}, self._task.source, self._metrics,
                seeds=(self._seed,), limit=len(self._indices),
            )  # fmt: skip
        rows = frame[["metric", "photograph", "crop", "value"]].copy()
        earlier = _evaluating(self._path)
        values = (spent["iterations"], spent["images"], spent["seconds"] - earlier, spent["flops"],
                  earlier + time.monotonic() - started)  # fmt: skip
        for i, (column, value) in enumerate(zip(_COSTS, values, strict=True)):
            rows.insert(i, column, value)
        rows.to_csv(self._path, mode="a", header=not self._path.is_file(), index=False)
        means = frame.groupby("metric", sort=False)["value"].mean()
        return {f"eval/{_logged(name, self._reward)}": float(value) for name, value in means.items()}


# `seconds` are those of training; `evaluating` what all evaluations so far took beside it.
_COSTS = ("iteration", "images", "seconds", "flops", "evaluating")


def _evaluating(path: Path) -> float:
    return float(pd.read_csv(path)["evaluating"].max()) if path.is_file() else 0.0


def _logged(metric: str, reward: str) -> str:
    return "reward" if metric == reward else metric.removeprefix(f"{reward}.")


class CellRun(Run):
    """A run whose evaluations are recorded; the costs of its stages add up."""

    def __init__(self, config: RunConfig, metrics: Sequence[Metric], reward: str, path: Path) -> None:
        super().__init__(config, quiet=True)
        self._metrics, self._reward, self._path = metrics, reward, path

    def _build(self, stage: StageConfig, folder: Path) -> tuple[Any, Any, list[Any]]:
        runner, agent, loggers = super()._build(stage, folder)
        earlier = [self._read_record()["stages"].get(name, {}) for name in self._names_before(stage.name)]

        def cost() -> dict[str, float]:
            return {key: value + sum(one.get(key, 0) for one in earlier) for key, value in runner.cost.items()}

        if runner._heldout is not None:
            _forget_after(self._path, cost()["iterations"])
            runner._heldout = RecordedHeldout(runner._heldout, self._metrics, self._reward, self._path, cost)
        return runner, agent, loggers

    def _names_before(self, name: str) -> list[str]:
        names = [stage.name for stage in self.config.stages]
        return names[: names.index(name)]


def _forget_after(path: Path, iteration: float) -> None:
    """Drop what a killed session evaluated after the checkpoint that is gone on from."""
    if path.is_file():
        rows = pd.read_csv(path)
        rows[rows["iteration"] <= iteration].to_csv(path, index=False)


def run_cell(folder: Path) -> None:
    """Do what `cell.json` in the folder asks:

    - `overrides`: of `srgym train`; None for a starting policy that isn't trained.
    - `settings`: the overrides that say env and policy of such a start.
    - `metrics`: labels to reward specifications; `reward`: the label of the one that is trained on.
    - `test`: changes of the env section for the final evaluation; `limit`, `steps`, `seeds`, `pictures`,
      `picture_size`: of it; `baselines`: whether to score what costs no reinforcement learning, too.
    """
    request, started = json.loads((folder / "cell.json").read_text()), time.monotonic()
    metrics = make_metrics(request["metrics"])
    config = resolve(*compose([*(request["overrides"] or request["settings"]), f"out={folder / 'run'}"]))
    cost: dict[str, float] = {}
    if request["overrides"] is not None:
        run = CellRun(config, metrics, request["reward"], folder / "evaluations.csv")
        costs = run.learn()
        for one in costs.values():
            cost = {key: cost.get(key, 0.0) + value for key, value in one.items()}
    final = _evaluate(folder, request, config, metrics)
    write_json(
        folder / "done.json",
        {"request": request, "cost": cost, "policy": final, "seconds": time.monotonic() - started},
    )


def _evaluate(folder: Path, request: Mapping[str, Any], config: RunConfig, metrics: Sequence[Metric]) -> str | None:
    """Score the final policy on the test contexts; returns its folder, None for one that comes from its settings."""
    from srgym.envs import sources
    from srgym.policies import load
    from srgym.runners.run.build import build_policy, pick_device, use_threads

    stage = config.stages[-1]
    use_threads(stage.sections["runner"]["threads"])
    saved = None if request["overrides"] is None else f"run/stages/{stage.name}/policy"
    env = {key: value for key, value in {**stage.sections["env"], **request["test"]}.items() if key != "prompts"}
    policy = load(folder / saved) if saved else build_policy(stage.sections["policy"], env)
    policy = policy.to(pick_device(stage.sections["runner"]["device"]))
    methods: dict[str, Any] = {"policy": Samples(policy, request["steps"])}
    if request["baselines"]:
        methods |= baselines(policy, request["steps"])
    source = sources.make(env)
    frame = evaluate(methods, source, metrics, seeds=request["seeds"], limit=request["limit"])
    save_evaluation(frame, evaluation_record(methods, metrics, env=env, contexts=len(source)), folder)
    if request["pictures"]:
        _draw(folder / "pictures", {"policy": methods["policy"]}, {**env}, request, mapping_reward(metrics))
    return saved


def _draw(
    folder: Path, methods: Mapping[str, Any], env: dict[str, Any], request: Mapping[str, Any], reward: Reward | None
) -> None:
    from srgym.envs import sources
    from srgym.files import to_png

    if request["picture_size"] and env.get("size"):
        env["size"] = request["picture_size"]
    source = sources.make(env)
    folder.mkdir(exist_ok=True)
    listed = []
    shown = spread_indices(len(source), request["pictures"])
    for i, picture in enumerate(draw(methods, source, shown, reward=reward)):
        files = {}
        for name, image in picture.items():
            if name != "id":
                files[name] = f"{i}_{name.lower().replace(', ', '_')}.png"
                (folder / files[name]).write_bytes(to_png(image))
        listed.append({"id": picture["id"], "files": files})
    write_json(folder / "pictures.json", listed)


def main(arguments: Sequence[str]) -> int:
    """Run the cell in a folder; 0, or 2 with a sentence, or 128 + n when stopped by signal n."""
    end_with_parent()
    try:
        run_cell(Path(arguments[0]))
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
