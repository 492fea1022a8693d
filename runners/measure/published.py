"""The papers' own tables, to print beside ours: read from `published.csv`, one paper's table at a time."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources

from srgym.errors import Refusal

__all__ = ["LOWER_IS_BETTER", "OURS", "PublishedTable", "datasets", "published_tables"]

# What a paper's column is called in an evaluation of ours. Distances are rewards' components, as papers print them.
OURS = {
    "psnr": "psnr_y", "ssim": "ssim_y", "lpips": "lpips.distance", "dists": "dists.distance", "niqe": "niqe.distance",
    "musiq": "musiq", "maniqa": "maniqa", "clipiqa": "clipiqa", "topiq": "topiq_nr", "liqe": "liqe", "fid": "fid",
    "q_insight": "q_insight",
}  # fmt: skip
LOWER_IS_BETTER = frozenset({"lpips", "dists", "niqe", "fid"})


@dataclass(frozen=True)
class PublishedTable:
    """One table of one paper on one data set.

    Attributes:
        metrics: the paper's columns, in its order. rows: method to metric to value, as printed.
    """

    paper: str
    table: str
    dataset: str
    metrics: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]

    @property
    def source(self) -> str:
        return f"{self.paper}, table {self.table}"


def _rows() -> list[dict[str, str]]:
    text = resources.files("srgym.runners.measure").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def datasets() -> list[str]:
    """The data sets that some paper published figures on."""
    return sorted({row["dataset"] for row in _rows()})


def published_tables(dataset: str, papers: Sequence[str] | None = None) -> list[PublishedTable]:
    """Every paper's table on a data set; two papers' are never joined.

    Raises:
        ValueError: for a data set without published figures, with the nearest that has some.
    """
    known = datasets()
    if dataset not in known:
        near = get_close_matches(dataset, known, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Refusal(f"no published figures on '{dataset}': expected one of {', '.join(known)}{hint}")
    tables: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in _rows():
        if row["dataset"] == dataset and (papers is None or row["paper"] in papers):
            table = tables.setdefault((row["paper"], row["table"]), {})
            table.setdefault(row["method"], {})[row["metric"]] = row["value"]
    return [
        PublishedTable(paper, number, dataset, tuple(dict.fromkeys(m for row in rows.values() for m in row)), rows)
        for (paper, number), rows in tables.items()
    ]
