"""What is in a set, what is done of each stage, and what is left."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from srgym.runners.judges.answers import AnswerLog
from srgym.runners.judges.judge_set import SPLITS, JudgeSet
from srgym.runners.judges.sheets import Sheet

__all__ = ["status"]


def status(made: JudgeSet) -> Iterator[str]:
    """Lines that tell."""
    inputs = Counter((own.split, own.kind) for own in made.inputs)
    told = ", ".join(f"{inputs[split, kind]} {kind} in {split}" for split in SPLITS for kind in ("synthetic", "real")
                     if inputs[split, kind])  # fmt: skip
    yield f"inputs: {told or 'none yet'}"
    for method, version in made.about["methods"].items():
        count = sum(own.method == method for own in made.candidates)
        yield f"candidates of {method} ({version}): {count}"
    for path in sorted((made.folder / "answers").glob("*.jsonl")):
        stage, who = path.stem.split(".", 1)
        yield f"answers, {stage} by {who}: {len(AnswerLog(path))}"
    for folder in sorted((made.folder / "sheets").glob("*")):
        alike, twice = Sheet(folder).agreement()
        if twice:
            yield f"sheet {folder.name}: people agree with themselves on {alike} of {twice} items asked twice"
    yield from _labels(made.folder / "labels.parquet")


def _labels(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield "labels: none yet"
        return
    labels = pd.read_parquet(path)
    flags = Counter(labels.drop_duplicates("group")["flag"])
    yield f"labels: {len(labels)} candidates of {labels['group'].nunique()} inputs"
    told = {"inverted": "took another slope", "tied": "couldn't be fitted", "clamped": "ran into the ends of the scale"}
    yield from (f"  {count} groups {told[flag]}" for flag, count in sorted(flags.items()) if flag)
    yield f"  described: {int((labels['description'] != '').sum())}; dropped in review: {int((~labels['kept']).sum())}"
