"""The audits of several rewards as one table: python tools/audit_table.py FOLDER, with the folder of each in it.

Markdown on standard output: a row a reward, how many of its lines hold, and which fail.
"""

import json
import sys
from pathlib import Path

__all__ = ["table"]


def table(folder: Path) -> str:
    """The rows, those that fail least first; a line that couldn't be asked of a reward isn't counted."""
    rows = []
    for path in sorted(folder.glob("*/audit.json")):
        asked = [line for line in json.loads(path.read_text())["lines"] if line["holds"] is not None]
        failing = [line["name"] for line in asked if not line["holds"]]
        rows.append((len(failing), path.parent.name, len(asked), ", ".join(failing) or "none"))
    lines = [f"| {name} | {asked - failing} of {asked} | {failed} |" for failing, name, asked, failed in sorted(rows)]
    return "\n".join(["| reward | lines that hold | lines that fail |", "| --- | --- | --- |", *lines])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one folder: python tools/audit_table.py FOLDER")
    print(table(Path(sys.argv[1])))
