"""What every setting means: read from docstrings of constructors and from the comments of configs/."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from srgym import agents, envs, policies, rewards, runners
from srgym.settings import leaves, parameters

CONFIGS = Path(__file__).parent.parent / "configs"

_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", re.MULTILINE)
_SEE = re.compile(r"[Ss]ee `(?:srgym\.)?([\w.]+)`")


def described(maker: Callable[..., Any]) -> dict[str, str]:
    """Each name that a docstring's `Args:` or `Attributes:` describe, and what they say of it."""
    text = "".join(match + "\n" for match in _SECTION.findall(inspect.getdoc(maker) or ""))
    known = {*parameters(maker)[0], *getattr(maker, "__annotations__", {})}
    listed = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    if not listed:
        return {}
    # An entry begins a line, or follows the sentence of the one before: "power: p. clip: c."
    entry = re.compile(rf"(?:^\s*|(?<=[.;]) )((?:(?:{listed}),?\s+)*(?:{listed})):\s", re.MULTILINE)
    heads = list(entry.finditer(text))
    ends = [*(head.start() for head in heads), len(text)][1:]
    return {
        name: " ".join(text[head.end() : end].split())
        for head, end in zip(heads, ends, strict=True)
        for name in re.split(r",?\s+", head.group(1).strip())
    }


def meaning(maker: Callable[..., Any], name: str) -> str:
    """What a parameter means, by the nearest class that says it; "see `Other`" is followed. "" where nobody does."""
    referred = ""
    for kind in maker.__mro__[:-1] if isinstance(maker, type) else (maker,):
        said = described(kind).get(name, "")
        pointer = _SEE.match(said)
        if said and pointer is None:
            return said
        target = _named(pointer.group(1), kind) if pointer else None
        followed = meaning(target, name) if target is not None and target is not maker else ""
        if followed:
            return followed
        referred = referred or said
    return referred


def _named(name: str, near: Any) -> Any:
    """The class or function that a docstring names, from its module or from the packages."""
    for place in (sys.modules[near.__module__], agents, envs, policies, rewards, runners):
        found = getattr(place, name.rpartition(".")[2], None)
        if found is not None:
            return found
    return None


@cache
def comments(path: Path) -> dict[str, str]:
    """The comment beside every key of a YAML file, or the ones above it, under its dotted key."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines()[_header(path) :]:
        key = re.match(r"^( *)([\w]+):", line)
        beside = re.search(r"\s# (.*)$", line)
        if key is None:
            own = re.match(r"^ *# (.*)$", line)
            above = [*above, own.group(1)] if own else []
            continue
        depth = len(key.group(1))
        parents = [(d, name) for d, name in parents if d < depth]
        said = beside.group(1) if beside else " ".join(above)
        if said:
            found[".".join([*(name for _, name in parents), key.group(2)])] = said
        parents.append((depth, key.group(2)))
        above = []
    return found


def header(path: Path) -> str:
    """What a YAML file says of itself in its first lines."""
    lines = path.read_text(encoding="utf-8").splitlines()[: _header(path)]
    return " ".join(line.lstrip("# ") for line in lines if "@package" not in line)


def _header(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))


def yaml_keys(path: Path) -> Iterator[tuple[str, Any]]:
    """Every key of a YAML file with its value, sections first."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    tree.pop("defaults", None)
    yield from leaves(tree)
