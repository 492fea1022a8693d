"""RealSR-R1's reward: R = R_format + R_degradation + R_understanding + R_generation."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.base import Incompatible, RewardOutput
from srgym.rewards.later import Later, gathered, then
from srgym.rewards.realsr_r1.degradation import degradation_reward
from srgym.rewards.realsr_r1.format import format_reward, section
from srgym.rewards.realsr_r1.generation import Judge
from srgym.rewards.realsr_r1.understanding import MATCHES, read_synonyms, understanding_reward
from srgym.rewards.registry import make, register_reward

__all__ = ["COMPONENTS", "MIXES", "RealSRR1"]

COMPONENTS = ("format", "degradation", "understanding", "generation")

MIXES: dict[str, dict[str, Any]] = {
    "full_reference": {"sum": {"psnr_y": 0.01, "ssim_y": 0.5, "lpips": 0.5}},
    "no_reference": {"sum": {"musiq": 0.01, "maniqa": 0.5, "clipiqa": 0.5}},
}
"""The metrics that may take the judge's place. The paper doesn't print its weights; these bring all to one size."""


@register_reward(
    "realsr_r1",
    group=True,
    range=(0.0, 4.0),
    weights="a judge served by `srgym serve judge --model PATH`; none for metrics that need none",
    purpose="perceptual",
)
class RealSRR1:
    """RealSR-R1: a text's format, its account of degradation and content, and a judge of the image, summed.

    Components: `format`, `degradation`, `understanding` and `generation`, each in [0, 1] with the judge. One that has
    nothing to look at is absent (NaN) and adds nothing: the first three without a text, `degradation` without a record
    (a real LR image), `understanding` without tags. Without `generation` a row is invalid.

    Args:
        generation: the judge, "judge" or `{"name": "judge", **options of Judge}`; or metrics in its place:
            "full_reference", "no_reference", or any reward that `make` knows.
        weights: by component, 1 where not given.
        reference: show the judge the LR image too, which it then needs.
        match: how tags are found in the text: "word", or "substring" as in the released code.
        synonyms: a JSON file of other words for tags (see `read_synonyms`).
        steps: the weight of the intermediate images (coarse, middle, where given) in `generation`, the final one's
            being 1.

    Raises:
        ValueError: for an unknown component or match, or a negative weight.
        Incompatible: for intermediate images under metrics that compare with ground truth of the final size.
    """

    def __init__(
        self,
        generation: Any = "judge",
        weights: Mapping[str, float] | None = None,
        reference: bool = True,
        match: str = "word",
        synonyms: str | Path | None = None,
        steps: float = 0.0,
    ) -> None:
        unknown = sorted(set(weights or {}) - set(COMPONENTS))
        if unknown:
            raise Refusal(f"realsr_r1: expected weights of {', '.join(COMPONENTS)}, got one of '{unknown[0]}'")
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in COMPONENTS}
        if min(self.weights.values()) < 0 or steps < 0:
            raise Refusal(f"realsr_r1: expected weights of 0 or more, got {self.weights} and steps {steps}")
        if match not in MATCHES:
            raise Refusal(f"realsr_r1: expected a match of {', '.join(MATCHES)}, got '{match}'")
        self.match, self.steps, self.reference = match, float(steps), reference
        self.synonyms = read_synonyms(synonyms) if synonyms is not None else {}
        self.judge, self.metrics = _generation(generation)
        if self.metrics is not None and "hr" in self.metrics.needs and steps:
            raise Incompatible(
                f"'{self.metrics.name}' compares with ground truth, which intermediate images don't have the size of: "
                "leave steps at 0, or take the judge or no-reference metrics"
            )
        self.needs = self.metrics.needs if self.metrics is not None else frozenset({"lr"} if reference else ())
        self.group = self.metrics.group if self.metrics is not None else True
        low, high = self.metrics.range if self.metrics is not None else (0.0, 1.0)
        low, high = (end * self.weights["generation"] if self.weights["generation"] else 0.0 for end in (low, high))
        self.range = (low, high + sum(self.weights[name] for name in COMPONENTS[:3]))

    def __call__(
        self,
        sr: Tensor,
        lr: Tensor | None = None,
        hr: Tensor | None = None,
        text: Sequence[str | None] | None = None,
        degradation: Sequence[Mapping[str, Any] | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        group: Tensor | None = None,
        intermediate: Sequence[Tensor] | None = None,
    ) -> Later[dict[str, Tensor]]:
        """SR [B, 3, H, W] and context to `total` and the components, all [B].

        Args:
            text: what the policy wrote for each image, with its tags; None where it wrote nothing.
            degradation: each image's record. tags: each LR image's main objects.
            intermediate: batches of images [B, 3, h', w'] on the way to SR.
        """
        parts = self._of_text(len(sr), text, degradation, tags)
        columns = {name: torch.tensor(part, device=sr.device) for name, part in parts.items()}
        generated = self._generated(sr, lr, hr, group, intermediate if self.steps else None)
        return then(generated, lambda generated: self._summed(columns, generated))

    def _summed(self, written: Mapping[str, Tensor], generated: Mapping[str, Tensor]) -> dict[str, Tensor]:
        columns = {**written, "generation": generated["total"]}
        present = [self.weights[name] * columns[name].nan_to_num() for name in COMPONENTS[:3]]
        total = torch.stack(present).sum(0) + self.weights["generation"] * columns["generation"]
        beside = {f"generation/{name}": part for name, part in generated.items() if name != "total"}
        return {"total": total, **columns, **beside}

    def _of_text(self, count: int, text: Any, degradation: Any, tags: Any) -> dict[str, list[float]]:
        parts: dict[str, list[float]] = {name: [math.nan] * count for name in COMPONENTS[:3]}
        for i, written in enumerate(text if text is not None else []):
            if written is None:
                continue
            parts["format"][i] = format_reward(written)
            record = degradation[i] if degradation is not None else None
            if record is not None:
                parts["degradation"][i] = degradation_reward(section(written, "degradation") or "", record)
            coarse = section(written, "rough_understand") or ""
            seen = tags[i] if tags is not None else []
            share = understanding_reward(coarse, seen, match=self.match, synonyms=self.synonyms)
            parts["understanding"][i] = math.nan if share is None else share
        return parts

    def _generated(
        self, sr: Tensor, lr: Tensor | None, hr: Tensor | None, group: Tensor | None, steps: Sequence[Tensor] | None
    ) -> Later[dict[str, Tensor]]:
        images = {"final": self._image(sr, lr, hr, group)}
        images |= {str(i): self._image(image, lr, None, group) for i, image in enumerate(steps or ())}
        return then(gathered(images), self._weighed)

    def _weighed(self, images: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        final = images.pop("final")
        if not images:
            return final
        before = torch.stack([image["total"] for image in images.values()]).mean(0)
        return {**final, "total": (final["total"] + self.steps * before) / (1 + self.steps), "steps": before}

    def _image(
        self, sr: Tensor, lr: Tensor | None, hr: Tensor | None, group: Tensor | None
    ) -> Later[dict[str, Tensor]]:
        if self.metrics is not None:
            scored: Later[RewardOutput] = self.metrics.begin(sr, lr=lr, hr=hr, group=group)
            return then(scored, lambda scored: {**scored.components, "total": scored.total})
        assert self.judge is not None
        # Without groups every image is judged alone.
        group = torch.arange(len(sr)) if group is None else group
        return self.judge(sr, group, lr if self.reference else None)


def _generation(spec: Any) -> tuple[Callable[..., Later[dict[str, Tensor]]] | None, Any]:
    """(a judge, None) or (None, a reward of metrics)."""
    if isinstance(spec, Judge):
        return spec, None
    if spec == "judge":
        return Judge(), None
    if isinstance(spec, Mapping) and spec.get("name") == "judge":
        return Judge(**{str(key): value for key, value in spec.items() if key != "name"}), None
    return None, make(MIXES.get(spec, spec) if isinstance(spec, str) else spec)
