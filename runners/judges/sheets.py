"""Sheets for people: pictures under numbers that say nothing of methods, in a drawn order, some twice; and a table."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from srgym.errors import Refusal
from srgym.files import to_png, write_json, write_whole

__all__ = ["Sheet"]

_ALLOWED = {"anchor": "1 (bad) to 5 (excellent)", "compare": "1 (the first is better), 2 (the second) or 0 (neither)"}


class Sheet:
    """A folder with `sheet.csv` and the pictures of its items; `key.json` says what they are, and is for nobody's eyes.

    An item of the stage `anchor` is one picture beside the enlarged input, of `compare` two.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        return (self.folder / "sheet.csv").is_file()

    def write(
        self, stage: str, keys: Sequence[str], show: Callable[[str], Sequence[Tensor]], repeated: float, seed: int
    ) -> None:
        """Lay a sheet out, unless there is one.

        Args:
            keys: of the answers. show: an item's pictures: the enlarged input, and one or two. repeated: share of the
                items that are asked a second time, in the other order, to see how far people agree with themselves.
        """
        if self.exists or not keys:
            return
        draw = Random(seed)
        again = draw.sample(keys, round(repeated * len(keys)))
        order = [*keys, *again]
        draw.shuffle(order)
        first: dict[str, bool] = {}
        known = []
        for number, key in enumerate(order, 1):
            turned = not first[key] if key in first else bool(draw.getrandbits(1))
            first.setdefault(key, turned)
            large, *shown = show(key)
            turned = turned and len(shown) == 2
            for name, image in zip(("input", "1", "2"), (large, *(shown[::-1] if turned else shown))):
                write_whole(self.folder / f"{number:05}_{name}.png", to_png(image))
            known.append({"key": key, "turned": turned})
        write_json(self.folder / "key.json", {"stage": stage, "items": known})
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["item", f"answer: {_ALLOWED[stage]}"])
        table.writerows([f"{number:05}", ""] for number in range(1, len(order) + 1))
        write_whole(self.folder / "sheet.csv", text.getvalue().encode())

    def read(self) -> dict[str, float]:
        """What is filled in, by key: a rating, or 1, 0.5 or 0 for the pair in the set's own order; the first of two
        answers to an item that was asked twice.

        Raises:
            Refusal: for an answer that isn't one of those allowed, naming its item.
        """
        return {key: values[0] for key, values in self._all().items()}

    def agreement(self) -> tuple[int, int]:
        """Of the items that were answered twice: how many alike, and how many there are."""
        twice = [values for values in self._all().values() if len(values) > 1]
        return sum(a == b for a, b, *_ in twice), len(twice)

    def _all(self) -> dict[str, list[float]]:
        if not self.exists:
            return {}
        about: dict[str, Any] = json.loads((self.folder / "key.json").read_text())
        found: dict[str, list[float]] = {}
        for row in list(csv.reader((self.folder / "sheet.csv").open(encoding="utf-8-sig")))[1:]:
            if len(row) < 2 or not row[1].strip():
                continue
            item = about["items"][int(row[0]) - 1]
            found.setdefault(item["key"], []).append(self._value(about["stage"], row, bool(item["turned"])))
        return found

    def _value(self, stage: str, row: Sequence[str], turned: bool) -> float:
        told = row[1].strip()
        try:
            value = float(told)
        except ValueError:
            value = -1.0
        if not (1 <= value <= 5 if stage == "anchor" else value in (0, 1, 2)):
            raise Refusal(f"{self.folder}/sheet.csv, item {row[0]}: expected {_ALLOWED[stage]}, got '{told}'")
        if stage == "anchor":
            return value
        return 0.5 if value == 0 else float((value == 1) != turned)
