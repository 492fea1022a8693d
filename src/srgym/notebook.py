"""How the library's objects show themselves in a notebook: tables and pictures as HTML."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from srgym.files import to_png

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHOWN", "picture", "table"]

SHOWN = 8
"""How many of a batch are shown."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table; a cell that is HTML already (see `picture`) stays so, anything else is text."""
    cells = ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in rows]
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{top}<tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


class _Html(str):
    """Text that is HTML."""


def _cell(value: object) -> str:
    return value if isinstance(value, _Html) else escape(str(value))


def picture(image: "Tensor", side: int = 128) -> str:
    """An image [3, H, W] in [0, 1] as an element that holds its PNG, its pixels sharp, its longer side so many wide."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    data = base64.b64encode(to_png(image)).decode()
    return _Html(
        f'<img src="data:image/png;base64,{data}" width="{round(width * scale)}" height="{round(height * scale)}" '
        'style="image-rendering:pixelated" alt="">'
    )
