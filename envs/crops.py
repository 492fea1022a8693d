"""Which part of an image a context shows, and how it is varied for training."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.envs.degradation import mix_seed

__all__ = ["Colours", "Crop", "random_colours", "random_crop", "tiles", "whole"]


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, turned by quarter turns and mirrored."""

    top: int
    left: int
    height: int
    width: int
    turns: int = 0
    mirrored: bool = False

    def of(self, image: Tensor) -> Tensor:
        """The crop of an image [3, H, W], contiguous."""
        part = image[:, self.top : self.top + self.height, self.left : self.left + self.width]
        part = torch.rot90(part, self.turns, (1, 2))
        return (part.flip(2) if self.mirrored else part).contiguous()


def random_crop(height: int, width: int, size: int, seed: int, key: str) -> Crop:
    """A square at a random place in one of its eight orientations, by (seed, key)."""
    rng = np.random.default_rng(mix_seed(seed, f"crop/{key}"))
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return Crop(top, left, size, size, int(rng.integers(4)), bool(rng.random() < 0.5))


def tiles(height: int, width: int, size: int, most: int) -> list[Crop]:
    """Squares that don't overlap, spread evenly over an image: as many as fit side by side, or `most` of these."""
    rows, columns = height // size, width // size
    places = [divmod(i, columns) for i in range(rows * columns)]
    if most < len(places):
        places = [places[i * len(places) // most] for i in range(most)]
    return [Crop(_place(r, rows, height - size), _place(c, columns, width - size), size, size) for r, c in places]


def _place(number: int, of: int, room: int) -> int:
    return room // 2 if of == 1 else round(number * room / (of - 1))


def whole(height: int, width: int, multiple: int) -> Crop:
    """The whole image but for the margin that isn't a multiple of the scale, cut off at the bottom and the right."""
    return Crop(0, 0, height - height % multiple, width - width % multiple)


@dataclass(frozen=True)
class Colours:
    """New colours: channels permuted, then each multiplied by its gain."""

    order: tuple[int, ...]
    gains: tuple[float, ...]

    def of(self, image: Tensor) -> Tensor:
        """The image [3, H, W] in them, clamped to [0, 1]."""
        return (image[list(self.order)] * torch.tensor(self.gains)[:, None, None]).clamp(0, 1)


def random_colours(seed: int, key: str) -> Colours | None:
    """None for half of the keys; else any permutation, gains U(.7, 1.3), by (seed, key)."""
    rng = np.random.default_rng(mix_seed(seed, f"colours/{key}"))
    if rng.random() < 0.5:
        return None
    return Colours(tuple(rng.permutation(3).tolist()), tuple(rng.uniform(0.7, 1.3, 3).tolist()))


def random_zoom(seed: int, key: str) -> float:
    """1 for half of the keys; else U(1, 2), by (seed, key)."""
    rng = np.random.default_rng(mix_seed(seed, f"zoom/{key}"))
    return 1.0 if rng.random() < 0.5 else float(rng.uniform(1, 2))


def enlarge(image: Tensor, side: int) -> Tensor:
    """[3, h, h] to [3, side, side], bicubic, clamped to [0, 1]: a photograph as soft as many are."""
    return F.interpolate(image[None], size=(side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)
