"""Where contexts come from: a `Source` is a fixed list of samples, each drawn again the same at every visit."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from srgym.errors import Refusal
from srgym.registry import Registry, Spec, class_of, quoted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SOURCES", "Sample", "Source", "SourceInfo", "available", "listing", "make", "make_source"]


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
        return SOURCES.name_of(type(self)).rpartition(":")[2]

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


SOURCES: Registry[type[Source]] = Registry(
    "source",
    "a subclass of srgym.envs.sources.Source",
    class_of("srgym.envs.sources:Source"),
    "srgym.envs",
    {row.name: row.path for row in BUILTIN},
)

available = SOURCES.names


def listing() -> list[dict[str, Any]]:
    """A row a source, as plain values: `name`, `path`, `provides`, `doc`, `origin`. Imports nothing heavy."""
    rows = [*BUILTIN, *(SourceInfo(name, entry.value, (), "") for name, entry in sorted(SOURCES.installed.items()))]
    return [asdict(row) | {"provides": list(row.provides), "origin": SOURCES.origin(row.name)} for row in rows]


def make(spec: Spec | Source, **options: Any) -> Source:
    """A source by name, by the dotted path `module:Class` of one's own, or by a mapping `{"name": ..., **options}`.

    Args:
        spec: a made source is returned as it is.

    Raises:
        ValueError: for an unknown name or option, with the nearest right one; for a path to something else.
    """
    if isinstance(spec, Source):
        if options:
            raise Refusal(f"the source '{spec.name}' is already made; it takes no options, got {quoted(options)}")
        return spec
    source: Source = SOURCES.make(spec, **options)
    return source


make_source = make  # as `srgym.envs` calls it, which makes more than sources
