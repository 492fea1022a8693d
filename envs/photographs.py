"""The default contexts: real colour photographs that are on the disk already, inside three libraries that srgym needs.

Nothing is downloaded: the files lie in the libraries' packages and are opened by their paths.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from srgym.envs.crops import Colours, Crop, enlarge, random_colours, random_crop, random_zoom, tiles, whole
from srgym.envs.degradation import degrade, mix_seed
from srgym.envs.images import image_files, read_image, to_float
from srgym.envs.leaves import dead_leaves
from srgym.envs.sources import Sample, Source
from srgym.errors import MissingFile, Refusal

__all__ = ["PHOTOGRAPHS", "Photograph", "Photographs"]

_PROCEDURAL, _FOLDER = "srgym", ""  # libraries of what is made, and of what a user has
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}


@dataclass(frozen=True)
class Photograph:
    """A shipped photograph: where it lies, which split it belongs to, and what it shows."""

    name: str
    library: str
    file: str
    split: Literal["train", "validation", "test"]
    prompt: str
    scientific: bool = False


# Split once, by whole photographs; no crop of a test photograph is ever in training.
# - Test has four scenes, since an interval over photographs rests on how many there are; they differ in what is hard:
#   fur, glaze and wood grain, architecture with foliage, and lattices on a smooth sky.
# - Validation has a flower on a blurred ground and a portrait with a flag: smooth and sharp parts in both.
# - Training has the most detailed scene, a portrait, and the grey photographs, whose textures and skies the colour ones
#   lack. The motorcycle's two files are one scene from two viewpoints, so they can't be in different splits.
# - Scientific images have none of a photograph's statistics, so they are in training alone and with a quarter of the
#   crops: most of the retina and the deep field is flat.
PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "astronaut.png", "train", "an astronaut in an orange space suit before a flag"),
    Photograph("motorcycle_left", "skimage", "motorcycle_left.png", "train", "a red motorcycle in a workshop"),
    Photograph("motorcycle_right", "skimage", "motorcycle_right.png", "train", "a red motorcycle in a workshop"),
    Photograph("camera", "skimage", "camera.png", "train", "a photographer with a camera on a tripod in a field"),
    Photograph("coins", "skimage", "coins.png", "train", "rows of ancient coins"),
    Photograph("moon", "skimage", "moon.png", "train", "craters of the moon"),
    Photograph("brick", "skimage", "brick.png", "train", "a brick wall"),
    Photograph("grass", "skimage", "grass.png", "train", "a lawn from above"),
    Photograph("gravel", "skimage", "gravel.png", "train", "gravel from above"),
    Photograph("retina", "skimage", "retina.jpg", "train", "a retina with its blood vessels", scientific=True),
    Photograph("ihc", "skimage", "ihc.png", "train", "stained tissue under a microscope", scientific=True),
    Photograph("hubble", "skimage", "hubble_deep_field.jpg", "train", "galaxies in a dark sky", scientific=True),
    Photograph("flower", "sklearn", "flower.jpg", "validation", "an orange dahlia before dark leaves"),
    Photograph("hopper", "matplotlib", "grace_hopper.jpg", "validation", "a naval officer in uniform before a flag"),
    Photograph("chelsea", "skimage", "chelsea.png", "test", "the face of a tabby cat"),
    Photograph("coffee", "skimage", "coffee.png", "test", "an espresso on a red saucer on a wooden table"),
    Photograph("china", "sklearn", "china.jpg", "test", "a Chinese tower above trees and a lake"),
    Photograph("rocket", "skimage", "rocket.jpg", "test", "a rocket between lattice towers at dusk"),
)

SPLITS = ("train", "validation", "test")


class Photographs(Source):
    """Crops of the shipped photographs, or these whole.

    In `train` a crop lies at a random place in one of eight orientations, drawn from (seed, id). In `validation` and
    `test` the crops are tiles that don't overlap, the same whatever the seed. What the degradation draws depends on
    (seed, id) in all three. Samples are ordered by photograph: "chelsea/0", "chelsea/1", ...

    Args:
        split: "train", "validation" or "test".
        preset: how LR is made; a name of `degradation.PRESETS`.
        scale: how many times larger HR is.
        size: side of an HR crop in pixels, a multiple of `scale`; None gives each photograph whole, once.
        crops: how many of each photograph. In training a scientific image has a quarter as many; in validation and
            test there are at most as many tiles as fit side by side (6 to 20 of 128 pixels).
        seed: of places, orientations and degradations.
        augment: draw new colours for half of the training crops (channels permuted, each gained by .7 to 1.3), and
            enlarge half of them by 1 to 2: a few photographs have neither many colours nor much softness.
        leaves: dead-leaves pictures (see `dead_leaves`) that training has besides, as often as each photograph: a few
            photographs haven't many smooth surfaces either.
        more: a folder with further photographs under train/, validation/ and test/ (`tools/photographs.py` makes one),
            taken as the shipped ones are; they have no prompt.

    Raises:
        ValueError: for an argument out of its range.
        FileNotFoundError: when a library lacks its photograph.
    """

    def __init__(
        self,
        split: str = "train",
        preset: str = "mild",
        scale: int = 4,
        size: int | None = 128,
        crops: int = 2000,
        seed: int = 0,
        augment: bool = False,
        leaves: int = 0,
        more: str | PathLike[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise Refusal(f"expected a split of {', '.join(SPLITS)}, got '{split}'")
        if crops < 1:
            raise Refusal(f"expected at least 1 crop of each photograph, got {crops}")
        probe = torch.zeros(1, 3, max(scale, 1), max(scale, 1))
        degrade(probe, preset, seed=0, scale=scale)  # refuses a bad preset or scale now
        self.split, self.preset, self.scale, self.seed, self.augment = split, preset, scale, seed, augment
        self.photographs = [p for p in PHOTOGRAPHS if p.split == split]
        self.photographs += _further(more, split)
        if leaves < 0:
            raise Refusal(f"leaves is at least 0, got {leaves}")
        if split == "train":
            self.photographs += [
                Photograph(f"leaves_{i}", _PROCEDURAL, str(i), "train", "discs") for i in range(leaves)
            ]
        self.provides = frozenset({"lr", "hr", "prompt", "degradation"})
        shortest = min(min(_pixels(p).shape[1:]) for p in self.photographs)
        if size is not None and not (scale <= size <= shortest and size % scale == 0):
            raise Refusal(
                f"expected size as a multiple of the scale {scale} up to {shortest}, the shortest side in '{split}', "
                f"got {size}"
            )
        self._side = size
        self.size = None if size is None else (size // scale, size // scale)
        self._ends = list(accumulate(self._count(p, crops) for p in self.photographs))
        self._tiles = [] if size is None or split == "train" else self._all_tiles(size, crops)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        photograph, number = self._find(index)
        if self._side is None:
            return self.full(index)
        name = f"{photograph.name}/{number}"
        if self.split != "train":
            return self._sample(photograph, name, self._tiles[index])
        height, width = _pixels(photograph).shape[1:]
        zoom = random_zoom(self.seed, name) if self.augment else 1.0
        crop = random_crop(height, width, round(self._side / zoom), self.seed, name)
        colours = random_colours(self.seed, name) if self.augment else None
        return self._sample(photograph, name, crop, colours)

    def prompts(self) -> list[str]:
        """The different prompts, from the table."""
        return sorted({photograph.prompt for photograph in self.photographs} - {""})

    def full(self, index: int) -> Sample:
        """The whole photograph that sample `index` is a crop of, its sides cut to multiples of the scale."""
        photograph, _ = self._find(index)
        height, width = _pixels(photograph).shape[1:]
        return self._sample(photograph, photograph.name, whole(height, width, self.scale))

    def _count(self, photograph: Photograph, crops: int) -> int:
        if self._side is None:
            return 1
        if self.split == "train":
            return max(1, crops // 4) if photograph.scientific else crops
        height, width = _pixels(photograph).shape[1:]
        return len(tiles(height, width, self._side, crops))

    def _all_tiles(self, size: int, crops: int) -> list[Crop]:
        shapes = [_pixels(photograph).shape for photograph in self.photographs]
        return [tile for _, height, width in shapes for tile in tiles(height, width, size, crops)]

    def _find(self, index: int) -> tuple[Photograph, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, got {index}")
        place = bisect_right(self._ends, index)
        return self.photographs[place], index - (self._ends[place - 1] if place else 0)

    def _sample(self, photograph: Photograph, name: str, crop: Crop, colours: Colours | None = None) -> Sample:
        hr = to_float(crop.of(_pixels(photograph)))
        if self._side is not None and crop.height != self._side and self.split == "train":
            hr = enlarge(hr, self._side)
        if colours is not None:
            hr = colours.of(hr)
        lr, records = degrade(hr[None], self.preset, seed=[mix_seed(self.seed, name)], scale=self.scale)
        return Sample(name, lr[0], hr, photograph.prompt or None, records[0])


def _further(folder: str | PathLike[str] | None, split: str) -> list[Photograph]:
    if folder is None:
        return []
    place = Path(folder) / split
    if not place.is_dir():
        raise MissingFile(f"more={folder}: expected a folder with {', '.join(SPLITS)} in it, found no {place}")
    shipped = {photograph.name for photograph in PHOTOGRAPHS}
    listed = [Photograph(path.stem, _FOLDER, str(path), split, "") for path in image_files(place)]  # type: ignore[arg-type]
    taken = [photograph.name for photograph in listed if photograph.name in shipped]
    if taken:
        raise Refusal(f"more={folder}: '{taken[0]}' is the name of a photograph that ships; give it another")
    return listed


@cache
def _pixels(photograph: Photograph) -> Tensor:
    """uint8 [3, H, W], decoded once in a process."""
    if photograph.library == _PROCEDURAL:
        return dead_leaves(int(photograph.file))
    if photograph.library == _FOLDER:
        return read_image(Path(photograph.file))
    spec = find_spec(photograph.library)
    if spec is None or spec.origin is None:
        raise MissingFile(f"the photograph '{photograph.name}' ships with {photograph.library}, which isn't installed")
    path = Path(spec.origin).parent / _FOLDERS[photograph.library] / photograph.file
    if not path.is_file():
        raise MissingFile(
            f"expected the photograph '{photograph.name}' in {photograph.library}, at {path}; it isn't there"
        )
    return read_image(path)
