"""The tutorials: pages of docs/tutorials/ whose code is run as a notebook, and shown on the site with what came out.

    python tools/tutorials.py NAME...      runs docs/tutorials/NAME.md into build/tutorials/NAME.ipynb

Blocks of `python` are cells, blocks of `bash` cells of the shell; what begins with %%writefile is written to a file.
"""

import base64
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = ROOT / "build" / "tutorials"

_KERNEL = """---
jupyter:
  kernelspec: {name: python3, display_name: Python 3, language: python}
---

"""


def run(source: Path, target: Path) -> None:
    """Execute the code of a page in a folder of its own, where `pip install` installs into that folder too.

    Raises:
        CellExecutionError: showing the cell that failed.
    """
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.reads(_KERNEL + source.read_text(encoding="utf-8"), fmt="md")
    with tempfile.TemporaryDirectory() as folder:
        packages = f"{folder}/packages"
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [folder, packages, os.environ.get("PYTHONPATH")])),
            "PIP_TARGET": packages,
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the wrong way round: 0 is --no-build-isolation
            "PIP_NO_INDEX": "1",
            "PIP_QUIET": "1",
        }
        NotebookClient(notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": folder}}).execute(
            env=os.environ | own
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as a page, and the pictures that the page shows, by name."""
    notebook = nbformat.read(path, as_version=4)
    lines: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines += [cell.source, ""]
            continue
        shell = cell.source.startswith("%%bash\n")
        lines += ["```bash" if shell else "```python", cell.source.removeprefix("%%bash\n"), "```", ""]
        shown = []
        for output in cell.outputs:
            data = output.get("data", {})
            text = (output.get("text") or data.get("text/plain", "")).strip("\n")
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                shown.append(f"![]({name})")
            elif "text/html" in data:
                shown.append(re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL))
            elif text and output.get("name") != "stderr":
                shown.append(f"```text\n{text}\n```")
        if shown:
            lines += ['<div class="output" markdown>', "", "\n\n".join(shown), "", "</div>", ""]
    lines += [f"[This page as a notebook]({path.name}){{ .md-button download }}"]
    return "\n".join(lines), pictures


def main(names: list[str]) -> int:
    known = {source.stem: source for source in SOURCES}
    if not names or set(names) - set(known):
        print(f"{__doc__}\nNAME is one of {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        started = time.monotonic()
        run(known[name], NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
