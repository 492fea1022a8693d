"""A set on disk as material: the labelled groups of a split, and what a report shows of the set before the training."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from srgym.errors import MissingFile, Refusal
from srgym.rewards.compass.labels import outcomes_from_scores
from srgym.runners.judges.judge_set import Candidate, Input, JudgeSet
from srgym.runners.judges.material import Group, Material
from srgym.runners.report.document import Block, Table

__all__ = ["read_material", "set_stages"]


class _Pictures:
    def __init__(self, held: JudgeSet, inputs: Sequence[Input], candidates: Sequence[Sequence[Candidate]]) -> None:
        self._held, self._inputs, self._candidates = held, inputs, candidates

    def lr(self, group: int) -> bytes:
        png = self._held.lr(self._inputs[group])
        assert png is not None
        return png

    def hr(self, group: int) -> bytes | None:
        return self._held.hr(self._inputs[group])

    def sr(self, group: int, place: int) -> bytes:
        return self._held.sr(self._candidates[group][place])


def _labels(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / "labels.parquet"
    if not path.is_file():
        raise MissingFile(f"expected labels in {folder}, found none: `srgym judge label {folder}` makes them")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["group"], []).append(row)
    return rows


def read_material(folder: str | Path, split: str, limit: int | None = None) -> Material:
    """The labelled groups of a split of a set whose inputs are known.

    Raises:
        MissingFile: where there is no set, or it has no labels.
        Refusal: for a split without labelled groups.
    """
    held = JudgeSet(folder)
    labels = _labels(held.folder)
    groups, inputs, candidates = [], [], []
    for own in held.inputs:
        if own.split != split or own.group not in labels or held.lr(own) is None:
            continue
        made = {(c.method, c.sample): c for c in held.of_group(own.group)}
        rows = [row for row in labels[own.group] if (row["method"], row["sample"]) in made]
        if not rows:
            continue
        inputs.append(own)
        candidates.append([made[row["method"], row["sample"]] for row in rows])
        groups.append(_group(own, rows))
        if limit is not None and len(groups) == limit:
            break
    if not groups:
        splits = Counter(own.split for own in held.inputs if own.group in labels)
        there = ", ".join(f"{name} ({count})" for name, count in splits.items()) or "none"
        raise Refusal(f"the split '{split}' of {folder} has no labelled groups; there are: {there}")
    judges = sorted(path.stem for path in (held.folder / "answers").glob("*.jsonl"))
    digest = hashlib.sha256((held.folder / "labels.parquet").read_bytes()).hexdigest()
    about = {"name": held.folder.resolve().name, "split": split, "annotators": judges, "sha256": digest}
    return Material(groups, _Pictures(held, inputs, candidates), about)


def _group(own: Input, rows: Sequence[dict[str, Any]]) -> Group:
    fidelity = [row["fidelity"] for row in rows]
    known = own.kind == "synthetic" and all(value is not None for value in fidelity)
    quality = tuple(float(row["score"]) for row in rows)
    return Group(
        own.group, own.kind, tuple(row["method"] for row in rows), float(rows[0]["q_lr"]), quality,
        tuple(float(row["anchor"]) for row in rows), outcomes_from_scores(torch.tensor(quality)),
        tuple(map(float, fidelity)) if known else None, tuple(row["description"] or "" for row in rows),
    )  # fmt: skip


def set_stages(folder: Path) -> list[tuple[str, list[Block]]]:
    """What a report shows of a set: its inputs and candidates, and the answers that its labels come of."""
    held = JudgeSet(folder)
    kinds = Counter((own.split, own.kind) for own in held.inputs)
    made = Counter(own.method for own in held.candidates)
    answers = {path.stem: len(path.read_text().splitlines()) for path in (held.folder / "answers").glob("*.jsonl")}
    return [
        ("The set", [
            Table(["split", "inputs", "kind"], [[split, str(n), kind] for (split, kind), n in sorted(kinds.items())]),
            Table(["method", "candidates"], [[method, str(n)] for method, n in made.items()]),
        ]),
        ("Labels", [Table(["stage and annotator", "answers"], [[k, str(n)] for k, n in sorted(answers.items())])]),
    ]  # fmt: skip
