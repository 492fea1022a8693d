"""The page of a reproduction as the project publishes it: python tools/reproduction_page.py KEY=VALUE ...

With the arguments of the `srgym reproduce` that was run. Writes docs/reproduction.md with its pictures, those of
photographs that ship alone, and the table of verdicts in README.md, between its marks.
"""

import re
import shutil
import sys
from pathlib import Path

from srgym.runners.reproduce.page import write_page
from srgym.runners.reproduce.plan import Plan, make_plan
from srgym.runners.reproduce.reproduction import failures
from srgym.runners.reproduce.results import conclude, read_results

__all__ = ["BEGIN", "END", "publish", "readme_table"]

BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"
_SHIPPED = ("chelsea", "coffee", "china", "rocket")
_PANEL = re.compile(r"\*\*([\w.-]+)/\d+\*\*: LR, [^\n]*\n\n!\[[^\]]*\]\([^)]*\)\n\n")
_PICTURES = "pictures/reproduction"


def readme_table(plan: Plan) -> str:
    """Every claim with its verdict."""
    concluded = conclude(plan, read_results(plan))
    rows = [f"| {claim.paper}, {claim.source} | {claim.title} | {concluded[claim.name][0]} |" for claim in plan.claims]
    return "\n".join(["| where | claim | in miniature |", "| --- | --- | --- |", *rows])


def publish(plan: Plan, root: Path) -> None:
    """Write the page, its pictures and the table into a checkout."""
    report = write_page(plan, failures(plan)).with_suffix(".md")
    text = report.read_text(encoding="utf-8").replace("(report_files/", f"({_PICTURES}/")
    text = _PANEL.sub(lambda panel: panel[0] if panel[1] in _SHIPPED else "", text)
    (root / "docs" / "reproduction.md").write_text(text, encoding="utf-8")
    pictures = root / "docs" / _PICTURES
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    for name in sorted(set(re.findall(rf"{_PICTURES}/([\w.]+)", text))):
        shutil.copy(report.parent / "report_files" / name, pictures / name)
    readme = root / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n{readme_table(plan)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    publish(make_plan(sys.argv[1:]), Path(__file__).parents[1])
