"""What rates a pair (LR, SR) for COMPASS: one interface, and the scorers by name."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["SCORERS", "Scorer", "make_scorer"]

# What builds a scorer, imported when asked for: a multimodal model's libraries take seconds to import.
SCORERS = {
    "compact": "srgym.rewards.compass.compact:load",
    "mllm": "srgym.rewards.compass.mllm:MLLMScorer",
    "soft": "srgym.rewards.compass.mllm:SoftScorer",
}


class Scorer(Protocol):
    """Rates pairs of images.

    A scorer is differentiable in SR if it says so by an attribute `differentiable`, or is a torch module.
    """

    def __call__(self, lr: Tensor, sr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LR [B, 3, h, w] and SR [B, 3, H, W] to F in [0, 1], Q_LR in [1, 5], Q_SR in [1, 5] and valid, all [B].

        A row that couldn't be rated has `valid` False; its numbers are not looked at, nor is Q_LR taken from it.
        """


def make_scorer(spec: "str | Mapping[str, Any] | Scorer") -> Scorer:
    """A scorer by name, by `module:object`, as `{"name": ..., **options}`, or one that is already made.

    Raises:
        ValueError: for an unknown name, with the nearest right one.
    """
    if isinstance(spec, str):
        return _factory(spec)()
    if isinstance(spec, Mapping):
        options = dict(spec)
        if "name" not in options:
            raise ValueError(f"expected a scorer as {{'name': ...}}, got the keys {', '.join(map(repr, options))}")
        return _factory(options.pop("name"))(**options)
    return spec


def gradient_reaches(scorer: Scorer) -> bool:
    """Whether the scorer's F and Q_SR are differentiable in SR."""
    return bool(getattr(scorer, "differentiable", isinstance(scorer, nn.Module)))


def _factory(name: str) -> Callable[..., Scorer]:
    path = SCORERS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        near = get_close_matches(name, SCORERS, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"unknown scorer '{name}': {hint}expected one of {', '.join(SCORERS)}, or 'package.module:object'"
        )
    found: Callable[..., Scorer] = getattr(import_module(module), attribute)
    return found
