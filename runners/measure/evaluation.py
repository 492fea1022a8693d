"""Evaluation: any methods on any contexts by any metrics, one row for each image and number."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.envs.rendering import legend, overlay
from srgym.envs.sources import Source
from srgym.envs.task import Context, SRTask
from srgym.errors import MissingFile, Refusal
from srgym.files import write_json, write_whole
from srgym.rewards.base import Reward
from srgym.runners.measure.methods import Method, as_method
from srgym.runners.measure.metrics import Metric, check_metrics, make_metrics, metric_rows
from srgym.sealed import Damaged, file_hash, read_object

__all__ = ["COLUMNS", "Evaluation", "contact_sheet", "draw", "evaluate", "evaluation_record", "faulty",
           "mapping_reward", "read_evaluation", "save_evaluation", "split_id", "spread_indices"]  # fmt: skip

COLUMNS = ("method", "photograph", "crop", "metric", "value", "valid", "seed")


def split_id(name: str) -> tuple[str, str]:
    """A context's id as (photograph, crop): a number after the last slash is the crop's, else there is one crop."""
    photograph, slash, crop = name.rpartition("/")
    return (photograph, crop) if slash and crop.isdigit() else (name, "0")


def spread_indices(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` contexts, spread evenly, so that every photograph has its share."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise Refusal(f"expected at least 1 context to evaluate on, got {limit}")
    return [round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)]


class Evaluation:
    """Metrics on some contexts of a task, which conditions a policy here as it does in training.

    Args:
        task: whose contexts; it needs no reward.
        metrics: see `make_metrics`.
        reward: the label of the metric that is trained on, where there is one.
        seeds: of the samples' noise; what isn't random is scored once.
        limit: at most so many contexts, spread evenly.
        batch: contexts at once; results don't depend on it.
    """

    def __init__(
        self,
        task: SRTask,
        metrics: Sequence[Any] | Mapping[str, Any],
        *,
        reward: str | None = None,
        seeds: Sequence[int] = (0,),
        limit: int | None = None,
        batch: int = 8,
    ) -> None:
        self.task, self.metrics, self.reward = task, make_metrics(metrics), reward
        self.seeds, self.batch = seeds, batch
        self.indices = spread_indices(len(task), limit)

    def measure(self, methods: Mapping[str, Method], progress: Callable[[float], None] | None = None) -> pd.DataFrame:
        """Score methods.

        Args:
            progress: is called with the share done, in [0, 1].

        Returns:
            One row for each method, seed, image and metric (components as `metric.component`), in that order, columns
            `COLUMNS`. `value` is NaN and `valid` False where there is no score.

        Raises:
            Incompatible: for a metric that the contexts and a method can't feed.
        """
        for method in methods.values():
            check_metrics(self.metrics, self.task.provides | method.gives, f"the source '{self.task.source.name}'")
        rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
        done = 0
        for context in self.task.batches(self.indices, self.batch):
            for name, method in methods.items():
                for seed in self.seeds if method.random else self.seeds[:1]:
                    scored = self._score(context, method, seed, {"method": name, "seed": seed})
                    rows.setdefault((name, seed), []).extend(scored)
            done += len(context)
            if progress is not None:
                progress(done / len(self.indices))
        ordered = [row for name in methods for seed in self.seeds for row in rows.get((name, seed), [])]
        return pd.DataFrame(ordered, columns=list(COLUMNS))

    @torch.no_grad()
    def _score(self, context: Context, method: Method, seed: int, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
        identity = [{**labels, "photograph": p, "crop": c} for p, c in map(split_id, context.ids)]
        sr, made = method(context, seed)
        group = torch.arange(len(sr))
        columns = []
        for metric in self.metrics:
            output = self.task.score(context, sr, group, reward=metric.reward, **made)
            columns += metric_rows(metric, output, identity)
        return [row for i in range(len(identity)) for row in columns[i :: len(identity)]]

    def means(self, frame: pd.DataFrame) -> dict[str, float]:
        """What is logged of a measurement: `eval/reward` for the trained reward, its components beside it, and the
        other metrics, means over the images that have a score."""
        values = frame.groupby("metric", sort=False)["value"].mean()
        trained = f"{self.reward}."
        names = {name: "reward" if name == self.reward else str(name).removeprefix(trained) for name in values.index}
        return {f"eval/{names[name]}": float(value) for name, value in values.items()}

    def pictures(self, methods: Mapping[str, Method], count: int) -> list[dict[str, Any]]:
        """The first contexts as `draw` gives them."""
        return draw(self.task, methods, self.indices[:count], seed=self.seeds[0], reward=mapping_reward(self.metrics))


def evaluate(
    methods: Mapping[str, Any],
    contexts: SRTask | Source,
    metrics: Sequence[Any] | Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 6,
    solver: str = "euler",
    adapter: str | None = "ema",
    limit: int | None = None,
    batch: int = 8,
    progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """Score methods on contexts: `Evaluation.measure` in one call.

    Args:
        methods: by name: a policy (its samples are drawn by `solver` in `steps` under `adapter`), a `Method`, or a
            function of LR [B, 3, h, w] to SR [B, 3, H, W].
        contexts: a task, or a source, whose contexts then carry no prompts.
        metrics, seeds, limit, batch, progress: see `Evaluation`.
    """
    task = contexts if isinstance(contexts, SRTask) else SRTask(contexts)
    drawn = {name: as_method(m, steps=steps, solver=solver, adapter=adapter) for name, m in methods.items()}
    return Evaluation(task, metrics, seeds=seeds, limit=limit, batch=batch).measure(drawn, progress)


@torch.no_grad()
def draw(
    task: SRTask, methods: Mapping[str, Method], indices: Sequence[int], *, seed: int = 0, reward: Reward | None = None
) -> list[dict[str, Any]]:
    """Pictures of some contexts: for each a dict with `id`, `LR`, every method by name, and `HR`, as far as there are.

    Images are [3, H, W] in [0, 1] on the CPU, LR in its own size. With a reward that has a map (see `mapping_reward`),
    each method is followed by its faults over the greyed image, and their scale, under `faulty(name)`.
    """
    pictures = []
    for context in task.batches(indices, 1):
        images: dict[str, Any] = {"id": context.ids[0]}
        if "lr" in task.provides:
            images["LR"] = context.lr[0]
        for name, method in methods.items():
            sr = method(context, seed).sr.float().clamp(0, 1).cpu()
            images[name] = sr[0]
            if reward is not None:
                fault = overlay(sr[0], task.map(context, sr, reward=reward)[0].cpu())
                images[faulty(name)] = torch.cat([fault, legend(sr.shape[-2])], 2)
        if context.hr is not None:
            images["HR"] = context.hr[0]
        pictures.append(images)
    return pictures


def contact_sheet(pictures: Sequence[Mapping[str, Any]]) -> Tensor:
    """Pictures of `draw`, as far as they have the first one's size, one a row, LR enlarged: [3, height, width]."""
    rows = []
    for picture in pictures:
        images = [image for name, image in picture.items() if name != "id"]
        size = images[-1].shape[-2:]
        enlarged = [F.interpolate(x[None], size=size, mode="nearest")[0] if x.shape[1] < size[0] else x for x in images]
        rows.append(torch.cat(enlarged, 2))
    return torch.cat([row for row in rows if row.shape == rows[0].shape], 1)


def faulty(name: str) -> str:
    """What the picture of a method's faults is called."""
    return f"{name}, faults"


def mapping_reward(metrics: Sequence[Metric]) -> Reward | None:
    """The first of the metrics that can say where an image is bad; None where none can."""
    return next((metric.reward for metric in metrics if metric.reward.has_map), None)


# On disk


def evaluation_record(methods: Mapping[str, Method], metrics: Sequence[Metric], **facts: Any) -> dict[str, Any]:
    """What the numbers mean: every metric's variant and colour space, every method's sampling and colour fix."""
    return {
        "metrics": {metric.label: metric.record for metric in metrics},
        "methods": {name: method.record for name, method in methods.items()},
        **facts,
    }


def write_frame(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Write `name`.csv and `name`.parquet."""
    write_whole(folder / f"{name}.csv", frame.to_csv(index=False).encode())
    write_whole(folder / f"{name}.parquet", frame.to_parquet(index=False))


def save_evaluation(frame: pd.DataFrame, record: Mapping[str, Any], folder: Path, name: str = "results") -> None:
    """Write `results.csv` and `results.parquet`, one row a number, and `results.json`, what they mean."""
    write_frame(frame, folder, name)
    record = {**record, "sha256": file_hash(folder / f"{name}.parquet")}
    write_json(folder / f"{name}.json", {**record, "record_sha256": _digest(record)})


def _digest(record: Mapping[str, Any]) -> str:
    """The SHA-256 of a record, of what JSON keeps of it."""
    plain = json.loads(json.dumps(record, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_evaluation(folder: Path, name: str = "results") -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `save_evaluation` wrote.

    Raises:
        FileNotFoundError: if the folder holds none.
        Damaged: if the rows aren't those that were written.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise MissingFile(f"expected an evaluation at {path}, found none")
    record = read_object(folder / f"{name}.json", {})
    if "sha256" in record and record.pop("record_sha256", None) != _digest(record):
        raise Damaged(f"{folder / f'{name}.json'} has changed since it was written (its SHA-256 isn't the one in it)")
    if "sha256" in record and record.pop("sha256") != file_hash(path):
        raise Damaged(f"{path} has changed since it was written (its SHA-256 isn't that in {name}.json)")
    return pd.read_parquet(path), record
