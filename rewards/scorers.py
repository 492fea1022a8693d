"""What rates a pair (LR, SR) for COMPASS: one interface, and the scorers by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_type_hints

from torch import Tensor, nn

from srgym.errors import WrongType
from srgym.registry import Registry, Spec
from srgym.rewards.later import Later

__all__ = ["SCORERS", "Scorer", "make_scorer"]


class Scorer(Protocol):
    """Rates pairs of images.

    A scorer is differentiable in SR if it says so by an attribute `differentiable`, or is a torch module.
    """

    def __call__(self, lr: Tensor, sr: Tensor) -> Later[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """LR [B, 3, h, w] and SR [B, 3, H, W] to F in [0, 1], Q_LR in [1, 5], Q_SR in [1, 5] and valid, all [B]; or to
        a function that waits for them.

        A row that couldn't be rated has `valid` False; its numbers are not looked at, nor is Q_LR taken from it.
        """


def _rates(maker: Any) -> bool:
    """Whether this is a class of scorers, or a function that says it returns one."""
    if inspect.isfunction(maker):
        maker = get_type_hints(maker).get("return")
    if not isinstance(maker, type):
        return False
    method = getattr(maker, "forward", None) or maker.__call__
    return inspect.isfunction(method) and list(inspect.signature(method).parameters)[1:3] == ["lr", "sr"]


SCORERS: Registry[Callable[..., Scorer]] = Registry(
    "scorer",
    "a class whose instances are called with (lr, sr), or a function annotated to return one",
    _rates,
    "srgym.scorers",
    {
        "compact": "srgym.rewards.compass.compact:load",
        "mllm": "srgym.rewards.compass.mllm:MLLMScorer",
        "soft": "srgym.rewards.compass.mllm:SoftScorer",
    },
)


def make_scorer(spec: Spec | Scorer) -> Scorer:
    """A scorer by name, by `module:attribute`, as `{"name": ..., **options}`, or one that is already made.

    Raises:
        ValueError: for an unknown name or option, with the nearest right one.
    """
    if isinstance(spec, (str, Mapping)):
        return SCORERS.make(spec)  # type: ignore[no-any-return]
    if not callable(spec):
        raise WrongType(f"expected a scorer, by name, as {{'name': ...}} or made, got {spec!r:.80}")
    return spec


def gradient_reaches(scorer: Scorer) -> bool:
    """Whether the scorer's F and Q_SR are differentiable in SR."""
    return bool(getattr(scorer, "differentiable", isinstance(scorer, nn.Module)))
