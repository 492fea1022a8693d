"""Dead leaves: pictures of overlapping discs, which share with photographs what a restorer can learn of them.

A handful of photographs shows few smooth surfaces and few colours. The dead-leaves model (Lee, Mumford, Huang 2001) has
sharp occlusions at every scale beside shaded plain surfaces; restorers trained on such pictures do well on photographs
(Achddou, Gousseau, Ladjal 2021).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["dead_leaves"]


@cache
def dead_leaves(number: int, side: int = 512) -> Tensor:
    """Picture `number` of the series: uint8 [3, side, side].

    Discs with radii of density r^-3, from 8 pixels to half the side, lie over one another in any order. Each has a
    colour, a linear shading, and, one in three, a grain of its own size.
    """
    rng = np.random.default_rng([20260601, number])
    picture = np.full((side, side, 3), 0.5)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    low, high = 8.0, side / 2
    for radius in (low**-2 - rng.random(1200) * (low**-2 - high**-2)) ** -0.5:
        y, x = rng.uniform(-radius, side + radius, 2)
        top, bottom = (int(np.clip(v, 0, side)) for v in (y - radius, y + radius + 1))
        left, right = (int(np.clip(v, 0, side)) for v in (x - radius, x + radius + 1))
        if top >= bottom or left >= right:
            continue
        down, across = rows[top:bottom, left:right] - y, columns[top:bottom, left:right] - x
        # The edge falls over one pixel, as a lens draws it.
        cover = np.clip(radius - np.hypot(down, across) + 0.5, 0, 1)[..., None]
        slope = rng.normal(0, 0.15, 2) / radius
        shade = (slope[0] * down + slope[1] * across)[..., None]
        if rng.random() < 1 / 3:
            shade = shade + rng.uniform(0.01, 0.08) * _grain(shade.shape[:2], int(rng.integers(1, 5)), rng)
        part = picture[top:bottom, left:right]
        part += cover * (np.clip(_colour(rng) + shade, 0, 1) - part)
    return torch.from_numpy((picture * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous()


def _colour(rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Any lightness, and colours mostly near grey, as in photographs."""
    return np.asarray(np.clip(rng.uniform(0.05, 0.95) + rng.normal(0, 0.08, 3), 0, 1))


def _grain(
    shape: tuple[int, int], size: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """Grey noise in square cells of `size` pixels."""
    cells = rng.standard_normal((shape[0] // size + 1, shape[1] // size + 1))
    return np.asarray(np.kron(cells, np.ones((size, size)))[: shape[0], : shape[1], None])
