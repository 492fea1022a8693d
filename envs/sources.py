"""Where contexts come from: a `Source` is a fixed list of samples, each drawn again the same at every visit."""

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ENTRY_POINTS", "Sample", "Source", "SourceInfo", "available", "describe", "listing", "make"]

ENTRY_POINTS = "srgym.sources"


@dataclass(frozen=True)
class Sample:
    """One context.

    Attributes:
        id: "photograph/crop"; what stands before the last slash is the photograph that crops are nested in. A whole
            image of the shipped photographs has its own name alone.
        lr: float32 [3, h, w] in [0, 1].
        hr: float32 [3, h * scale, w * scale] in [0, 1], or None where there is no ground truth.
        prompt: what the image shows, or None.
        degradation: the record of how LR was made of HR, or None.
        tags: the main objects that the image shows, or None.
    """

    id: str
    lr: "Tensor"
    hr: "Tensor | None" = None
    prompt: str | None = None
    degradation: dict[str, Any] | None = None
    tags: tuple[str, ...] | None = None

    @property
    def photograph(self) -> str:
        """The image that this is a crop of."""
        return self.id.rpartition("/")[0] or self.id


class Source(ABC):
    """A finite, indexable source of samples. Several threads may ask for samples at once.

    Attributes:
        scale: how many times larger HR is.
        size: (h, w) of every LR image, or None where they differ.
        provides: which of "lr", "hr", "prompt", "degradation", "tags" its samples have.
    """

    scale: int
    size: tuple[int, int] | None
    provides: frozenset[str]

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, the same at every visit. Raises IndexError outside 0 .. len - 1."""

    @property
    def name(self) -> str:
        """What `make` knows it by, or its class's name."""
        path = f"{type(self).__module__}:{type(self).__qualname__}"
        return next((row.name for row in BUILTIN if row.path == path), type(self).__name__)

    def prompts(self) -> list[str]:
        """The different prompts of all samples. A source that knows them without reading images says so itself."""
        return sorted({self[i].prompt or "" for i in range(len(self))})


@dataclass(frozen=True)
class SourceInfo:
    """A row of the table of sources: name, `module:Class`, what its samples have, and a line about it."""

    name: str
    path: str
    provides: tuple[str, ...]
    doc: str


BUILTIN = (
    SourceInfo(
        "photographs",
        "srgym.envs.photographs:Photographs",
        ("lr", "hr", "prompt", "degradation"),
        "the photographs that scikit-image, scikit-learn and matplotlib ship",
    ),
    SourceInfo(
        "hr_folder",
        "srgym.envs.folders:HRFolder",
        ("lr", "hr", "degradation"),
        "any folder of images; LR is made by the degradation pipeline (DIV2K, LSDIR, OST)",
    ),
    SourceInfo(
        "paired_folders",
        "srgym.envs.folders:PairedFolders",
        ("lr", "hr"),
        "a folder of LR and one of HR, matched by name (RealSR, DRealSR, DIV2K-val)",
    ),
    SourceInfo(
        "lr_folder",
        "srgym.envs.folders:LRFolder",
        ("lr",),
        "LR alone, so for rewards without a reference (RealSet80, RealLQ250, RealLR200)",
    ),
)


@cache
def _installed() -> dict[str, EntryPoint]:
    """The sources that installed packages offer, by name."""
    taken = {row.name: row.path for row in BUILTIN}
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in taken:
            other = taken[entry.name]
            warnings.warn(
                f"the source '{entry.name}' of {entry.value} is hidden by {other}; name it as '{entry.value}'",
                stacklevel=2,
            )
        else:
            taken[entry.name] = entry.value
            found[entry.name] = entry
    return found


def available() -> list[str]:
    """All names that `make` knows: the library's, then those that installed packages offer."""
    return [row.name for row in BUILTIN] + sorted(_installed())


def listing() -> list[dict[str, Any]]:
    """A row a source, as plain values: `name`, `path`, `provides`, `doc`, `origin`. Imports nothing heavy."""
    rows = [
        {"name": r.name, "path": r.path, "provides": list(r.provides), "doc": r.doc, "origin": "built-in"}
        for r in BUILTIN
    ]
    for name, entry in sorted(_installed().items()):
        origin = entry.dist.name if entry.dist is not None else "installed"
        rows.append({"name": name, "path": entry.value, "provides": [], "doc": "", "origin": origin})
    return rows


def describe() -> dict[str, str]:
    """A line on each source, by name; imports nothing heavy."""
    return {row["name"]: row["doc"] or f"from {row['origin']}" for row in listing()}


def make(spec: str | Mapping[str, Any] | Source, **kwargs: Any) -> Source:
    """A source by name, by the dotted path `module:Class` of one's own, or by a mapping `{"name": ..., **arguments}`.

    Args:
        spec: a made source is returned as it is.
        kwargs: the source's own arguments.

    Raises:
        ValueError: for an unknown name or argument, with the nearest known one.
        TypeError: when the path holds no `Source`.
    """
    if isinstance(spec, Source):
        if kwargs:
            raise ValueError(f"the source '{spec.name}' is already made; it takes no arguments, got {_listed(kwargs)}")
        return spec
    if isinstance(spec, Mapping):
        options = {**spec, **kwargs}
        if not isinstance(options.get("name"), str):
            raise ValueError(f"expected a source as {{'name': ...}}, got the keys {_listed(options)}")
        return make(options.pop("name"), **options)
    if not isinstance(spec, str):
        raise TypeError(f"expected a source's name, mapping or object, got {spec!r}")
    target = _find(spec)
    _check_arguments(target, spec, kwargs)
    source = target(**kwargs)
    if not isinstance(source, Source):
        raise TypeError(f"expected '{spec}' to make a srgym.envs.sources.Source, got {type(source).__name__}")
    return source


def _find(name: str) -> Any:
    """The class or function that a name stands for."""
    paths = {row.name: row.path for row in BUILTIN} | {n: entry.value for n, entry in _installed().items()}
    path = paths.get(name, name)
    if ":" not in path:
        near = get_close_matches(name, paths, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown source '{name}': {hint}expected one of {', '.join(paths)}, or 'module:Class'")
    module, _, attribute = path.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports isn't
        raise ValueError(f"source '{path}': there is no module '{module}' to import") from error
    if not hasattr(found, attribute):
        raise ValueError(f"source '{path}': module '{module}' has no '{attribute}'")
    return getattr(found, attribute)


def _check_arguments(target: Any, name: str, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters]
    for argument in arguments:
        if argument not in known:
            near = get_close_matches(argument, known, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"source '{name}' has no argument '{argument}': {hint}it takes {_listed(known)}")
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in arguments]
    if needed:
        raise ValueError(f"source '{name}' needs {_listed(needed)}, got {_listed(arguments) or 'no arguments'}")


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
