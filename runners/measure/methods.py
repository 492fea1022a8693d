"""What an evaluation puts side by side: a policy's samples, its mean, bicubic, a folder of images, any function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.policies import FlowPolicy, Sampling, derive_seeds
from srgym.policies.colour import MODES, fix_colour

__all__ = ["Bicubic", "Function", "Images", "Mean", "Method", "Samples", "as_method", "baselines"]


class Method(Protocol):
    """Turns contexts into SR images, one each. `random` says whether another seed gives another image."""

    random: bool

    def __call__(self, context: Any, seed: int) -> Tensor:
        """A context of B images to SR [B, 3, H, W] in [0, 1]."""

    @property
    def record(self) -> dict[str, Any]:
        """What stands beside the numbers, as JSON values."""


@dataclass(frozen=True)
class Samples:
    """One sample of a policy for each context; its noise depends on (seed, context), not on how the batch was cut.

    Attributes:
        adapter: under which the policy runs: "ema" (the evaluation average), "default", "old", or None for its base.
        colour_fix: "none", or "adain" or "wavelet" against the upsampled LR (see `fix_colour`).
    """

    policy: FlowPolicy
    steps: int = 6
    solver: str = "euler"
    adapter: str | None = "ema"
    colour_fix: str = "none"
    random = True

    def __post_init__(self) -> None:
        if self.colour_fix not in MODES:
            raise ValueError(f"colour_fix is one of {', '.join(MODES)}, got '{self.colour_fix}'")

    @torch.no_grad()
    def __call__(self, context: Any, seed: int) -> Tensor:
        seeds = derive_seeds(seed, 0, context.index, stream="evaluation")
        obs = {"lr": context.lr.to(self.policy.device), "prompt": context.prompt}
        with self.policy.adapter(self.adapter):
            sr: Tensor = self.policy.rollout(obs, Sampling(steps=self.steps, solver=self.solver), seeds)["sr"]
        if self.colour_fix == "none":
            return sr
        reference = F.interpolate(obs["lr"], size=sr.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        return fix_colour(sr, reference, self.colour_fix)

    @property
    def record(self) -> dict[str, Any]:
        return {
            "kind": "samples", "policy": getattr(self.policy, "name", type(self.policy).__name__),
            "steps": self.steps, "solver": self.solver, "adapter": self.adapter,
            "colour_fix": self.colour_fix,
        }  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A policy's predicted mean image: the most accurate, and too smooth."""

    policy: Any
    random = False

    @torch.no_grad()
    def __call__(self, context: Any, seed: int) -> Tensor:
        sr: Tensor = self.policy.predict_mean(context.lr)
        return sr

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "mean prediction", "colour_fix": "none"}


@dataclass(frozen=True)
class Bicubic:
    """Bicubic interpolation by `scale`."""

    scale: int
    random = False

    def __call__(self, context: Any, seed: int) -> Tensor:
        if self.scale == 1:
            return context.lr.clamp(0, 1)  # type: ignore[no-any-return]
        size = [side * self.scale for side in context.lr.shape[-2:]]
        return F.interpolate(context.lr, size=size, mode="bicubic", align_corners=False).clamp(0, 1)

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "bicubic", "scale": self.scale, "colour_fix": "none"}


@dataclass(frozen=True)
class Images:
    """Images that something else made, by the contexts' ids.

    Attributes:
        paths: id to file. read: file to [3, H, W] in [0, 1].
        colour_fix: what was done to them, as far as is known.
    """

    paths: Mapping[str, Path]
    read: Callable[[Path], Tensor]
    colour_fix: str = "unknown"
    random = False

    def __call__(self, context: Any, seed: int) -> Tensor:
        return torch.stack([self.read(self.paths[name]) for name in context.ids])

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "folder of images", "images": len(self.paths), "colour_fix": self.colour_fix}


@dataclass(frozen=True)
class Function:
    """Any function of LR [B, 3, h, w] to SR [B, 3, H, W]."""

    function: Callable[[Tensor], Tensor]
    random = False

    @torch.no_grad()
    def __call__(self, context: Any, seed: int) -> Tensor:
        return self.function(context.lr)

    @property
    def record(self) -> dict[str, Any]:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return {"kind": "function", "function": name, "colour_fix": "unknown"}


def as_method(given: Any, *, steps: int = 6, solver: str = "euler", adapter: str | None = "ema") -> Method:
    """A method from a method, a policy (its samples), or a function of LR.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(given, FlowPolicy):
        return Samples(given, steps, solver, adapter)
    if hasattr(given, "random") and hasattr(given, "record"):
        return given  # type: ignore[no-any-return]
    if callable(given):
        return Function(given)
    raise TypeError(f"expected a policy, or a function from LR to SR images, got {given!r}")


def baselines(policy: FlowPolicy, steps: int = 6, few: int = 3, adapter: str | None = "ema") -> dict[str, Method]:
    """What costs no reinforcement learning: bicubic, the mean prediction where the policy has one, and fewer steps.

    A step or a few make a smoother image than the sampler's full number, which many metrics reward.
    """
    found: dict[str, Method] = {"bicubic": Bicubic(policy.scale)}
    if hasattr(policy, "predict_mean"):
        found["mean prediction"] = Mean(policy)
    for number in sorted({1, few} - {steps}):
        if number < steps:
            found[f"{number} step{'s' if number > 1 else ''}"] = Samples(policy, number, adapter=adapter)
    return found
