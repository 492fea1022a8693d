"""A judge's data on disk (COMPASS-20K's kind): inputs, the candidates that methods made of them, answers, labels.

    SET/set.json                          schema, settings, what the methods are, hashes of prompts
    SET/inputs/part-*.parquet             group, split, kind, picture, lr and hr (PNG bytes), degradation, sha256, phash
    SET/candidates/part-*.parquet         group, method, version, sample, sr (PNG bytes), sha256
    SET/answers/STAGE.ANNOTATOR.jsonl     append-only (see `answers.py`)
    SET/labels.parquet                    what the answers came to (see `labelling.py`)
    SET/review.csv                        what a person should look at

Parts are written whole or not at all and never change, so that whoever is stopped goes on at the next one. They are
Parquet as the library `datasets` reads it, images decoded: `load_dataset("parquet", data_dir="SET/candidates")`. Every
row is a row group of its own, so that one picture is read without the others.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json, write_whole
from srgym.runners.judges.phash import Fingerprint, fingerprint
from srgym.sealed import Damaged, read_object

__all__ = ["SPLITS", "Candidate", "Input", "JudgeSet", "NewCandidate", "NewInput"]

SPLITS = ("train", "validation", "test")
_SCHEMA = 1
_INPUT = ("group", "split", "kind", "picture", "degradation", "sha256", "phash")
_CANDIDATE = ("group", "method", "version", "sample", "sha256")


@dataclass(frozen=True)
class NewInput:
    """An input to be written.

    Attributes:
        group: its name, the same for all that is made of it. kind: "synthetic" where LR was made of `hr`, "real" where
            it is as it was met. lr, hr: PNG files; `lr` is None where only the candidates are known.
        degradation: the record of how LR was made.
        picture: what it is a piece of, the same for all pieces, which are no independent sample; "" for itself.
    """

    group: str
    split: str
    kind: Literal["synthetic", "real"]
    lr: bytes | None
    hr: bytes | None = None
    degradation: Mapping[str, Any] | None = None
    picture: str = ""


@dataclass(frozen=True)
class NewCandidate:
    """A candidate to be written: its group, the method, what that was made with, which of its samples, and its PNG."""

    group: str
    method: str
    version: str
    sample: int
    sr: bytes


@dataclass(frozen=True)
class Input:
    """An input without its pictures. `at` is the part and the row that hold these."""

    group: str
    split: str
    kind: str
    picture: str
    degradation: str | None
    sha256: str
    phash: str
    at: tuple[Path, int]


@dataclass(frozen=True)
class Candidate:
    """A candidate without its picture. `at` is the part and the row that hold it."""

    group: str
    method: str
    version: str
    sample: int
    sha256: str
    at: tuple[Path, int]


class JudgeSet:
    """A set in a folder.

    Args:
        folder: with a `set.json`; `create` makes one.

    Raises:
        MissingFile: where there is no set. Damaged: for a `set.json` of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "set.json").is_file():
            raise MissingFile(
                f"expected a judge's set in {folder}, found no set.json: `srgym judge pool out={folder}` makes one"
            )
        self.about = read_object(self.folder / "set.json", {"schema": int, "settings": dict, "methods": dict})
        if self.about["schema"] != _SCHEMA:
            raise Damaged(f"{folder}/set.json: expected schema {_SCHEMA}, got {self.about['schema']}")

    @classmethod
    def create(cls, folder: str | Path, settings: Mapping[str, Any], methods: Mapping[str, str]) -> "JudgeSet":
        """Begin a set, or go on with one of the same settings.

        Args:
            settings: all that decides what will be in it, as JSON. methods: by name, what each is made with.

        Raises:
            Refusal: where the folder holds a set of other settings, naming the first that differs.
        """
        place = Path(folder) / "set.json"
        now = json.loads(json.dumps({"schema": _SCHEMA, "settings": dict(settings), "methods": dict(methods)}))
        if not place.is_file():
            write_json(place, now)
            return cls(folder)
        made = cls(folder)
        for part in ("settings", "methods"):
            before, after = made.about[part], now[part]
            other = next((key for key in {**before, **after} if before.get(key) != after.get(key)), None)
            if other is not None:
                raise Refusal(
                    f"{folder} holds a set of other {part}: {other} was {before.get(other)!r}, and is now "
                    f"{after.get(other)!r}; name another folder, or say what was said then"
                )
        return made

    def note(self, part: str, values: Mapping[str, str]) -> None:
        """Add to what `set.json` says besides, such as the hashes of prompts."""
        known = {**self.about.get(part, {}), **values}
        if known != self.about.get(part, {}):
            self.about = {**self.about, part: dict(sorted(known.items()))}
            write_json(self.folder / "set.json", self.about)

    # What is in it

    @cached_property
    def inputs(self) -> list[Input]:
        """All inputs, part by part."""
        return [Input(**row, at=at) for row, at in self._rows("inputs", _INPUT)]

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates, ordered by group as the inputs are, then by method and sample."""
        place = {own.group: i for i, own in enumerate(self.inputs)}
        order = {name: i for i, name in enumerate(self.about["methods"])}
        found = [Candidate(**row, at=at) for row, at in self._rows("candidates", _CANDIDATE)]
        return sorted(found, key=lambda own: (place[own.group], order.get(own.method, len(order)), own.sample))

    def of_group(self, group: str) -> list[Candidate]:
        """An input's candidates."""
        return self._by_group.get(group, [])

    @cached_property
    def _by_group(self) -> dict[str, list[Candidate]]:
        found: dict[str, list[Candidate]] = {}
        for own in self.candidates:
            found.setdefault(own.group, []).append(own)
        return found

    def lr(self, own: Input) -> bytes | None:
        """The PNG of an input; None where it isn't known."""
        return self._picture(own.at, "lr")

    def hr(self, own: Input) -> bytes | None:
        """The PNG of what an input was made of; None of a real one."""
        return self._picture(own.at, "hr")

    def sr(self, own: Candidate) -> bytes:
        """The PNG of a candidate."""
        picture = self._picture(own.at, "sr")
        assert picture is not None
        return picture

    @property
    def digest(self) -> str:
        """A SHA-256 of all inputs and candidates, in order."""
        told = [(own.group, own.split, own.kind, own.sha256) for own in self.inputs]
        made = [(own.group, own.method, own.sample, own.sha256) for own in self.candidates]
        return hashlib.sha256(json.dumps([told, made]).encode()).hexdigest()

    # Writing

    def has(self, table: Literal["inputs", "candidates"], part: str) -> bool:
        """Whether a part is written."""
        return self._part(table, part).is_file()

    def add_inputs(self, part: str, rows: Sequence[NewInput]) -> None:
        """Write a part of the inputs, whole or not at all.

        Raises:
            Refusal: for a split or kind that there isn't, two inputs of one name, one without any picture, or one that
                another split has already, by SHA-256 or by what it looks like (`Fingerprint`).
        """
        seen, names = [*self._seen()], Counter(own.group for own in self.inputs)
        columns: dict[str, list[Any]] = {name: [] for name in (*_INPUT, "lr", "hr")}
        for row in rows:
            print_ = self._checked(row, names, seen)
            names[row.group] += 1
            seen.append((row.group, row.split, print_))
            record = None if row.degradation is None else json.dumps(row.degradation, sort_keys=True)
            values = (
                row.group,
                row.split,
                row.kind,
                row.picture or row.group,
                record,
                print_.sha256,
                print_.as_text(),
                row.lr,
                row.hr,
            )
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
        self._write("inputs", part, columns, ("lr", "hr"))
        self.__dict__.pop("inputs", None)

    def add_candidates(self, part: str, rows: Sequence[NewCandidate]) -> None:
        """Write a part of the candidates, whole or not at all.

        Raises:
            Refusal: for a candidate of no input of the set.
        """
        names = {own.group for own in self.inputs}
        strange = next((row.group for row in rows if row.group not in names), None)
        if strange is not None:
            raise Refusal(f"expected candidates of the set's inputs, got one of '{strange}'")
        columns: dict[str, list[Any]] = {
            "group": [row.group for row in rows], "method": [row.method for row in rows],
            "version": [row.version for row in rows], "sample": [row.sample for row in rows],
            "sha256": [hashlib.sha256(row.sr).hexdigest() for row in rows], "sr": [row.sr for row in rows],
        }  # fmt: skip
        self._write("candidates", part, columns, ("sr",))
        self.__dict__.pop("candidates", None)
        self.__dict__.pop("_by_group", None)

    def _checked(
        self, row: NewInput, names: Mapping[str, int], seen: Iterable[tuple[str, str, Fingerprint]]
    ) -> Fingerprint:
        if row.split not in SPLITS or row.kind not in ("synthetic", "real"):
            raise Refusal(
                f"'{row.group}': expected a split of {', '.join(SPLITS)} and a kind of synthetic or real, got "
                f"'{row.split}' and '{row.kind}'"
            )
        if names[row.group]:
            raise Refusal(f"expected inputs of different names, got '{row.group}' twice")
        shown = row.hr or row.lr
        if shown is None:
            raise Refusal(f"'{row.group}': expected a picture, of LR or of HR, got neither")
        own = fingerprint(shown)
        for other, split, known in seen:
            if split != row.split and own.same_as(known):
                raise Refusal(
                    f"'{row.group}' ({row.split}) and '{other}' ({split}) are one picture: what a judge is measured on "
                    "must not be what it learnt from; take one of them out"
                )
        return own

    def _seen(self) -> Iterator[tuple[str, str, Fingerprint]]:
        for own in self.inputs:
            yield own.group, own.split, Fingerprint.from_text(own.sha256, own.phash)

    # Parquet

    def _part(self, table: str, part: str) -> Path:
        return self.folder / table / f"part-{part}.parquet"

    def _rows(self, table: str, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], tuple[Path, int]]]:
        for path in sorted((self.folder / table).glob("part-*.parquet")):
            for i, row in enumerate(pq.read_table(path, columns=list(columns)).to_pylist()):
                yield row, (path, i)

    def _picture(self, at: tuple[Path, int], column: str) -> bytes | None:
        path, row = at
        if self._open is None or self._open[0] != path:
            self._open = (path, pq.ParquetFile(path))
        cell = self._open[1].read_row_group(row, columns=[column]).column(0)[0].as_py()
        return None if cell is None else cell["bytes"]

    _open: tuple[Path, pq.ParquetFile] | None = None

    def _write(self, table: str, part: str, columns: Mapping[str, list[Any]], pictures: Sequence[str]) -> None:
        kinds = {name: _PICTURE if name in pictures else _TYPES.get(name, pa.string()) for name in columns}
        values = {
            name: [None if cell is None else {"bytes": cell, "path": None} for cell in column]
            if name in pictures
            else column
            for name, column in columns.items()
        }
        schema = pa.schema(list(kinds.items()), metadata={"huggingface": json.dumps({"info": {"features": {
            name: {"_type": "Image"} if name in pictures else {"dtype": str(kind), "_type": "Value"}
            for name, kind in kinds.items()
        }}})})  # fmt: skip
        file = BytesIO()
        pq.write_table(pa.table(values, schema=schema), file, row_group_size=1, compression="none")
        write_whole(self._part(table, part), file.getvalue())


_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {"sample": pa.int64()}
