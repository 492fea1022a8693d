"""Public data sets in their own layouts: pictures, and what people said of them. They are for non-commercial use, each
under terms of its own, and stay where they are; what is imported is a copy in a set of ours."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from srgym.errors import MissingFile, Refusal
from srgym.runners.judges.benchmark import ORIGINAL

__all__ = ["LAYOUTS", "ImportedGroup"]


@dataclass(frozen=True)
class ImportedGroup:
    """Pictures of one scene.

    Attributes:
        kind: "synthetic" where `hr` is what the candidates were made from, else "real".
        lr: PNG; where the set doesn't say, the original at a quarter of its sides, bicubic. hr: PNG, where known.
        candidates: method and PNG of each. score: people's mean opinion of each, higher is better, on the set's scale.
        better: [N, N], 1 where the first of two is better, 0 where the second is, 0.5 where neither, NaN where nobody
            says; None where there are scores alone.
    """

    name: str
    kind: Literal["synthetic", "real"]
    split: str
    lr: bytes
    hr: bytes | None
    candidates: tuple[tuple[str, bytes], ...]
    score: tuple[float, ...] | None = None
    better: NDArray[np.float64] | None = None


def sriqa(folder: Path) -> Iterator[ImportedGroup]:
    """SRIQA-Bench: `MOS/*.txt`, in every line a reference, a picture and its mean opinion score, separated by commas or
    space; a picture is named SCENE_METHODx4, and the original SCENE. All is for testing."""
    scenes: dict[str, list[tuple[str, Path, float]]] = {}
    low: dict[str, Path | None] = {}
    files = sorted((folder / "MOS").glob("*.txt"))
    if not files:
        raise MissingFile(f"{folder}: expected SRIQA-Bench's MOS/*.txt, found none")
    for file, number, words in ((f, n, w) for f in files for n, w in _lines(f)):
        if len(words) < 3:
            raise Refusal(
                f"{file}, line {number}: expected a reference, a picture and a score, got {' '.join(words)!r:.60}"
            )
        scene, _, method = Path(words[1]).stem.partition("_")
        own = (method.removesuffix("x4") or ORIGINAL, _found(folder, words[1], file), _number(words[-1], file, number))
        scenes.setdefault(scene, []).append(own)
        low[scene] = _maybe(folder, words[0])
    for scene, rows in sorted(scenes.items()):
        lr = low[scene]
        yield _group(scene, "real", "test", rows, lr=None if lr is None else _png(lr))


def diffiqa(folder: Path) -> Iterator[ImportedGroup]:
    """DiffIQA: `images/NN/*` and `images/Original/*`, and three people's `labels/A|B|C/NN/*.json`, whose
    `Picture_AI.Label` says whether a picture is better than its original (Positive), as good (Similar) or worse.

    The majority of the three counts. Two pictures are compared through the original: one that is better than it is
    better than one that isn't; of two that are both better, or both worse, nobody says. All is for training.
    """
    votes: dict[tuple[str, str], Counter[str]] = {}
    for file in sorted((folder / "labels").glob("[ABC]/*/*.json")):
        try:
            label = json.loads(file.read_text(encoding="utf-8"))["Picture_AI"]["Label"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{file}: expected Picture_AI.Label in it, found none") from error
        if label not in _BETTER:
            raise Refusal(f"{file}: expected one of {', '.join(_BETTER)}, got '{label}'")
        votes.setdefault((file.stem, file.parent.name), Counter())[label] += 1
    if not votes:
        raise MissingFile(f"{folder}: expected DiffIQA's labels/A|B|C/NN/*.json, found none")
    for scene in sorted({name for name, _ in votes}):
        told = {kind: count.most_common(2) for (name, kind), count in sorted(votes.items()) if name == scene}
        level = {
            kind: _BETTER[most[0][0]]
            for kind, most in told.items()
            if len(most) == 1 or most[0][1] > most[1][1]  # a majority
        }
        level = {ORIGINAL: 0.5, **level}
        rows = [(kind, _picture(folder / "images" / kind, scene), 0.0) for kind in level]
        values = np.array(list(level.values()))
        better = np.where(values[:, None] > values, 1.0, np.where(values[:, None] < values, 0.0, np.nan))
        alike = (values[:, None] == 0.5) & (values == 0.5)
        yield _group(scene, "real", "train", rows, better=np.where(alike, 0.5, better))


_BETTER = {"Positive": 1.0, "Similar": 0.5, "Negative": 0.0}


def scored(folder: Path) -> Iterator[ImportedGroup]:
    """PIPAL, KADID-10k and others of their kind: a table of pictures, references and scores (`x,ref,mos`, or more
    columns, with a header or none) in a .csv or .txt beside the pictures. Scenes go to training."""
    tables = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".txt")) if folder.is_dir() else []
    rows = [(file, n, words) for file in tables for n, words in _lines(file) if len(words) >= 3]
    scenes: dict[str, list[tuple[str, Path, float]]] = {}
    for file, number, words in rows:
        if number == 1 and not _is_number(words[2]):
            continue  # a header
        scene = Path(words[1]).stem
        method = Path(words[0]).stem.removeprefix(f"{scene}_")
        scenes.setdefault(words[1], []).append(
            (method, _found(folder, words[0], file), _number(words[2], file, number))
        )
    if not scenes:
        raise MissingFile(f"{folder}: expected a .csv or .txt of pictures, references and scores, found none")
    for reference, own in sorted(scenes.items()):
        hr = _png(_found(folder, reference, tables[0]))
        yield _group(Path(reference).stem, "synthetic", "train", own, hr=hr)


LAYOUTS: Mapping[str, Callable[[Path], Iterator[ImportedGroup]]] = {
    "sriqa": sriqa, "diffiqa": diffiqa, "pipal": scored, "kadid": scored,
}  # fmt: skip
"""By name: what reads a folder of that layout, scene by scene."""


def _group(
    name: str,
    kind: Literal["synthetic", "real"],
    split: str,
    rows: list[tuple[str, Path, float]],
    *,
    lr: bytes | None = None,
    hr: bytes | None = None,
    better: NDArray[np.float64] | None = None,
) -> ImportedGroup:
    candidates = tuple((method, _png(path)) for method, path, _ in rows)
    if lr is None:
        lr = _reduced(hr if hr is not None else dict(candidates).get(ORIGINAL, candidates[0][1]))
    score = None if better is not None else tuple(value for _, _, value in rows)
    return ImportedGroup(name, kind, split, lr, hr, candidates, score, better)


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if words := [word for word in re.split(r"[,\s]+", line.strip()) if word]:
            yield number, words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, file: Path, number: int) -> float:
    if not _is_number(text):
        raise Refusal(f"{file}, line {number}: expected a score, got '{text}'")
    return float(text)


def _maybe(folder: Path, name: str) -> Path | None:
    """A picture by the path that a table gives, in the folder or one below it."""
    places = [folder / name, *(own / name for own in sorted(folder.iterdir()) if own.is_dir())]
    return next((place for place in places if place.is_file()), None)


def _found(folder: Path, name: str, file: Path) -> Path:
    path = _maybe(folder, name)
    if path is None:
        raise MissingFile(f"{file} names {name}, and it isn't in {folder} or a folder in it")
    return path


def _picture(folder: Path, stem: str) -> Path:
    files = sorted(folder.glob(f"{stem}.*"))
    if not files:
        raise MissingFile(f"expected a picture '{stem}' in {folder}, found none")
    return files[0]


def _reduced(png: bytes) -> bytes:
    """A quarter of a picture's sides, bicubic: what stands for LR where a set doesn't say what that was."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        size = (max(1, image.width // 4), max(1, image.height // 4))
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def _png(path: Path) -> bytes:
    """A picture as a PNG file; one that is one already to the byte."""
    if path.suffix.lower() == ".png":
        return path.read_bytes()
    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()
