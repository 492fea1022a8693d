"""Public data sets in their own layouts: pictures, and what people said of them. They are for non-commercial use, each
under terms of its own, and stay where they are; what is imported is a copy in a set of ours.

The layouts are those that the authors of A-FINE (arXiv 2503.11221) describe with their code and data.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from srgym.envs.images import image_size, read_image
from srgym.errors import MissingFile, Refusal
from srgym.files import to_png
from srgym.registry import quoted
from srgym.runners.judges.benchmark import ORIGINAL
from srgym.runners.judges.leakage import SRIQA

__all__ = ["LAYOUTS", "ImportedGroup"]


@dataclass(frozen=True)
class ImportedGroup:
    """Pictures of one scene.

    Attributes:
        kind: "synthetic" where `hr` is what the candidates were made from, else "real".
        lr: PNG; where the set has none, the original at a quarter of its sides, bicubic. hr: PNG, where known.
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
    """SRIQA-Bench: `MOS/SCENE.txt` of lines `SCENE_METHODx4.png,SCORE` (comma or space), eleven of them, the original's
    being `SCENE_Original.png`; pictures in `images/METHOD/`, LR as `LRImages/SCENE_Original.png`. All is for testing.
    """
    for table in _files(folder, "MOS/*.txt", "SRIQA-Bench's MOS/*.txt"):
        scored = {}
        for number, words in _rows(table, 2):
            scene, _, method = Path(words[0]).stem.partition("_")
            path = _first(folder / "images" / name / words[0] for name in (method.removesuffix("x4"), method))
            if scene != table.stem or method.removesuffix("x4") in scored:
                raise Refusal(f"{table}, line {number}: expected another picture of '{table.stem}', got '{words[0]}'")
            scored[method.removesuffix("x4")] = (path, _number(words[1], table, number))
        missing = [name for name in (*SRIQA, ORIGINAL) if name not in scored]
        if missing or len(scored) != len(SRIQA) + 1:
            raise Refusal(f"{table}: expected {len(SRIQA) + 1} pictures, got {len(scored)} ({quoted(missing)} missing)")
        hr, lr = _png(scored[ORIGINAL][0]), _png(folder / "LRImages" / f"{table.stem}_{ORIGINAL}.png")
        order = (*SRIQA, ORIGINAL)  # the tables go from the best to the worst
        candidates = tuple((method, _png(scored[method][0])) for method in order)
        score = tuple(scored[method][1] for method in order)
        yield ImportedGroup(table.stem, "synthetic", "test", lr, hr, candidates, score)


def diffiqa(folder: Path) -> Iterator[ImportedGroup]:
    """DiffIQA: `images/NN/SCENE_NN.png` and `images/Original/SCENE.png`, and three people's `A|B|C/NN/SCENE_NN.json`,
    whose `Picture_AI.Label` says whether a picture is better than its original (Positive), as good (Similar) or worse
    (Negative); in the folders Train, Validation and Test, or without them, when all is for training.

    The majority of the three counts; where there is none, the picture is left out. Two pictures are compared through
    the original: one that is better than it is better than one that isn't; of two that are both better, or both worse,
    nobody says.
    """
    for split, place in _splits(folder):
        for scene, votes in _votes(place).items():
            level = {ORIGINAL: _LEVELS["Similar"]}
            for kind, said in votes.items():
                label, times = Counter(said.values()).most_common(1)[0]
                if times > 1:
                    level[kind] = _LEVELS[label]
            names = {kind: scene if kind == ORIGINAL else f"{scene}_{kind}" for kind in level}
            candidates = tuple((kind, _png(place / "images" / kind / f"{name}.png")) for kind, name in names.items())
            lr = _reduced(candidates[0][1])
            better = _through(np.array(list(level.values())))
            yield ImportedGroup(scene, "real", split, lr, None, candidates, better=better)


_LEVELS = {"Positive": 1, "Similar": 0, "Negative": -1}


def _votes(place: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What each of three people said, by scene and folder of pictures."""
    votes: dict[str, dict[str, dict[str, str]]] = {}
    for file in _files(place, "**/[ABC]/[0-9][0-9]/*.json", "DiffIQA's labels A|B|C/NN/*.json"):
        scene, _, kind = file.stem.rpartition("_")
        if kind != file.parent.name:
            raise Refusal(f"{file}: expected the label of a picture SCENE_{file.parent.name}, by its name")
        try:
            label = json.loads(file.read_text(encoding="utf-8"))["Picture_AI"]["Label"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{file}: expected JSON with Picture_AI.Label in it, got another") from error
        if label not in _LEVELS:
            raise Refusal(f"{file}: expected a label of {', '.join(_LEVELS)}, got '{label}'")
        said = votes.setdefault(scene, {}).setdefault(kind, {})
        said[file.parent.parent.name] = label
    for scene, kinds in votes.items():
        for kind, said in kinds.items():
            if missing := [who for who in "ABC" if who not in said]:
                raise MissingFile(f"{place}: expected three labels of {scene}_{kind}, {quoted(missing)} gave none")
    return votes


def _through(level: NDArray[np.int64]) -> NDArray[np.float64]:
    """Which of two is better, [N, N], by how each compares with the original."""
    better = (1 + np.sign(level[:, None] - level)) / 2
    return np.where((better == 0.5) & (level != 0), np.nan, better)


def scored(folder: Path) -> Iterator[ImportedGroup]:
    """PIPAL, TID2013 and KADID-10k: tables of lines `PICTURE,REFERENCE,SCORE` with the pictures in `images/`. They are
    `Train|Validation|Test/MOS/*.txt`, or, all for training, a `.csv` in the folder, as KADID-10k has it, with a header.
    """
    pictures = {
        path.name.lower(): path for path in _files(folder, "images/*", "pictures in images/")
    }  # TID2013 mixes cases
    for split, place in _splits(folder):
        scenes: dict[str, dict[str, tuple[Path, float]]] = {}
        for table in _files(place, "*.csv" if place == folder else "MOS/*.txt", "tables of scores"):
            for number, words in _rows(table, 3):
                if number == 1 and words[0] == "dist_img":
                    continue  # KADID-10k's header
                for name in words[:2]:
                    if name.lower() not in pictures:
                        raise MissingFile(f"{table}, line {number}: {folder / 'images' / name} isn't there")
                own = scenes.setdefault(words[1], {})
                method = Path(words[0]).stem.lower().removeprefix(f"{Path(words[1]).stem.lower()}_")
                if method in own:
                    raise Refusal(f"{table}, line {number}: '{words[0]}' has a score already")
                own[method] = (pictures[words[0].lower()], _number(words[2], table, number))
        for reference, rows in scenes.items():
            hr = _png(pictures[reference.lower()])
            candidates = tuple((method, _png(path)) for method, (path, _) in rows.items())
            score = tuple(value for _, value in rows.values())
            yield ImportedGroup(Path(reference).stem, "synthetic", split, _reduced(hr), hr, candidates, score)


LAYOUTS: Mapping[str, Callable[[Path], Iterator[ImportedGroup]]] = {
    "sriqa": sriqa, "diffiqa": diffiqa, "pipal": scored, "kadid": scored,
}  # fmt: skip
"""By name: what reads a folder of that layout, scene by scene."""


def _splits(folder: Path) -> list[tuple[str, Path]]:
    """The folders of the splits that there are; without any, the whole for training."""
    found = [(name.lower(), folder / name) for name in ("Train", "Validation", "Test") if (folder / name).is_dir()]
    return found or [("train", folder)]


def _files(folder: Path, pattern: str, what: str) -> list[Path]:
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        raise MissingFile(f"{folder}: expected {what}, found none")
    return files


def _rows(table: Path, least: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table with their numbers, cut at commas, or at spaces where there are none."""
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = [word.strip() for word in line.split("," if "," in line else None)]
        if words and len(words) < least:
            raise Refusal(f"{table}, line {number}: expected {least} columns, got '{line:.60}'")
        if words:
            yield number, words


def _number(text: str, table: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise Refusal(f"{table}, line {number}: expected a score, got '{text}'")
    return value


def _first(places: Iterator[Path]) -> Path:
    """The first that exists, else the first; the authors' text and code name a folder in two ways."""
    known = list(places)
    return next((place for place in known if place.is_file()), known[0])


def _reduced(png: bytes) -> bytes:
    """A quarter of a picture's sides, bicubic: what stands for LR where a set has none."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        size = (max(1, image.width // 4), max(1, image.height // 4))
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def _png(path: Path) -> bytes:
    """A picture as a PNG file, one that is one already to the byte.

    Raises:
        BadImage: naming a file that is none, or isn't there.
    """
    if path.suffix.lower() != ".png":
        return to_png(read_image(path))
    image_size(path)
    return path.read_bytes()
