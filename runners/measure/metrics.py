"""What an evaluation measures: rewards under a label, with what must be recorded beside their numbers."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srgym.rewards import Incompatible, Reward, RewardOutput, make

__all__ = ["DEFAULT_METRICS", "Metric", "check_metrics", "make_metrics", "metric_rows", "psnr_chroma"]

DEFAULT_METRICS = ("psnr_y", "ssim_y")

_LEAST_MSE = 1e-10  # 100 dB, as in psnr_y


def psnr_chroma(sr: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio on the two colour differences (Cb and Cr of BT.601, full swing), in dB.

    Images [B, 3, H, W] in [0, 1] to [B]; peak 1, no crop, capped at 100 dB. It falls when a sample speckles in colour,
    which `psnr_y` can't see.
    """
    difference = sr - hr
    red, green, blue = difference.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    return -10.0 * chroma.square().mean((1, 2, 3)).clamp_min(_LEAST_MSE).log10()


@dataclass(frozen=True)
class Metric:
    """A reward that is measured and not trained on.

    Attributes:
        label: its name in tables.
        reward: what computes it; higher is better.
        unit: "dB", or "" for a score without one.
        variant: which of the metric's variants this is, for the record.
        colour_space: what of the image it looks at.
    """

    label: str
    reward: Reward
    unit: str
    variant: str
    colour_space: str

    @property
    def record(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        return {
            "reward": self.reward.name, "unit": self.unit, "variant": self.variant, "direction": "higher is better",
            "colour_space": self.colour_space, "range": [str(bound) for bound in self.reward.range],
            "weights": self.reward.weights, "licence": self.reward.licence,
        }  # fmt: skip


# What a reward doesn't say itself.
_UNITS = {"psnr_y": "dB", "psnr_chroma": "dB"}
_COLOURS = {
    **dict.fromkeys(("psnr_y", "ssim_y", "ms_ssim"), "Y of BT.601, studio swing"),
    "psnr_chroma": "CbCr of BT.601, full swing", "niqe": "Y of YCbCr",
    "appearance": "Y, B - Y and R - Y of BT.601, full swing",
}  # fmt: skip
_VARIANTS = {
    "psnr_chroma": "peak 1, no crop, capped at 100 dB",
    "appearance": "windows of 16 pixels, 3 octaves of luma and 2 of colour",
}


def _appearance(sr: Tensor, hr: Tensor) -> Tensor:
    """As much detail of each scale in each place as the ground truth has (see `srgym.rewards.appearance`)."""
    from srgym.rewards.appearance import appearance

    return appearance(sr, hr)


_OWN = {"psnr_chroma": psnr_chroma, "appearance": _appearance}


def make_metrics(specs: Sequence[Any] | Mapping[str, Any]) -> list[Metric]:
    """Metrics from reward specifications (see `srgym.rewards.make`): a list, or a mapping of labels to them.

    A mapping in a list may carry its `label`. `psnr_chroma` and `appearance` are known here beside the rewards.

    Raises:
        ValueError: for an unknown name, or a label given twice.
    """
    pairs = list(specs.items()) if isinstance(specs, Mapping) else [(None, spec) for spec in specs]
    if not pairs:
        raise ValueError("an evaluation needs at least one metric, got none")
    metrics: list[Metric] = []
    for label, spec in pairs:
        metric = _make(label, spec)
        if any(other.label == metric.label for other in metrics):
            raise ValueError(f"two metrics are labelled '{metric.label}': give one of them another label")
        metrics.append(metric)
    return metrics


def _make(label: str | None, spec: Any) -> Metric:
    if isinstance(spec, Metric):
        return spec
    options: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        options = {key: value for key, value in spec.items() if key != "label"}
        label = label or spec.get("label")
    name = options.get("name", spec)
    own = isinstance(name, str) and name in _OWN
    reward = make(_OWN[name]) if own else make(options or spec)
    called = str(name) if own else reward.name
    given = {key: value for key, value in options.items() if key != "name"}
    variant = _VARIANTS.get(called) or reward.variant or reward.doc
    if given:
        variant = f"{variant}; {json.dumps(given, default=str)}"
    return Metric(label or called, reward, _UNITS.get(called, ""), variant, _COLOURS.get(called, "RGB"))


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
        for one, value, valid in zip(identity, values, finite):
            rows.append({**one, "metric": name, "value": value if valid else float("nan"), "valid": valid})
    return rows


def _components(metric: Metric, output: RewardOutput) -> list[tuple[str, Tensor]]:
    return [(f"{metric.label}.{name}", column) for name, column in output.components.items()]
