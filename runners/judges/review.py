"""What people should look at before labels are trained on: both ends of the scale, and descriptions that contradict."""

import csv
import io
import math
from pathlib import Path

import pandas as pd

from srgym.errors import Refusal
from srgym.files import write_whole

__all__ = ["apply_review", "read_decisions", "review_rows", "write_review"]

_COLUMNS = ("group", "method", "sample", "quality", "verdict", "why", "decision", "reason")
_DECISIONS = ("", "keep", "drop")


def review_rows(labels: pd.DataFrame, share: float, conflict: float) -> pd.DataFrame:
    """The candidates to look at: group, method, sample, quality, verdict and why.

    Args:
        labels: see `srgym.runners.judges.labelling.label`. share: of the candidates at each end, at least one.
        conflict: how far a description's verdict may lie from the score.
    """
    order = labels.sort_values(["quality", "group", "method", "sample"], kind="stable").index
    count = max(1, math.ceil(share * len(order))) if len(order) and share > 0 else 0
    why = dict.fromkeys(order[:count], "lowest scores") | dict.fromkeys(order[len(order) - count :], "highest scores")
    apart = (labels["verdict"] - labels["quality"]).abs() > conflict
    for i in labels.index[apart]:
        why[i] = "; ".join([*([why[i]] if i in why else []), "the description says otherwise"])
    chosen = labels.loc[sorted(why), ["group", "method", "sample", "quality", "verdict"]].copy()
    chosen["why"] = [why[i] for i in chosen.index]
    return chosen


def write_review(path: Path, rows: pd.DataFrame) -> None:
    """Write `review.csv`; decisions that are in it stay."""
    before = read_decisions(path)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for row in rows.itertuples():
        place = (row.group, row.method, int(row.sample))
        verdict = "" if math.isnan(row.verdict) else f"{row.verdict:.2f}"
        table.writerow([*place, f"{row.quality:.3f}", verdict, row.why, *before.get(place, ("", ""))])
    write_whole(path, text.getvalue().encode())


def apply_review(path: Path, labels: pd.DataFrame) -> pd.DataFrame:
    """The labels with `kept` False for what people dropped; an empty decision keeps.

    Raises:
        Refusal: for a decision that is none, naming its row.
    """
    decisions = read_decisions(path)
    places = zip(labels["group"], labels["method"], labels["sample"].astype(int), strict=True)
    return labels.assign(kept=[decisions.get(place, ("",))[0] != "drop" for place in places])


def read_decisions(path: Path) -> dict[tuple[str, str, int], tuple[str, str]]:
    """What people decided: (group, method, sample) to ("keep", "drop" or "", why)."""
    if not path.is_file():
        return {}
    found = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            missing = [name for name in _COLUMNS if row.get(name) is None]
            if missing:
                raise Refusal(
                    f"{path}, line {number}: expected the columns {', '.join(_COLUMNS)}, '{missing[0]}' is missing"
                )
            decision = row["decision"].strip().lower()
            if decision not in _DECISIONS:
                raise Refusal(f"{path}, line {number}: expected keep, drop or nothing as a decision, got '{decision}'")
            found[row["group"], row["method"], int(row["sample"])] = (decision, row["reason"].strip())
    return found
