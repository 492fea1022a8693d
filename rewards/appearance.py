"""How alike two pictures look when nobody lays one over the other: local band energies, compared.

The miniature of COMPASS's annotation needs a judge of perceptual quality. Where the ground truth is known, an image
looks right if it has as much detail of each scale in each place as the truth has: too little is blur, too much is
noise, ringing or over-sharpening. Where exactly an edge lies doesn't count; that is fidelity's business.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["appearance"]

_LUMA = (0.299, 0.587, 0.114)


def _blur(x: Tensor) -> Tensor:
    taps = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), taps.view(1, 1, 1, 5))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), taps.view(1, 1, 5, 1))


def _energies(image: Tensor, window: int | None, bands: int) -> Tensor:
    """Root-mean-square of each Laplacian band in windows `window` pixels wide (None: the whole picture)."""
    weights = image.new_tensor(_LUMA).view(1, 3, 1, 1)
    low = (image * weights).sum(1, keepdim=True)
    energies = []
    for band in range(bands):
        smooth = _blur(low)
        power = (low - smooth).square()
        side = min(power.shape[-2:]) if window is None else max(2, window >> band)
        side = min(side, *power.shape[-2:])
        energies.append((F.avg_pool2d(power, side, max(1, side // 2)) + 1e-8).sqrt().flatten(1))
        low = F.avg_pool2d(smooth, 2)
    return torch.cat([e if window is not None else e.mean(1, keepdim=True) for e in energies], 1)


def appearance(image: Tensor, truth: Tensor, window: int | None = 16, bands: int = 3, floor: float = 2 / 255) -> Tensor:
    """Mean over places and scales of (2ab + c) / (a^2 + b^2 + c), a and b the band energies of the two: [B] in (0, 1].

    Args:
        image, truth: [B, 3, H, W] in [0, 1], at least 16 pixels a side.
        window: side of the places in pixels at the finest scale; None compares the pictures as wholes.
        bands: number of octaves.
        floor: the square root of c: detail below it (two grey levels) isn't seen.
    """
    a, b = _energies(image.float(), window, bands), _energies(truth.float(), window, bands)
    c = floor**2
    return ((2 * a * b + c) / (a.square() + b.square() + c)).mean(1)
