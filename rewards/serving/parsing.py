"""Reading scores out of a model's answer: strictly, or not at all."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from srgym.errors import Refusal
from srgym.rewards.serving.question import BadAnswer, Reply

__all__ = ["find_object", "parse_object", "parse_scores", "score_pattern", "score_reply"]

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)

LONGEST = 65_536
"""Characters of an answer that are looked at; no honest answer comes near."""


def parse_scores(text: str, fields: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The scores of an answer.

    The last <answer>...</answer> is read, else the whole text; in it the first balanced {...} must be JSON.

    Args:
        text: the answer.
        fields: what must be there: name to (lowest, highest), both allowed.

    Returns:
        name to value, for exactly `fields`; other keys of the answer are left alone.

    Raises:
        BadAnswer: and nothing else, when a key is missing or given twice, or a value isn't a finite number in its
            range. Nothing is clipped.
    """
    values = parse_object(text)
    return {name: _number(name, values, low, high) for name, (low, high) in fields.items()}


def score_reply(reply: Reply, fields: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The scores of a reply, which may have been stopped in the middle of its JSON, behind the scores.

    Only a reply that a stop string ended is completed; one that ran into the token limit may end inside a number.
    """
    text = reply.text
    if reply.stopped:
        text = text.rstrip().removesuffix(",") + "}"
    return parse_scores(text, fields)


def score_pattern(fields: Mapping[str, tuple[float, float]]) -> str:
    """A regular expression for {"name":d.dd,...}: exactly the fields, in order, in range, with two decimals.

    Raises:
        ValueError: for ranges that don't start and end at whole digits from 0 to 9.
    """
    parts = []
    for name, (low, high) in fields.items():
        if low != int(low) or high != int(high) or not 0 <= low < high <= 9:
            raise Refusal(f"a pattern for '{name}' needs a range between whole digits from 0 to 9, got [{low}, {high}]")
        parts.append(rf'"{name}":([{int(low)}-{int(high) - 1}]\.[0-9][0-9]|{int(high)}\.00)')
    return r"\{" + ",".join(parts) + r"\}"


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of an answer: in its last <answer>...</answer>, else anywhere.

    Raises:
        BadAnswer: if there's none, it isn't JSON, names a key twice or holds NaN or an infinity.
    """
    json_text = find_object(_answer(text[:LONGEST]))
    try:
        values = json.loads(json_text, parse_constant=_constant, object_pairs_hook=_unique)
    except BadAnswer:
        raise
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"expected JSON, got {_quote(json_text)}") from error
    if not isinstance(values, dict):
        raise BadAnswer(f"expected a JSON object, got {_quote(json_text)}")
    return values


def _answer(text: str) -> str:
    """What stands in the last <answer>...</answer>; all of it where there's none; in one pass."""
    opened, inside = None, text
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag.end()
        elif opened is not None:
            inside, opened = text[opened : tag.start()], None
    return inside


def find_object(text: str) -> str:
    """The first balanced {...} of a text, braces inside its strings not counted.

    Raises:
        BadAnswer: if there's none.
    """
    opened: list[int] = []
    closed: list[tuple[int, int]] = []
    quoted = escaped = False
    for i, letter in enumerate(text):
        if quoted:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == '"':
                quoted = False
        elif letter == "{":
            opened.append(i)
        elif opened and letter == '"':
            quoted = True
        elif opened and letter == "}":
            closed.append((opened.pop(), i + 1))
            if not opened:
                break
    if not closed:
        raise BadAnswer(f"expected a JSON object, got {_quote(text)}")
    start, end = min(closed)
    return text[start:end]


def _number(name: str, values: Mapping[str, Any], low: float, high: float) -> float:
    if name not in values:
        raise BadAnswer(f"expected a score '{name}', got {_quote(', '.join(map(str, values)) or 'none')}")
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"expected a number as '{name}', got {_quote(repr(value))}")
    # Compared before conversion: an integer may be too large for a float.
    if not low <= value <= high or not math.isfinite(value):
        raise BadAnswer(f"expected '{name}' in [{low}, {high}], got {_quote(repr(value))}")
    return float(value)


def _constant(name: str) -> NoReturn:
    raise BadAnswer(f"expected finite numbers, got {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise BadAnswer(f"expected every key once, got {_quote(', '.join(key for key, _ in pairs))}")
    return values


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
