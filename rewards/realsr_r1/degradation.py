"""What was done to the input, in words: from the pipeline's record to a text, back again, and how much of it is right.

Eight steps of a second-order degradation, each light, medium or heavy: a third of its range each. The ranges are
Real-ESRGAN's, whatever the preset, so that a word means the same everywhere.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from srgym.errors import Refusal

__all__ = ["LEVELS", "STEPS", "degradation_reward", "describe", "labels", "parse"]

LEVELS = ("light", "medium", "heavy")
NONE = "none"

STEPS = ("blur1", "resize1", "noise1", "jpeg1", "blur2", "resize2", "noise2", "jpeg2")
"""In the order of the pipeline."""

# From what is light to what is heavy; where the first number is the larger, low is heavy.
_RANGES = {
    "blur1": (0.2, 3.0),
    "blur2": (0.2, 1.5),
    "resize1": (1.5, 0.15),
    "resize2": (1.2, 0.3),
    "jpeg1": (95.0, 30.0),
    "jpeg2": (95.0, 30.0),
}
_NOISE = {
    "noise1": {"gaussian": (1.0, 30.0), "poisson": (0.05, 3.0)},
    "noise2": {"gaussian": (1.0, 25.0), "poisson": (0.05, 2.5)},
}
# A sinc kernel has a cut-off frequency instead of a spread.
_CUTOFF = (math.pi, math.pi / 5)

# What says how strong a step was.
_PARAMETERS = {"blur": "sigma", "resize": "factor", "jpeg": "quality"}

_ORDER = {"1": "First", "2": "Second"}
_NAMES = {"blur": "blur", "resize": "resize", "noise": "noise", "jpeg": "JPEG compression"}
_SENTENCE = re.compile(
    r"\b(first|second)\s+(blur|resize|noise|jpeg)(?:\s+compression)?\s*:\s*"
    r"(none|(?:light|medium|heavy)(?:\s+(?:gaussian|poisson))?)\b",
    re.IGNORECASE,
)


def labels(record: Mapping[str, Any]) -> dict[str, str]:
    """Each of the eight steps as a word: "none", "light", "medium" or "heavy", and for noise its kind too.

    Args:
        record: of one image, as `srgym.envs.degradation.degrade` returns it: a mapping by step, None for a step that
            was left out.
    """
    return {step: _label(step, record.get(step)) for step in STEPS}


def describe(record: Mapping[str, Any]) -> str:
    """The degradation as a text that `parse` reads back: "First blur: heavy. First resize: light. ..."."""
    words = labels(record)
    return " ".join(f"{_ORDER[step[-1]]} {_NAMES[step[:-1]]}: {words[step]}." for step in STEPS)


def parse(text: str) -> dict[str, str]:
    """The labels that a text gives, by step; a step that it leaves out, or gives more than once, isn't there."""
    answers: dict[str, list[str]] = {}
    for order, name, label in _SENTENCE.findall(text):
        step = name.lower() + ("1" if order.lower() == "first" else "2")
        answers.setdefault(step, []).append(" ".join(label.lower().split()))
    return {step: alternatives[0] for step, alternatives in answers.items() if len(alternatives) == 1}


def degradation_reward(text: str, record: Mapping[str, Any]) -> float:
    """The share of the eight steps whose label the text gives right, in [0, 1]."""
    truth, answers = labels(record), parse(text)
    return sum(answers.get(step) == truth[step] for step in STEPS) / len(STEPS)


def _label(step: str, drawn: Mapping[str, Any] | None) -> str:
    if drawn is None:
        return NONE
    if step.startswith("noise"):
        kind, strength = drawn.get("kind"), _number(step, drawn, "strength")
        if kind not in _NOISE[step]:
            raise Refusal(f"degradation record: expected {step} of kind {', '.join(_NOISE[step])}, got {drawn!r}")
        return NONE if strength <= 0 else f"{_level(strength, _NOISE[step][kind])} {kind}"
    if step.startswith("blur") and drawn.get("sigma") is None:
        return _level(_number(step, drawn, "cutoff"), _CUTOFF)
    return _level(_number(step, drawn, _PARAMETERS[step[:-1]]), _RANGES[step])


def _number(step: str, drawn: Mapping[str, Any], key: str) -> float:
    value = drawn.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(f"degradation record: expected a number as {step}'s {key}, got {drawn!r}")
    return float(value)


def _level(value: float, limits: tuple[float, float]) -> str:
    light, heavy = limits
    share = (value - light) / (heavy - light)
    return LEVELS[min(2, max(0, math.floor(3 * share)))]
