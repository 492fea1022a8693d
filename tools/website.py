"""Hooks of MkDocs: pages that are made and not written, links that hold on the site too, formulae as MathML.

Pages of docs/ read well as files of the repository; what has to change for the site changes here.
"""

import html
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from posixpath import relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools")]  # MkDocs loads a hook by its path alone

from reference import pages  # noqa: E402
from tutorials import NOTEBOOKS, SOURCES, as_markdown  # noqa: E402

# Files of the repository that are pages of the site.
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}

_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
_CODE = re.compile(r"^<!-- code: ([\w.]+):(\w+) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made; list those in the navigation that it doesn't name."""
    made = {name: (ROOT / source).read_text(encoding="utf-8") for source, name in MOVED.items() if name != "index.md"}
    made |= dict(pages())
    for source in SOURCES:
        notebook = NOTEBOOKS / f"{source.stem}.ipynb"
        if not notebook.is_file():
            raise PluginError(f"{notebook.relative_to(ROOT)} isn't there: `make tutorials` runs {source.name}")
        text, pictures = as_markdown(notebook)
        made[f"tutorials/{source.stem}.md"] = text  # in the place of the page that it was made of
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
        files.append(File.generated(config, f"tutorials/{notebook.name}", abs_src_path=str(notebook)))
    for name, text in made.items():
        if written := files.get_file_from_path(name):
            files.remove(written)
        files.append(File.generated(config, name, content=text))
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    more = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
    config.nav = [*config.nav, *([{"More": more}] if more else [])]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    here = page.file.src_uri
    source = next((name for name, moved in MOVED.items() if moved == here and name != "README.md"), f"docs/{here}")

    def linked(match: re.Match[str]) -> str:
        """A link between files of the repository as one between pages of the site."""
        target = (Path(source).parent / match.group(2)).as_posix()
        target = re.sub(r"[^/]+/\.\./", "", target)
        moved = MOVED.get(target, target.removeprefix("docs/"))
        return f"{match.group(1)}{relpath(moved, Path(here).parent.as_posix())}"

    return _CODE.sub(_source, _LINK.sub(linked, markdown))


def _source(match: re.Match[str]) -> str:
    """The code of a function without its docstring, and where it is."""
    function = getattr(import_module(match.group(1)), match.group(2))
    lines = inspect.getsource(function)
    bare = lines.replace(f'"""{function.__doc__}"""', "", 1) if function.__doc__ else lines
    bare = re.sub(r"\n\s*\n(?=    )", "\n", bare, count=1)
    return f'```python title="{match.group(1)}"\n{bare.rstrip()}\n```'


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """LaTeX as MathML, which browsers show without a script or a font."""

    def shown(match: re.Match[str]) -> str:
        display = "block" if match.group(1) == "div" else "inline"
        return convert(html.unescape(match.group(2)).strip(), display=display)

    return _FORMULA.sub(shown, content)
