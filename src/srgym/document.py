"""The form of a reasoned super-resolution (RealSR-R1): seven sections, each in its tags, in one order."""

import re

__all__ = ["IMAGES", "PICTURE", "SECTIONS", "TEXTS", "section", "write"]

SECTIONS = (
    "degradation",
    "rough_understand",
    "rough_image",
    "middle_understand",
    "middle_image",
    "final_understand",
    "final_image",
)
TEXTS = tuple(name for name in SECTIONS if not name.endswith("_image"))
IMAGES = tuple(name for name in SECTIONS if name.endswith("_image"))
PICTURE = "<|image|>"
"""What stands in a text for an image."""

TAG = rf"</?(?:{'|'.join(SECTIONS)})>"
CONTENT = rf"(?:(?!{TAG}).)*"
"""A section holds anything but another of these tags: one that is opened twice or never closed isn't in the form."""


def section(text: str, name: str) -> str | None:
    """What the first complete section of this name holds; None where there's none."""
    content = re.search(rf"<{name}>({CONTENT})</{name}>", text, re.DOTALL)
    return content.group(1).strip() if content else None


def write(texts: dict[str, str]) -> str:
    """The whole document, from its four texts by section."""
    return "\n".join(f"<{name}>{texts.get(name, PICTURE)}</{name}>" for name in SECTIONS)
