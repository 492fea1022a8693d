"""A document as Markdown, its pictures as files beside it."""

import re

from srgym.runners.report.document import Block, Callout, Document, Figure, Heading, Panels, Table, Text
from srgym.runners.report.panels import strip

__all__ = ["to_markdown"]


def to_markdown(document: Document, pictures_in: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the pictures it shows: path (inside the folder `pictures_in`) to PNG bytes."""
    pictures: dict[str, bytes] = {}
    parts = [f"# {_plain(document.title)}"]
    if document.subtitle:
        parts.append(_line(document.subtitle))
    for block in document.blocks:
        parts.append(_block(block, pictures_in, pictures))
    return "\n\n".join(parts) + "\n", pictures


def _block(block: Block, folder: str, pictures: dict[str, bytes]) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return _line(block.text)
        case Callout():
            return f"> **{_plain(block.heading)}.** {_line(block.text)}"
        case Table():
            return _table(block)
        case Panels():
            return _panels(block, folder, pictures)
        case _:
            return "\n\n".join(_figure(figure, folder, pictures) for figure in block.figures)


def _plain(text: str) -> str:
    """A name that may hold anything, such as a file's, as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _line(text: str) -> str:
    """Text with marks of ours and perhaps a name in it: on one line, and without tags."""
    return " ".join(text.splitlines()).replace("<", "&lt;")


def _table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    rows = [
        line([f"**{cell}**" if i in table.strong and cell else cell for cell in row])
        for i, row in enumerate(table.rows)
    ]
    ruler = line(["---", *["---" if table.words else "---:"] * (len(table.columns) - 1)])
    text = "\n".join([line(list(table.columns)), ruler, *rows])
    return f"{text}\n\n*{_line(table.caption)}*" if table.caption else text


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
    title = _plain(figure.title)
    return f"![{title}]({path})\n\n*{title}. {_line(figure.caption)}*".replace(". *", ".*")


def _panels(block: Panels, folder: str, pictures: dict[str, bytes]) -> str:
    parts = []
    for title, panels in block.rows:
        path = _store(strip(panels), f"panel {title}", folder, pictures)
        named, labels = _plain(title), ", ".join(_plain(panel.label) for panel in panels)
        parts.append(f"**{named}**: {labels}\n\n![{named}]({path})")
    if block.caption:
        parts.append(f"*{_line(block.caption)}*")
    return "\n\n".join(parts)
