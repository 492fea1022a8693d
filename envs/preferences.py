"""Preference datasets: a context, the image that was preferred, the one that wasn't. Read for offline DPO, and written.

Two formats, told apart by the name:

FOLDER/                      a folder
    context/NAME.png         the LR image
    winner/NAME.png          the preferred SR image; NAME is a pair's, so a context with several pairs is there again
    loser/NAME.png           the other one
    pairs.csv                optional: name, id, prompt, gap (empty where unknown)

FILE.parquet                 one pair a row
    context, winner, loser   the encoded image file (binary, or a struct with `bytes`)
    id, prompt, gap          optional: string, string, double

Winner and loser have one size, the context's times a whole number that is the same for all pairs. `id` says which
photograph a pair belongs to ("photograph/crop"), `gap` by how much the winner was scored higher. What is written is
8-bit PNG.

On the command line, with a reward that needs no ground truth for the evaluation alone:

    srgym train env=preferences env.path=FOLDER agent=dpo agent.pairs=offline reward=random heldout=null
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensordict import TensorDict
from torch import Tensor

from srgym.envs.images import BadImage, image_files, image_size, read_image, to_float
from srgym.envs.inventory import split_names
from srgym.envs.sources import Sample, Source
from srgym.errors import MissingFile, Refusal
from srgym.files import to_png

__all__ = ["Preference", "Preferences", "write_preferences"]

PARTS = ("context", "winner", "loser")


@dataclass(frozen=True)
class Preference:
    """One pair.

    Attributes:
        id: "photograph/crop" of the context.
        lr: [3, h, w] in [0, 1].
        win, lose: [3, H, W] in [0, 1].
        prompt: the context's, or None.
        gap: by how much the winner was scored higher, or None.
    """

    id: str
    lr: Tensor
    win: Tensor
    lose: Tensor
    prompt: str | None = None
    gap: float | None = None


# Writing


def write_preferences(path: str | Path, pairs: Iterable[Preference]) -> int:
    """Write pairs to `path`: a Parquet file if it ends in .parquet, else a folder. Returns how many.

    Raises:
        ValueError: if there is something at `path` already.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise Refusal(f"{path} is there already: choose another place for the preferences, or remove it")
    return _write_parquet(path, pairs) if path.suffix == ".parquet" else _write_folder(path, pairs)


def _write_folder(folder: Path, pairs: Iterable[Preference]) -> int:
    for part in PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = []
    for pair in pairs:
        name = f"{len(rows):06d}"
        for part, image in zip(PARTS, (pair.lr, pair.win, pair.lose), strict=True):
            (folder / part / f"{name}.png").write_bytes(to_png(image))
        rows.append([name, pair.id, pair.prompt, pair.gap])
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["name", "id", "prompt", "gap"], *rows])
    return len(rows)


def _write_parquet(path: Path, pairs: Iterable[Preference]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, images = (pa.string(), pa.float64()), pa.binary()
    schema = pa.schema(
        [("id", texts[0]), *((part, images) for part in PARTS), ("prompt", texts[0]), ("gap", texts[1])]
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, count = path.with_suffix(".partial"), 0
    with pq.ParquetWriter(draft, schema) as writer:
        for pair in pairs:
            encoded = dict(zip(PARTS, map(to_png, (pair.lr, pair.win, pair.lose)), strict=True))
            row = {"id": pair.id, **encoded, "prompt": pair.prompt, "gap": pair.gap}
            writer.write_table(pa.Table.from_pylist([row], schema))
            count += 1
    draft.replace(path)
    return count


# Reading


@dataclass(frozen=True)
class _Row:
    """Where a pair's images are, each a file or the bytes of one, and what is known of it."""

    name: str
    images: tuple[Any, Any, Any]
    id: str
    prompt: str | None
    gap: float | None


class Preferences(Source):
    """A preference dataset as a source of contexts, and of their pairs.

    Every image's header is read once, so that a pair that doesn't fit is named before training.

    Args:
        path: a folder or a Parquet file, see the module.
        scale: what the pairs' must be; None: whatever they have.
        split: "train", "validation", "test" (80, 10 and 10 percent of the photographs, by name) or "all".

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: naming the pair, for one that is incomplete or whose sizes don't fit.
    """

    def __init__(self, path: str | Path | None, scale: int | None = None, split: str = "all") -> None:
        if path is None:
            raise Refusal("preferences need env.path, a folder or a Parquet file; got none")
        self.path = Path(path)
        if not self.path.exists():
            raise MissingFile(
                f"expected preferences at {self.path}, a folder with {', '.join(PARTS)} or a Parquet file; found none"
            )
        self._rows = _read_folder(self.path) if self.path.is_dir() else _read_parquet(self.path)
        if not self._rows:
            raise Refusal(f"expected at least one pair in {self.path}, got none")
        sizes = [_check_sizes(row, self.path) for row in self._rows]
        self.scale, self.size = self._common(sizes)
        if scale not in (None, self.scale):
            raise Refusal(f"{self.path}: expected pairs of scale {scale}, got pairs of scale {self.scale}")
        photographs = {_photograph(row) for row in self._rows}
        kept = set(split_names(photographs, split, str(self.path)))
        self._rows = [row for row in self._rows if _photograph(row) in kept]
        prompts = {"prompt"} if any(row.prompt is not None for row in self._rows) else set()
        self.provides = frozenset({"lr", "preference"} | prompts)

    def _common(self, sizes: list[tuple[int, tuple[int, int]]]) -> tuple[int, tuple[int, int] | None]:
        scale, size = sizes[0]
        for row, (other, _) in zip(self._rows, sizes, strict=True):
            if other != scale:
                raise Refusal(
                    f"{self.path}: expected one scale for all pairs, got {scale} and, in '{row.name}', {other}"
                )
        return scale, size if all(other == size for _, other in sizes) else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[self._place(index)]
        return Sample(row.id, _image(row.images[0], row.name), prompt=row.prompt)

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"expected an index of 0 to {len(self._rows) - 1}, got {index}")
        return index

    def prompts(self) -> list[str]:
        return sorted({row.prompt or "" for row in self._rows})

    def pair(self, index: int) -> Preference:
        """Pair number `index`, whole."""
        row = self._rows[self._place(index)]
        lr, win, lose = (_image(image, row.name) for image in row.images)
        return Preference(row.id, lr, win, lose, row.prompt, row.gap)

    def pairs(self, index: Tensor) -> TensorDict:
        """What offline DPO needs beside contexts: index int64 [N] to TensorDict [N] of `win`, `lose` [N, 3, H, W]."""
        drawn = {int(i): self.pair(int(i)) for i in index.unique()}  # type: ignore[no-untyped-call]
        images = {part: torch.stack([getattr(drawn[int(i)], part) for i in index]) for part in ("win", "lose")}
        return TensorDict(images, batch_size=[len(index)])


def _photograph(row: _Row) -> str:
    return row.id.rpartition("/")[0] or row.id


def _read_folder(folder: Path) -> list[_Row]:
    parts = []
    for part in PARTS:
        files = {
            file.relative_to(folder / part).with_suffix("").as_posix(): file for file in image_files(folder / part)
        }
        parts.append(files)
    known = _read_table(folder / "pairs.csv")
    rows = []
    for name in sorted(set().union(*parts, known)):
        lacking = [part for part, files in zip(PARTS, parts, strict=True) if name not in files]
        if lacking:
            raise Refusal(
                f"{folder}: pair '{name}' has no image in {' and '.join(lacking)}; a pair needs all of {PARTS}"
            )
        entry = known.get(name, {})
        gap = entry.get("gap")
        images = tuple(files[name] for files in parts)
        label, prompt = entry.get("id") or name, entry.get("prompt") or None
        rows.append(_Row(name, images, label, prompt, float(gap) if gap else None))  # type: ignore[arg-type]
    return rows


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if "name" not in (reader.fieldnames or ()):
            raise Refusal(f"{path}: expected the columns name, id, prompt, gap, got {reader.fieldnames}")
        return {row["name"]: row for row in reader}


def _read_parquet(path: Path) -> list[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise Refusal(
            f"{path}: expected a Parquet file of preferences, got one that can't be read ({error})"
        ) from error
    lacking = [part for part in PARTS if part not in table.column_names]
    if lacking:
        raise Refusal(f"{path}: expected the columns {', '.join(PARTS)}, got {', '.join(table.column_names)}")
    rows = []
    for number, row in enumerate(table.to_pylist()):
        images = tuple(row[part]["bytes"] if isinstance(row[part], dict) else row[part] for part in PARTS)
        if any(image is None for image in images):
            raise Refusal(f"{path}: row {number} lacks an image; a pair needs all of {PARTS}")
        gap = row.get("gap")
        name = f"row {number}"
        rows.append(_Row(name, images, row.get("id") or name, row.get("prompt"), None if gap is None else float(gap)))
    return rows


def _image(held: Any, name: str) -> Tensor:
    """A file or the bytes of one as float32 [3, H, W] in [0, 1]."""
    if isinstance(held, Path):
        return to_float(read_image(held))
    with _opened(held, name) as image:
        return to_float(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())


def _opened(held: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(held))
    except Exception as error:  # Pillow's decoders raise of many kinds on damaged data
        raise BadImage(f"{name}: expected the bytes of an image file, got others ({error})") from error


def _size(held: Any, name: str) -> tuple[int, int]:
    if isinstance(held, Path):
        return image_size(held)
    with _opened(held, name) as image:
        return image.size[1], image.size[0]


def _check_sizes(row: _Row, path: Path) -> tuple[int, tuple[int, int]]:
    """A pair's scale and its context's (h, w)."""
    context, win, lose = (_size(image, row.name) for image in row.images)
    scale = win[0] // context[0]
    if win != lose or scale < 1 or win != (scale * context[0], scale * context[1]):
        raise Refusal(
            f"{path}: pair '{row.name}' must have a winner and a loser of one size, a whole number of times the "
            f"context's; got context {context}, winner {win}, loser {lose} (height, width)"
        )
    return scale, context
