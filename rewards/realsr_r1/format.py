"""The form of a reasoned super-resolution: seven sections, each in its tags, in one order."""

import re

__all__ = ["SECTIONS", "format_reward", "section"]

SECTIONS = (
    "degradation",
    "rough_understand",
    "rough_image",
    "middle_understand",
    "middle_image",
    "final_understand",
    "final_image",
)

_TAG = rf"</?(?:{'|'.join(SECTIONS)})>"
# A section holds anything but another of these tags: one that is opened twice or never closed isn't in the form.
_CONTENT = rf"(?:(?!{_TAG}).)*"
_FORM = re.compile(r"\s*".join(rf"<{name}>{_CONTENT}</{name}>" for name in SECTIONS), re.DOTALL)


def format_reward(text: str) -> float:
    """1.0 if the whole text is the seven sections in order, with white space alone around them; else 0.0."""
    return float(_FORM.fullmatch(text.strip()) is not None)


def section(text: str, name: str) -> str | None:
    """What the first complete section of this name holds; None where there's none."""
    content = re.search(rf"<{name}>({_CONTENT})</{name}>", text, re.DOTALL)
    return content.group(1) if content else None
