"""Whether a text has the form of a reasoned super-resolution, see `srgym.document`."""

import re

from srgym.document import CONTENT, SECTIONS, section

__all__ = ["SECTIONS", "format_reward", "section"]

_FORM = re.compile(r"\s*".join(rf"<{name}>{CONTENT}</{name}>" for name in SECTIONS), re.DOTALL)


def format_reward(text: str) -> float:
    """1.0 if the whole text is the seven sections in order, with white space alone around them; else 0.0."""
    return float(_FORM.fullmatch(text.strip()) is not None)
