"""What automatic judges say of a study's images, read from the PNG that people saw."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from srgym.envs.task import SRTask
from srgym.errors import Refusal
from srgym.rewards import make
from srgym.rewards.registry import listing
from srgym.rewards.serving.readiness import ensure_ready
from srgym.runners.arena.study import Study
from srgym.runners.measure.evaluation import Evaluation
from srgym.runners.measure.folders import match_folders
from srgym.runners.measure.metrics import Metric, make_metrics

__all__ = ["Scores", "judge_scores"]

# By judge, context's id and method.
Scores = dict[str, dict[str, dict[str, float]]]


def judge_scores(
    study: Study, metrics: Sequence[Any] | Mapping[str, Any] | None = None
) -> tuple[Scores, dict[str, str]]:
    """Scores of every method's images.

    Args:
        metrics: see `make_metrics`; None: every reward that is known and can be computed here on one image at a time,
            but for controls.

    Returns:
        The scores, and why others couldn't be had, by judge.

    Raises:
        Refusal: for a judge that was asked for and can't be computed.
    """
    folders = {name: study.images(name) for name in study.methods}
    contexts, images = match_folders(folders, study.images("hr") if study.has_hr else None, study.images("lr"))
    task, scores, missing = SRTask(contexts), Scores(), {}
    for name, spec in _specs(metrics).items():
        try:
            metric = spec if isinstance(spec, Metric) else _ready(spec)
            frame = Evaluation(task, [metric]).measure(images)
        except Refusal as error:
            if metrics is not None:
                raise
            missing[name] = " ".join(str(error).split())
        else:
            scores[name] = _by_context(frame[frame["metric"] == metric.label], study)
    return scores, missing


def _specs(metrics: Sequence[Any] | Mapping[str, Any] | None) -> dict[str, Any]:
    if metrics is not None:
        return {metric.label: metric for metric in make_metrics([metrics] if isinstance(metrics, str) else metrics)}
    return {row["name"]: row["name"] for row in listing() if row["direction"] == "higher" and not row["group"]}


def _ready(name: str) -> Metric:
    reward = make(name)
    ensure_ready(reward)
    (metric,) = make_metrics([reward])
    return metric


def _by_context(frame: pd.DataFrame, study: Study) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {} for name in study.contexts}
    for stem, method, value in zip(frame["photograph"], frame["method"], frame["value"], strict=True):
        found[study.contexts[int(stem)]][method] = float(value)
    return found
