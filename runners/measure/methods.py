"""What an evaluation puts side by side: a policy's samples, its mean, bicubic, a folder of images, any function."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.envs.task import Context
from srgym.errors import Refusal, WrongType
from srgym.policies import FlowPolicy, Policy, derive_seeds
from srgym.policies.colour import MODES, fix_colour

__all__ = ["Bicubic", "Drawn", "Function", "Images", "Mean", "Method", "Samples", "as_method", "baselines"]


class Drawn(NamedTuple):
    """SR [B, 3, H, W] in [0, 1], and what else was made of each image, as arguments of a reward."""

    sr: Tensor
    made: Mapping[str, Any] = MappingProxyType({})


class Method(Protocol):
    """Turns contexts into SR images, one each.

    Attributes:
        random: whether another seed gives another image.
        gives: what it makes beside images, as arguments of a reward.
    """

    @property
    def random(self) -> bool: ...
    @property
    def gives(self) -> frozenset[str]: ...
    def __call__(self, context: Context, seed: int) -> Drawn:
        """What is made of a batch of contexts."""

    @property
    def record(self) -> dict[str, Any]:
        """What stands beside the numbers, as JSON values."""


@dataclass(frozen=True)
class Samples:
    """One sample of a policy for each context; its noise depends on (seed, context), not on how the batch was cut.

    Attributes:
        adapter: under which the policy runs: "ema" (the evaluation average), "default", "old", or None for its base.
        colour_fix: "none", or "adain" or "wavelet" against the upsampled LR (see `fix_colour`).
        sampling: how a policy is drawn from that isn't by steps and a solver; None: as `Policy.sampling` says.
    """

    policy: Policy
    steps: int = 6
    solver: str = "euler"
    adapter: str | None = "ema"
    colour_fix: str = "none"
    sampling: Any = None
    random = True

    def __post_init__(self) -> None:
        if self.colour_fix not in MODES:
            raise Refusal(f"colour_fix is one of {', '.join(MODES)}, got '{self.colour_fix}'")

    @torch.no_grad()
    def __call__(self, context: Context, seed: int) -> Drawn:
        seeds = derive_seeds(seed, 0, context.index, stream="evaluation")
        lr = context.lr.to(self.policy.device)
        with self.policy.adapter(self.adapter):
            obs = {"lr": lr, "prompt": context.prompt}
            rolled = self.policy.rollout(obs, self._sampling, seeds)
        sr: Tensor = rolled["sr"]
        if self.colour_fix != "none":
            reference = F.interpolate(lr, size=sr.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
            sr = fix_colour(sr, reference, self.colour_fix)
        return Drawn(sr, self.policy.made(rolled))

    @property
    def _sampling(self) -> Any:
        return self.sampling if self.sampling is not None else self.policy.sampling(self.steps, self.solver)

    @property
    def gives(self) -> frozenset[str]:
        return self.policy.gives

    @property
    def record(self) -> dict[str, Any]:
        flows = isinstance(self.policy, FlowPolicy)
        how = {"steps": self.steps, "solver": self.solver} if flows else asdict(self._sampling)
        return {
            "kind": "samples", "policy": getattr(self.policy, "name", type(self.policy).__name__), **how,
            "adapter": self.adapter, "colour_fix": self.colour_fix,
        }  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A policy's predicted mean image: the most accurate, and too smooth."""

    policy: Any  # a `CompactPolicy`, or another with `predict_mean`
    random = False
    gives = frozenset[str]()

    @torch.no_grad()
    def __call__(self, context: Context, seed: int) -> Drawn:
        return Drawn(self.policy.predict_mean(context.lr))

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "mean prediction", "colour_fix": "none"}


@dataclass(frozen=True)
class Bicubic:
    """Bicubic interpolation by `scale`."""

    scale: int
    random = False
    gives = frozenset[str]()

    def __call__(self, context: Context, seed: int) -> Drawn:
        if self.scale == 1:
            return Drawn(context.lr.clamp(0, 1))
        size = [side * self.scale for side in context.lr.shape[-2:]]
        return Drawn(F.interpolate(context.lr, size=size, mode="bicubic", align_corners=False).clamp(0, 1))

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
    gives = frozenset[str]()

    def __call__(self, context: Context, seed: int) -> Drawn:
        return Drawn(torch.stack([self.read(self.paths[name]) for name in context.ids]))

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "folder of images", "images": len(self.paths), "colour_fix": self.colour_fix}


@dataclass(frozen=True)
class Function:
    """Any function of LR [B, 3, h, w] to SR [B, 3, H, W]."""

    function: Callable[[Tensor], Tensor]
    random = False
    gives = frozenset[str]()

    @torch.no_grad()
    def __call__(self, context: Context, seed: int) -> Drawn:
        return Drawn(self.function(context.lr))

    @property
    def record(self) -> dict[str, Any]:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return {"kind": "function", "function": name, "colour_fix": "unknown"}


def as_method(
    source: "Method | Policy | Callable[[Tensor], Tensor]",
    *,
    steps: int = 6,
    solver: str = "euler",
    adapter: str | None = "ema",
) -> Method:
    """A method from a method, a policy (its samples), or a function of LR.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(source, Policy):
        return Samples(source, steps, solver, adapter)
    if hasattr(source, "random") and hasattr(source, "record"):
        return cast(Method, source)
    if callable(source):
        return Function(source)
    raise WrongType(f"expected a policy, or a function from LR to SR images, got {source!r}")


def baselines(policy: Policy, steps: int = 6, few: int = 3, adapter: str | None = "ema") -> dict[str, Method]:
    """What costs no reinforcement learning: bicubic, the mean prediction where the policy has one, and fewer steps.

    A step or a few make a smoother image than the sampler's full number, which many metrics reward.
    """
    methods: dict[str, Method] = {"bicubic": Bicubic(policy.scale)}
    if hasattr(policy, "predict_mean"):
        methods["mean prediction"] = Mean(policy)
    for number in sorted({1, few} - {steps}) if isinstance(policy, FlowPolicy) else ():
        if number < steps:
            methods[f"{number} step{'s' if number > 1 else ''}"] = Samples(policy, number, adapter=adapter)
    return methods
