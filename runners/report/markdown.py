"""A document as Markdown, its pictures as files beside it."""

import re

from srgym.runners.report.document import Block, Callout, Document, Figure, Heading, Panels, Table, Text
from srgym.runners.report.panels import strip

__all__ = ["to_markdown"]


def to_markdown(document: Document, pictures_in: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the pictures it shows: path (inside the folder `pictures_in`) to PNG bytes."""
    pictures: dict[str, bytes] = {}
    parts = [f"# {document.title}"]
    if document.subtitle:
        parts.append(document.subtitle)
    for block in document.blocks:
        parts.append(_block(block, pictures_in, pictures))
    return "\n\n".join(parts) + "\n", pictures


def _block(block: Block, folder: str, pictures: dict[str, bytes]) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return block.text
        case Callout():
            return f"> **{block.heading}.** {block.text}"
        case Table():
            return _table(block)
        case Panels():
            return _panels(block, folder, pictures)
        case _:
            return "\n\n".join(_figure(figure, folder, pictures) for figure in block.figures)


def _table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rows = [
        line([f"**{cell}**" if i in table.strong and cell else cell for cell in row])
        for i, row in enumerate(table.rows)
    ]
    ruler = line(["---", *["---" if table.words else "---:"] * (len(table.columns) - 1)])
    text = "\n".join([line(list(table.columns)), ruler, *rows])
    return f"{text}\n\n*{table.caption}*" if table.caption else text


def _store(png: bytes, name: str, folder: str, pictures: dict[str, bytes]) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "picture"
    path, number = f"{folder}/{slug}.png", 1
    while path in pictures:
        number += 1
        path = f"{folder}/{slug}_{number}.png"
    pictures[path] = png
    return path


def _figure(figure: Figure, folder: str, pictures: dict[str, bytes]) -> str:
    path = _store(figure.light, figure.title, folder, pictures)
    return f"![{figure.title}]({path})\n\n*{figure.title}. {figure.caption}*".replace(". *", ".*")


def _panels(block: Panels, folder: str, pictures: dict[str, bytes]) -> str:
    parts = []
    for title, panels in block.rows:
        path = _store(strip(panels), f"panel {title}", folder, pictures)
        parts.append(f"**{title}**: {', '.join(panel.label for panel in panels)}\n\n![{title}]({path})")
    if block.caption:
        parts.append(f"*{block.caption}*")
    return "\n\n".join(parts)
