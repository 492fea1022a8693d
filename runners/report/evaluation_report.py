"""The report of one evaluation: methods by metrics with intervals, the papers' figures beside them, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from srgym.runners.measure.evaluation import read_evaluation
from srgym.runners.measure.published import published_tables
from srgym.runners.report.document import Document, Heading, Table, Text
from srgym.runners.report.panels import make_panels
from srgym.runners.report.summary import metric_names
from srgym.runners.report.tables import levels_table, published_table, wins_table
from srgym.runners.report.writing import write

__all__ = ["INTERVALS", "method_table", "record_tables", "write_evaluation_report"]

INTERVALS = (
    "Intervals are 95%, over photographs (each with its crops) and, where there are several, training seeds together, "
    "widened for few of either; of two seeds there is none. They are per number, with no correction for how many "
    "numbers there are."
)

_DIRECTION = "Higher is better for every metric; of a component called distance, lower is."


def write_evaluation_report(
    folder: Path, pictures: Sequence[Mapping[str, Any]] = (), title: str = "Evaluation", dataset: str | None = None
) -> Path:
    """Write `report.html` and `report.md` into a folder that holds an evaluation (see `save_evaluation`).

    Args:
        pictures: what `srgym.runners.measure.evaluation.draw` returned.
        dataset: a data set whose published figures are printed beside ours.

    Returns:
        The path of the HTML.
    """
    frame, record = read_evaluation(folder)
    methods = list(dict.fromkeys(frame["method"]))
    document = Document(title, _counts(frame))
    document.add(Heading("Scores"), Text(INTERVALS), levels_table(frame, methods, metric_names(frame), record))
    if len(methods) > 1:
        against = "bicubic" if "bicubic" in methods else methods[0]
        document.add(wins_table(frame, methods, against, metric_names(frame), record))
    invalid = frame[~frame["valid"]]
    if len(invalid):
        document.add(Text(f"{len(invalid)} of {len(frame)} numbers have no valid score and are left out of the means."))
    if dataset is not None:
        document.add(Heading("Beside published figures"))
        for table in published_tables(dataset):
            document.add(published_table(table, frame, methods, _protocol(record)))
    if pictures:
        document.add(Heading("Pictures"), make_panels(pictures, "Each at its full size; LR enlarged."))
    document.add(Heading("What was measured"), *record_tables(record))
    return write(document, folder)


def _counts(frame: pd.DataFrame) -> str:
    photographs = frame["photograph"].nunique()
    crops = len(frame[["photograph", "crop"]].drop_duplicates())
    return f"{crops} images of {photographs} photographs."


def _protocol(record: Mapping[str, Any]) -> str:
    fixes = sorted({str(method["colour_fix"]) for method in record["methods"].values()})
    return f"colour fix {', '.join(fixes)}; the metrics' variants are listed below."


def record_tables(record: Mapping[str, Any]) -> list[Table]:
    """The metrics' variants and the methods' sampling, which belong to the numbers."""
    metrics = [
        [label, facts["reward"], facts["variant"], facts["colour_space"], facts["weights"]]
        for label, facts in record["metrics"].items()
    ]
    return [
        Table(["metric", "computed by", "variant", "colour space", "weights"], metrics, _DIRECTION, words=True),
        method_table(record),
    ]


def method_table(record: Mapping[str, Any]) -> Table:
    """How each method's images were made."""
    methods = []
    for name, facts in record["methods"].items():
        rest = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "colour_fix")
        methods.append([name, rest, str(facts["colour_fix"])])
    return Table(["method", "how", "colour fix"], methods, words=True)
