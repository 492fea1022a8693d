"""A public data set as a set of ours: its pictures, and what people said of them as labels."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.files import locked, write_whole
from srgym.rewards.compass.labels import outcomes_from_scores, ranks
from srgym.runners.judges.importing import LAYOUTS, ImportedGroup
from srgym.runners.judges.judge_set import JudgeSet, NewCandidate, NewInput

__all__ = ["import_set"]

_PART = 16
_SEEN = "people"


def import_set(
    layout: str, folder: str, out: str, tell: Callable[[str, float], None] = lambda what, share: None
) -> JudgeSet:
    """Take a public data set over, part by part; goes on where an earlier call was stopped.

    Scores are put on [1, 5] by the lowest and the highest of the set; where there are comparisons alone, an input's
    candidates lie on it by their rank.

    Raises:
        Refusal: for files that aren't the layout's, naming one, or a folder that holds another set.
    """
    read, source = LAYOUTS[layout], Path(folder)
    made = JudgeSet.create(out, {"layout": layout, "folder": source.resolve().name}, {})
    with locked(made.folder):
        rows: list[dict[str, Any]] = []
        for number, groups in enumerate(_chunks(read(source))):
            part = f"{number:05}"
            if not made.has("inputs", part):
                made.add_inputs(part, [NewInput(own.name, own.split, own.kind, own.lr, own.hr) for own in groups])
            if not made.has("candidates", part):
                made.add_candidates(part, [row for own in groups for row in _candidates(own, layout)])
            rows += [row for own in groups for row in _labels(own)]
            tell(layout, 0.5)
        if not rows:
            raise Refusal(f"{folder}: expected a data set of the layout '{layout}', found no picture with a label")
        labels = pd.DataFrame(rows)
        hashes = {(own.group, own.method): own.sha256 for own in made.candidates}
        labels["sha256"] = [hashes[place] for place in zip(labels["group"], labels["method"], strict=True)]
        for column in ("anchor", "quality"):
            labels[column] = _scaled(labels[column])
        write_whole(made.folder / "labels.parquet", labels.to_parquet(index=False))
    tell(layout, 1.0)
    return made


def _chunks(groups: Iterator[ImportedGroup]) -> Iterator[list[ImportedGroup]]:
    while chunk := list(islice(groups, _PART)):
        yield chunk


def _candidates(group: ImportedGroup, layout: str) -> Iterator[NewCandidate]:
    for method, png in group.candidates:
        yield NewCandidate(group.name, method, layout, 0, png)


def _labels(group: ImportedGroup) -> Iterator[dict[str, Any]]:
    outcome = _outcome(group)
    rank = ranks(outcome)
    scores = rank.tolist() if group.score is None else list(group.score)
    for i, (method, _) in enumerate(group.candidates):
        yield {
            "group": group.name, "split": group.split, "kind": group.kind, "method": method, "sample": 0, "sha256": "",
            "q_lr": math.nan, "anchor": scores[i], "rank": float(rank[i]), "alpha": math.nan, "beta": math.nan,
            "flag": _SEEN, "quality": scores[i], "fidelity": math.nan, "outcomes": outcome[i].tolist(),
            "description": "", "verdict": math.nan, "kept": True,
        }  # fmt: skip


def _outcome(group: ImportedGroup) -> Tensor:
    if group.better is not None:
        better = torch.as_tensor(np.asarray(group.better), dtype=torch.float64).clone()
        better.fill_diagonal_(0.5)
        return better
    if group.score is None:
        raise Refusal(f"'{group.name}': expected scores or comparisons of its pictures, found neither")
    return outcomes_from_scores(torch.tensor(group.score, dtype=torch.float64))


def _scaled(values: pd.Series) -> pd.Series:
    low, high = values.min(), values.max()
    return 1 + 4 * (values - low) / (high - low) if high > low else values * 0 + 3.0
