"""Evaluation: any methods on any contexts by any metrics, one row for each image and number."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from srgym.rewards.base import Reward
from srgym.runners.measure.methods import as_method
from srgym.runners.measure.metrics import Metric, check_metrics, make_metrics, metric_rows

__all__ = ["COLUMNS", "Batch", "batches", "draw", "evaluate", "evaluation_record", "faulty", "mapping_reward",
           "read_evaluation", "save_evaluation", "split_id", "spread_indices"]  # fmt: skip

COLUMNS = ("method", "photograph", "crop", "metric", "value", "valid", "seed")


@dataclass(frozen=True)
class Batch:
    """Contexts of one size, as methods and metrics take them.

    Attributes:
        index: int64 [B]; ids: B strings; lr: [B, 3, h, w]; hr: [B, 3, H, W]; prompt, degradation: B each. What the
            source doesn't have is None (LR too, where images are scored that something else made).
    """

    index: Tensor
    ids: list[str]
    lr: Tensor | None
    hr: Tensor | None
    prompt: list[str] | None
    degradation: list[dict[str, Any]] | None


def split_id(name: str) -> tuple[str, str]:
    """A context's id as (photograph, crop): a number after the last slash is the crop's, else there is one crop."""
    photograph, slash, crop = name.rpartition("/")
    return (photograph, crop) if slash and crop.isdigit() else (name, "0")


def spread_indices(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` contexts, spread evenly, so that every photograph has its share."""
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise ValueError(f"expected at least 1 context to evaluate on, got {limit}")
    return [round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)]


def batches(source: Any, indices: Sequence[int], size: int = 8) -> Iterator[Batch]:
    """The source's samples in batches of at most `size` neighbours that share their image sizes."""
    held: list[tuple[int, Any]] = []
    for index in indices:
        sample = source[index]
        if held and (len(held) == size or _shapes(sample) != _shapes(held[0][1])):
            yield _batch(held)
            held = []
        held.append((index, sample))
    if held:
        yield _batch(held)


def _shapes(sample: Any) -> tuple[Any, ...]:
    return tuple(None if image is None else image.shape for image in (sample.lr, sample.hr))


def _batch(held: Sequence[tuple[int, Any]]) -> Batch:
    samples = [sample for _, sample in held]
    return Batch(
        index=torch.tensor([index for index, _ in held]),
        ids=[sample.id for sample in samples],
        lr=_all(torch.stack, [sample.lr for sample in samples]),
        hr=_all(torch.stack, [sample.hr for sample in samples]),
        prompt=_all(list, [sample.prompt for sample in samples]),
        degradation=_all(list, [sample.degradation for sample in samples]),
    )


def _all(join: Callable[[list[Any]], Any], parts: list[Any]) -> Any:
    return None if parts[0] is None else join(parts)


def evaluate(
    methods: Mapping[str, Any],
    source: Any,
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
    """Score methods on a source of contexts.

    Args:
        methods: by name: a policy (its samples are drawn by `solver` in `steps` under `adapter`), a `Method`, or a
            function of LR [B, 3, h, w] to SR [B, 3, H, W].
        source: a `srgym.envs` source.
        metrics: reward specifications, or labels to them (see `make_metrics`).
        seeds: of the samples' noise; what isn't random is scored once.
        limit: at most so many contexts, spread evenly.
        batch: contexts at once; results don't depend on it.
        progress: is called with the share done, in [0, 1].

    Returns:
        One row for each method, seed, image and metric (components as `metric.component`), in that order, columns
        `COLUMNS`. `value` is NaN and `valid` False where there is no score.

    Raises:
        Incompatible: for a metric that the source can't feed.
    """
    measured = make_metrics(metrics)
    check_metrics(measured, source.provides, f"the source '{type(source).__name__}'")
    drawn = {name: as_method(m, steps=steps, solver=solver, adapter=adapter) for name, m in methods.items()}
    indices = spread_indices(len(source), limit)
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    done = 0
    for contexts in batches(source, indices, batch):
        for name, method in drawn.items():
            for seed in seeds if method.random else seeds[:1]:
                scored = _score(measured, contexts, method(contexts, seed), {"method": name, "seed": seed})
                rows.setdefault((name, seed), []).extend(scored)
        done += len(contexts.ids)
        if progress is not None:
            progress(done / len(indices))
    ordered = [row for name in drawn for seed in seeds for row in rows.get((name, seed), [])]
    return pd.DataFrame(ordered, columns=list(COLUMNS))


@torch.no_grad()
def _score(metrics: Sequence[Metric], contexts: Batch, sr: Tensor, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    def here(image: Tensor | None) -> Tensor | None:
        return None if image is None else image.to(sr.device)

    identity = [{**labels, "photograph": p, "crop": c} for p, c in map(split_id, contexts.ids)]
    columns = []
    for metric in metrics:
        output = metric.reward(
            sr, lr=here(contexts.lr), hr=here(contexts.hr), degradation=contexts.degradation,
            index=contexts.index, group=torch.arange(len(sr), device=sr.device),
        )  # fmt: skip
        columns += metric_rows(metric, output, identity)
    return [row for i in range(len(identity)) for row in columns[i :: len(identity)]]


@torch.no_grad()
def draw(
    methods: Mapping[str, Any],
    source: Any,
    indices: Sequence[int],
    *,
    seed: int = 0,
    reward: Reward | None = None,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Pictures of some contexts: for each a dict with `id`, `LR`, every method by name, and `HR`, as far as there are.

    Images are [3, H, W] in [0, 1] on the CPU, LR in its own size. With a reward that has a map (see `mapping_reward`),
    each method is followed by its faults over the greyed image, and their scale, under `faulty(name)`.
    """
    drawn = {name: as_method(method, **sampling) for name, method in methods.items()}
    pictures = []
    for contexts in batches(source, indices, 1):
        images: dict[str, Any] = {"id": contexts.ids[0]}
        if contexts.lr is not None:
            images["LR"] = contexts.lr[0]
        for name, method in drawn.items():
            images[name] = method(contexts, seed)[0].float().clamp(0, 1).cpu()
            if reward is not None:
                images[faulty(name)] = _with_faults(reward, images[name], contexts)
        if contexts.hr is not None:
            images["HR"] = contexts.hr[0]
        pictures.append(images)
    return pictures


def faulty(name: str) -> str:
    """What the picture of a method's faults is called."""
    return f"{name}, faults"


def mapping_reward(metrics: Sequence[Metric]) -> Reward | None:
    """The first of the metrics that can say where an image is bad; None where none can."""
    return next((metric.reward for metric in metrics if metric.reward.has_map), None)


def _with_faults(reward: Reward, sr: Tensor, contexts: Batch) -> Tensor:
    from srgym.envs.rendering import legend, overlay

    fault = reward.map(sr[None], lr=contexts.lr, hr=contexts.hr, degradation=contexts.degradation)[0].cpu()
    return torch.cat([overlay(sr, fault), legend(sr.shape[-2])], 2)


# On disk


def evaluation_record(methods: Mapping[str, Any], metrics: Sequence[Metric], **facts: Any) -> dict[str, Any]:
    """What the numbers mean: every metric's variant and colour space, every method's sampling and colour fix."""
    return {
        "metrics": {metric.label: metric.record for metric in metrics},
        "methods": {name: as_method(method).record for name, method in methods.items()},
        **facts,
    }


def save_evaluation(frame: pd.DataFrame, record: Mapping[str, Any], folder: Path, name: str = "results") -> None:
    """Write `results.csv` and `results.parquet`, one row a number, and `results.json`, what they mean."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / f"{name}.csv", index=False)
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2, default=str) + "\n")


def read_evaluation(folder: Path, name: str = "results") -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `save_evaluation` wrote.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"expected an evaluation at {path}, found none")
    return pd.read_parquet(path), json.loads((folder / f"{name}.json").read_text())
