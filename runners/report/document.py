"""What a report consists of, whatever it is written as: headings, text, verdicts, tables, figures, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from srgym.errors import Refusal

__all__ = ["Block", "Callout", "Document", "Figure", "Figures", "Heading", "Panel", "Panels", "Table", "Text"]


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` and **bold** are marked as in Markdown."""

    text: str


@dataclass(frozen=True)
class Callout:
    """A verdict or an alert, which must not be overlooked; `tag` heads it, by default what its kind is called."""

    kind: Literal["good", "bad", "warning", "neutral"]
    text: str
    tag: str = ""

    @property
    def heading(self) -> str:
        called = {"good": "Holds", "bad": "Does not hold", "warning": "Alert", "neutral": "Note"}
        return self.tag or called[self.kind]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row, the others are numbers.

    Attributes:
        strong: rows that stand out, by number.
        words: whether the other columns hold words, which are set to the left and broken into lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: frozenset[int] = frozenset()
    words: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise Refusal(f"expected {len(self.columns)} cells in a row of '{self.caption}', got {len(row)}")


@dataclass(frozen=True)
class Figure:
    """A plot as PNG bytes, on light and on dark paper."""

    light: bytes
    dark: bytes
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Figures that are read together, beside each other where there is room."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Panel:
    """One picture, PNG bytes, at its full size."""

    label: str
    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Panels:
    """Rows of pictures of the same contexts: (title, panels)."""

    rows: Sequence[tuple[str, Sequence[Panel]]]
    caption: str = ""


Block = Heading | Text | Callout | Table | Figures | Panels


@dataclass
class Document:
    """A report."""

    title: str
    subtitle: str = ""
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks
