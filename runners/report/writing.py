"""A document on disk: one HTML file, and Markdown with its pictures beside it."""

from pathlib import Path

from srgym.files import write_whole
from srgym.runners.report.document import Document
from srgym.runners.report.html import to_html
from srgym.runners.report.markdown import to_markdown

__all__ = ["write"]


def write(document: Document, folder: Path, name: str = "report") -> Path:
    """Write `name.html`, which needs no other file, and `name.md` with its pictures in `name_files/`.

    Returns:
        The path of the HTML.
    """
    text, pictures = to_markdown(document, f"{name}_files")
    for path, png in pictures.items():
        write_whole(folder / path, png)
    write_whole(folder / f"{name}.md", text.encode())
    page = folder / f"{name}.html"
    write_whole(page, to_html(document).encode())
    return page
