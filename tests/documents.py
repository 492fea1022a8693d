"""The lines and blocks of code that README.md and the pages of docs/ show."""

import re
from pathlib import Path

__all__ = ["README", "ROOT", "blocks", "commands", "pages", "shown"]

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code in a language; a notebook's first line that names a file to write is left out."""
    found = re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(r"\A%%writefile .*\n", "", block) for block in found]


def commands(path: Path) -> list[str]:
    """The command lines of srgym's, continued lines joined, without comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(" #")[0].strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return [line for line in lines if re.match(r"srgym [a-z]+ ", f"{line} ") and not line.endswith((":", ".", ","))]


def shown(path: Path, part: str) -> str:
    """The one block of Python in a page that holds a text."""
    (block,) = [block for block in blocks(path, "python") if part in block]
    return block
