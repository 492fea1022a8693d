"""Where contexts come from: a `Source` is a fixed list of samples, each drawn again the same at every visit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Sample", "Source", "available", "describe", "make"]


@dataclass(frozen=True)
class Sample:
    """One context.

    Attributes:
        id: "photograph/crop"; what stands before the last slash is the photograph that crops are nested in. A whole
            image has its own name alone.
        lr: float32 [3, h, w] in [0, 1].
        hr: float32 [3, h * scale, w * scale] in [0, 1], or None where there is no ground truth.
        prompt: what the image shows, or None.
        degradation: the record of how LR was made of HR, or None.
    """

    id: str
    lr: "Tensor"
    hr: "Tensor | None" = None
    prompt: str | None = None
    degradation: dict[str, Any] | None = None

    @property
    def photograph(self) -> str:
        """The image that this is a crop of."""
        return self.id.rpartition("/")[0] or self.id


class Source(ABC):
    """A finite, indexable source of samples.

    Attributes:
        scale: how many times larger HR is.
        size: (h, w) of every LR image, or None where they differ.
        provides: which of "lr", "hr", "prompt", "degradation" its samples have.
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


_SOURCES = {
    "photographs": (
        "srgym.envs.photographs:Photographs",
        "photographs that ship with libraries srgym needs; no download",
    ),
}


def available() -> list[str]:
    """The names that `make` knows."""
    return list(_SOURCES)


def describe() -> dict[str, str]:
    """A line on each source, by name; imports nothing heavy."""
    return {name: line for name, (_, line) in _SOURCES.items()}


def make(name: str, **kwargs: Any) -> Source:
    """A source by name, or by the dotted path `module:Class` of one's own.

    Args:
        kwargs: the source's own arguments.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
        TypeError: when the path holds no `Source`.
    """
    if ":" not in name and name not in _SOURCES:
        near = get_close_matches(name, _SOURCES, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"expected a source of {', '.join(_SOURCES)} or 'module:Class', got '{name}'{hint}")
    module, _, attribute = (_SOURCES[name][0] if name in _SOURCES else name).partition(":")
    source = getattr(import_module(module), attribute)(**kwargs)
    if not isinstance(source, Source):
        raise TypeError(f"expected '{name}' to make a srgym.envs.sources.Source, got {type(source).__name__}")
    return source
