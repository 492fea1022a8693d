"""A set on disk as a judge is trained on it and measured by it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from srgym.errors import MissingFile, Refusal
from srgym.runners.judges.judge_set import SPLITS, Candidate, Input, JudgeSet
from srgym.runners.judges.material import Group, Material
from srgym.sealed import file_hash

__all__ = ["methods_of", "read_material"]


@dataclass(frozen=True)
class _Pictures:
    made: JudgeSet
    inputs: list[Input]
    candidates: list[list[Candidate]]

    def lr(self, group: int) -> bytes:
        png = self.made.lr(self.inputs[group])
        if png is None:
            raise Refusal(
                f"'{self.inputs[group].group}' of {self.made.folder} has no LR image, which a judge has to see"
            )
        return png

    def hr(self, group: int) -> bytes | None:
        return self.made.hr(self.inputs[group])

    def sr(self, group: int, place: int) -> bytes:
        return self.made.sr(self.candidates[group][place])


def read_material(folder: str | Path, split: str, limit: int | None = None) -> Material:
    """The labelled inputs of a split, with the candidates that the review lets stand.

    Args:
        limit: inputs at most, from the first.

    Raises:
        MissingFile: without a set or without labels. Refusal: for another split, or one without labels.
    """
    made = JudgeSet(folder)
    if split not in SPLITS:
        raise Refusal(f"expected a split of {', '.join(SPLITS)}, got '{split}'")
    path = made.folder / "labels.parquet"
    if not path.is_file():
        raise MissingFile(f"expected labels in {folder}, found none: srgym judge label {folder}")
    labels = pd.read_parquet(path)
    labels = labels[(labels["split"] == split) & labels["kept"]]
    known = {(row.group, row.method, int(row.sample)): i for i, row in enumerate(labels.itertuples())}
    groups: list[Group] = []
    inputs: list[Input] = []
    candidates: list[list[Candidate]] = []
    for own in made.inputs:
        all_of = made.of_group(own.group)
        kept = [i for i, c in enumerate(all_of) if (c.group, c.method, c.sample) in known]
        if own.split != split or not kept or (limit is not None and len(groups) >= limit):
            continue
        rows = labels.iloc[[known[own.group, all_of[i].method, all_of[i].sample] for i in kept]]
        groups.append(_group(own, rows, kept))
        inputs.append(own)
        candidates.append([all_of[i] for i in kept])
    if not groups:
        raise Refusal(f"the split '{split}' of {folder} has no labelled inputs")
    who = sorted(path.stem.split(".", 1)[1] for path in (made.folder / "answers").glob("*.jsonl"))
    about = {
        "name": made.folder.name,
        "split": split,
        "annotators": list(dict.fromkeys(who)),
        "sha256": file_hash(path),
    }
    return Material(groups, _Pictures(made, inputs, candidates), about)


def methods_of(folder: str | Path | None) -> list[str]:
    """The methods whose candidates a set holds; none where the set isn't here."""
    if folder is None or not (Path(folder) / "set.json").is_file():
        return []
    return list(dict.fromkeys(own.method for own in JudgeSet(folder).candidates))


def _group(own: Input, rows: pd.DataFrame, kept: list[int]) -> Group:
    better = torch.tensor([list(row) for row in rows["outcomes"]], dtype=torch.float64)[:, kept]
    both = torch.stack([better, 1 - better.T]).nanmean(0)  # of both orders
    known = own.kind == "synthetic" and bool(rows["fidelity"].notna().all())
    return Group(
        own.group, own.kind, tuple(rows["method"]), float(rows["q_lr"].iloc[0]), tuple(rows["quality"]),
        tuple(rows["anchor"]), both, tuple(rows["fidelity"]) if known else None, tuple(rows["description"]),
        tuple(rows["verdict"]), own.picture,
    )  # fmt: skip
