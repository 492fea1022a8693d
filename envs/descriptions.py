"""What is said of an image and of its degradation: the texts of a reasoned super-resolution's documents.

Two kinds of descriptions: "statistics" says in a few fixed sentences what an image's pixels show, so that understanding
can be measured without a language model; a file of JSON lines holds anybody's, such as a served model's (`srgym
describe`), one object a context:

    {"id": "photograph/crop", "captions": ["rough ...", "middle ...", "final ..."], "tags": ["roof", "tree"]}
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.document import TEXTS
from srgym.envs.sources import Sample
from srgym.errors import MissingFile, Refusal
from srgym.rewards.realsr_r1.degradation import describe

__all__ = ["LEVELS", "STATISTICS", "Description", "Descriptions", "Statistics", "Written", "make_descriptions"]

STATISTICS = "statistics"
LEVELS = ("rough", "middle", "final")

# Terciles over 6,200 augmented crops of 64 pixels, of the photographs that the compact policy is trained on: no word is
# rare.
_LUMA, _FINE, _SPREAD, _CHROMA = (0.367, 0.549), (0.0060, 0.0324), (0.0380, 0.1244), (0.0081, 0.0328)
_UNEVEN = 0.06  # of luma, between two halves
_COHERENT = 0.35
_HUES = ((15, "red"), (45, "brown"), (70, "yellow"), (165, "green"), (260, "blue"), (330, "purple"), (360, "red"))


@dataclass(frozen=True)
class Description:
    """What an image shows, told in three rounds, each building on the one before; and its main things, by a word."""

    captions: tuple[str, str, str]
    tags: tuple[str, ...]

    def texts(self, degradation: Mapping[str, Any] | None) -> dict[str, str] | None:
        """A document's texts, by `srgym.document.TEXTS`; None where the degradation isn't known."""
        if degradation is None:
            return None
        return dict(zip(TEXTS, (describe(degradation), *self.captions), strict=True))


class Descriptions(ABC):
    """Descriptions of samples."""

    needs = frozenset[str]()

    @abstractmethod
    def __call__(self, sample: Sample) -> Description:
        """Of one sample. Raises ValueError where there is none."""

    def texts(self, sample: Sample) -> dict[str, str] | None:
        """`Description.texts` of one sample."""
        return self(sample).texts(sample.degradation)


class Statistics(Descriptions):
    """In sentences that follow from ground truth's pixels alone."""

    needs = frozenset({"hr"})

    def __call__(self, sample: Sample) -> Description:
        assert sample.hr is not None
        words = _words(sample.hr)
        rough = [*words["light"], *words["colour"], *words["surface"]]
        middle = [*rough, *words["contrast"], *words["side"]]
        final = [*middle, *words["lines"], *words["colours"]]
        tags = (words["light"][0].split()[0], words["colour"][0].split()[-1], words["surface"][0].split()[1])
        captions = (" ".join(rough), " ".join(middle), " ".join(final))
        return Description(captions, tuple(tag.strip(".").lower() for tag in tags))


class Written(Descriptions):
    """Those of a file of JSON lines.

    Raises:
        FileNotFoundError: if there is none. ValueError: naming the first line that isn't as it should be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFile(
                f"descriptions={path}: expected 'statistics', or a file of JSON lines (srgym describe writes one), "
                "found neither"
            )
        self._held: dict[str, Description] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                name, description = _read(line, f"{path}, line {number}")
                self._held[name] = description

    def __call__(self, sample: Sample) -> Description:
        if sample.id not in self._held:
            raise Refusal(f"expected a description of '{sample.id}' in {self.path}, which has {len(self._held)} others")
        return self._held[sample.id]


def make_descriptions(spec: str | None) -> Descriptions | None:
    """From "statistics", a file's path, or None for none."""
    if spec is None:
        return None
    return Statistics() if spec == STATISTICS else Written(spec)


def _read(line: str, where: str) -> tuple[str, Description]:
    try:
        held: Any = json.loads(line)
    except ValueError as error:
        raise Refusal(f"{where}: expected a JSON object, got {line!r:.60}") from error
    fields = held if isinstance(held, dict) else {}
    name, captions, tags = (fields.get(key) for key in ("id", "captions", "tags"))
    if not (isinstance(name, str) and _are_texts(captions) and _are_texts(tags) and len(captions) == len(LEVELS)):
        raise Refusal(f"{where}: expected an object of 'id', three 'captions' and 'tags', got {line!r:.80}")
    return name, Description((captions[0], captions[1], captions[2]), tuple(tags))


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# What pixels show


def _words(hr: Tensor) -> dict[str, list[str]]:
    """Sentences about an image [3, H, W] in [0, 1], by what they are about."""
    image = hr.float()
    red, green, blue = image
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    smooth = F.avg_pool2d(F.pad(luma[None, None], (2, 2, 2, 2), mode="reflect"), 5, 1)[0, 0]
    chroma = torch.stack([blue - luma, red - luma]).flatten(1).std(1).mean()
    light = ("Dark.", "Dim light.", "Bright.")[_third(luma.mean(), _LUMA)]
    surface = ("smooth", "grained", "rough")[_third((luma - smooth).std(), _FINE)]
    contrast = ("Low", "Medium", "High")[_third(luma.std(), _SPREAD)]
    colours = ("Few", "Several", "Many")[_third(chroma, _CHROMA)]
    return {
        "light": [light],
        "colour": [f"Mostly {_colour(image.mean((1, 2)).tolist())}."],
        "surface": [f"A {surface} surface."],
        "contrast": [f"{contrast} contrast."],
        "side": [_side(luma)],
        "lines": [f"{_lines(luma)} lines."],
        "colours": [f"{colours} colours."],
    }


def _third(value: Tensor, limits: Sequence[float]) -> int:
    return sum(float(value) > limit for limit in limits)


def _colour(rgb: Sequence[float]) -> str:
    red, green, blue = rgb
    span = max(rgb) - min(rgb)
    if span < 0.12 * max(*rgb, 0.2):
        return "grey"
    if max(rgb) == red:
        hue = 60 * (((green - blue) / span) % 6)
    elif max(rgb) == green:
        hue = 60 * ((blue - red) / span + 2)
    else:
        hue = 60 * ((red - green) / span + 4)
    return next(name for limit, name in _HUES if hue <= limit)


def _side(luma: Tensor) -> str:
    rows, columns = luma.shape[0] // 2, luma.shape[1] // 2
    down = float(luma[rows:].mean() - luma[:rows].mean())
    right = float(luma[:, columns:].mean() - luma[:, :columns].mean())
    if max(abs(down), abs(right)) < _UNEVEN:
        return "Even light."
    if abs(down) >= abs(right):
        return "Brighter below." if down > 0 else "Brighter above."
    return "Brighter on the right." if right > 0 else "Brighter on the left."


def _lines(luma: Tensor) -> str:
    """By the structure tensor of the whole image: its coherence, and the direction of its gradient."""
    dy, dx = luma[1:, :-1] - luma[:-1, :-1], luma[:-1, 1:] - luma[:-1, :-1]
    xx, yy, xy = (float((a * b).mean()) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    if math.hypot(xx - yy, 2 * xy) <= _COHERENT * (xx + yy):
        return "Mixed"
    angle = abs(0.5 * math.atan2(2 * xy, xx - yy))  # 0 is across vertical lines
    return "Vertical" if angle < math.pi / 8 else "Horizontal" if angle > 3 * math.pi / 8 else "Diagonal"
