"""What is in a set, what is done of each stage, and what is left."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from srgym.runners.judges.answers import read_answers
from srgym.runners.judges.judge_set import SPLITS, JudgeSet
from srgym.runners.judges.review import read_decisions
from srgym.runners.judges.sheets import Sheet

__all__ = ["status"]


def status(made: JudgeSet) -> Iterator[str]:
    """Lines that tell. Nothing is written: somebody may be filling the set."""
    yield from _pool(made)
    asked = _asked(made)
    for stage, wanted in asked.items():
        yield from _answered(made.folder, stage, wanted)
    for folder in sorted((made.folder / "sheets").glob("*")):
        alike, twice = Sheet(folder).agreement()
        if twice:
            yield f"sheet {folder.name}: people agree with themselves on {alike} of {twice} items asked twice"
    yield from _labels(made)
    yield from _review(made.folder / "review.csv")


def _pool(made: JudgeSet) -> Iterator[str]:
    inputs, settings = Counter((own.split, own.kind) for own in made.inputs), made.about["settings"]
    planned = set(SPLITS) <= set(settings)  # by `srgym judge pool`
    wanted = sum(settings[split] for split in SPLITS) if planned else len(made.inputs)
    told = ", ".join(f"{inputs[split, kind]} {kind} in {split}" for split in SPLITS for kind in ("synthetic", "real")
                     if inputs[split, kind])  # fmt: skip
    yield f"inputs: {told or 'none yet'}{_left(len(made.inputs), wanted)}"
    counts = Counter(own.method for own in made.candidates)
    served = Counter(method for method, _ in {(own.method, own.group) for own in made.candidates})
    for method, version in made.about["methods"].items():
        yield f"candidates of {method} ({version}): {counts[method]}{_left(served[method], wanted, 'inputs')}"
    if not made.about["methods"]:
        yield f"candidates: {len(made.candidates)} of {len(counts)} methods"


def _left(there: int, wanted: int, what: str = "") -> str:
    return f"; {wanted - there}{' ' * bool(what)}{what} left" if there < wanted else ""


def _asked(made: JudgeSet) -> dict[str, int]:
    """How many different questions each asking stage has; none where people's labels came with the set."""
    if "layout" in made.about["settings"] and not any((made.folder / "answers").glob("*.jsonl")):
        return {}
    sizes = [count for own in made.inputs if (count := len(made.of_group(own.group)))]
    return {
        "anchor": sum(size + 1 for size in sizes),
        "compare": sum(size * (size - 1) for size in sizes),
        "describe": sum(sizes),
    }


def _answered(folder: Path, stage: str, wanted: int) -> Iterator[str]:
    seen: set[tuple[str, ...]] = set()
    by: dict[str, int] = {}
    for path in sorted((folder / "answers").glob(f"{stage}.*.jsonl")):
        rows = read_answers(path)
        by[path.stem.split(".", 1)[1]] = len(rows)
        seen |= {(row["group"], *row["shown"]) for row in rows}
    what = {"anchor": "images are rated", "compare": "ordered pairs are compared", "describe": "are described"}[stage]
    who = ", ".join(f"{count} answers by {name}" for name, count in by.items())
    yield f"{stage}: {len(seen)} of {wanted} {what}{f' ({who})' if who else ''}{_left(len(seen), wanted)}"


def _labels(made: JudgeSet) -> Iterator[str]:
    path = made.folder / "labels.parquet"
    if not path.is_file():
        yield f"labels: none yet{_left(0, len(made.candidates), 'candidates')}"
        return
    labels = pd.read_parquet(path)
    flags = Counter(labels.drop_duplicates("group")["flag"])
    without = _left(len(labels), len(made.candidates), "candidates")
    yield f"labels: {len(labels)} candidates of {labels['group'].nunique()} inputs{without}"
    told = {"inverted": "took another slope", "tied": "couldn't be fitted", "clamped": "ran into the ends of the scale",
            "people": "have people's labels"}  # fmt: skip
    yield from (f"  {count} groups {told[flag]}" for flag, count in sorted(flags.items()) if flag)
    yield f"  described: {int((labels['description'] != '').sum())}; dropped in review: {int((~labels['kept']).sum())}"


def _review(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield "review: not written yet"
        return
    decisions = [decision for decision, _ in read_decisions(path).values()]
    decided = sum(bool(decision) for decision in decisions)
    yield f"review: {decided} of {len(decisions)} candidates decided{_left(decided, len(decisions))}"
