"""What an evaluation measures: rewards under a label, with what must be recorded beside their numbers."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards import Incompatible, Reward, RewardOutput, make
from srgym.rewards.kin import installed_judges

__all__ = ["Metric", "check_metrics", "make_metrics", "metric_rows", "usual_metrics"]

# What is measured where nothing else was said, beside the judges that are installed.
_USUAL = ("structure_texture", "psnr_y", "ssim_y", "psnr_chroma")


@dataclass(frozen=True)
class Metric:
    """A reward that is measured and not trained on.

    Attributes:
        label: its name in tables.
        reward: what computes it; higher is better.
        variant: which of the metric's variants this is, for the record.
    """

    label: str
    reward: Reward
    variant: str

    @property
    def record(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        return {
            "reward": self.reward.name, "unit": self.reward.unit, "variant": self.variant,
            "direction": "higher is better", "colour_space": self.reward.colour_space,
            "range": [str(bound) for bound in self.reward.range],
            "weights": self.reward.weights, "licence": self.reward.licence,
        }  # fmt: skip


def usual_metrics() -> list[str]:
    """What a report measures where nothing else was said: structure and texture, fidelity, and the installed judges."""
    return [*_USUAL, *installed_judges()]


def make_metrics(specs: Sequence[Any] | Mapping[str, Any]) -> list[Metric]:
    """Metrics from reward specifications (see `srgym.rewards.make`): a list, or a mapping of labels to them.

    A mapping in a list may carry its `label`.

    Raises:
        ValueError: for an unknown name, or a label given twice.
    """
    pairs = list(specs.items()) if isinstance(specs, Mapping) else [(None, spec) for spec in specs]
    if not pairs:
        raise Refusal("an evaluation needs at least one metric, got none")
    metrics: list[Metric] = []
    for label, spec in pairs:
        metric = _make(label, spec)
        if any(other.label == metric.label for other in metrics):
            raise Refusal(f"two metrics are labelled '{metric.label}': give one of them another label")
        metrics.append(metric)
    return metrics


def _make(label: str | None, spec: Any) -> Metric:
    if isinstance(spec, Metric):
        return spec
    options: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        options = {key: value for key, value in spec.items() if key != "label"}
        label = label or spec.get("label")
    reward = make(options or spec)
    variant, own = reward.variant or reward.doc, {key: value for key, value in options.items() if key != "name"}
    return Metric(label or reward.name, reward, f"{variant}; {json.dumps(own, default=str)}" if own else variant)


def check_metrics(metrics: Sequence[Metric], provides: Collection[str], source: str) -> None:
    """Refuse metrics that the contexts can't feed.

    Raises:
        Incompatible: naming the metric, what it needs, and what the source gives.
    """
    for metric in metrics:
        missing = metric.reward.missing(provides)
        if missing:
            raise Incompatible(
                f"metric '{metric.label}' needs {', '.join(sorted(missing))}, which {source} doesn't give "
                f"(it gives {', '.join(sorted(provides))}): leave the metric out, or evaluate where there is one"
            )


def metric_rows(metric: Metric, output: RewardOutput, identity: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an evaluation: one for each image and value, the total under the label, a component as `label.name`."""
    rows = []
    for name, column in [(metric.label, output.total), *_components(metric, output)]:
        values = column.detach().double().cpu().tolist()
        finite = torch.isfinite(column).cpu().tolist()
        for labels, value, valid in zip(identity, values, finite):
            rows.append({**labels, "metric": name, "value": value if valid else float("nan"), "valid": valid})
    return rows


def _components(metric: Metric, output: RewardOutput) -> list[tuple[str, Tensor]]:
    return [(f"{metric.label}.{name}", column) for name, column in output.components.items()]
