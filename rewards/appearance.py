"""How alike two pictures look when nobody lays one over the other: local band energies, compared.

The miniature of COMPASS's annotation needs a judge of perceptual quality. Where the ground truth is known, an image
looks right if it has as much detail of each scale in each place as the truth has: too little is blur, too much is
noise, ringing or over-sharpening. Where exactly an edge lies doesn't count; that is fidelity's business.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.rewards.registry import register_reward

__all__ = ["appearance"]

_LUMA = (0.299, 0.587, 0.114)


def _blur(x: Tensor) -> Tensor:
    """The binomial 5 x 5 filter on each channel."""
    taps, channels = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16, x.shape[1]
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), taps.expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), taps.view(5, 1).expand(channels, 1, 5, 1), groups=channels)


def _planes(image: Tensor) -> tuple[Tensor, Tensor]:
    """RGB to luma [B, 1, H, W], and its two colour differences at half the resolution [B, 2, H/2, W/2]."""
    red, green, blue = image.float().unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return luma[:, None], F.avg_pool2d(torch.stack([blue - luma, red - luma], 1), 2)


def _energies(plane: Tensor, window: int | None, bands: int) -> Tensor:
    """Root-mean-square of each Laplacian band in windows `window` pixels wide (None: the whole picture)."""
    low, energies = plane, []
    for band in range(bands):
        smooth = _blur(low)
        power = (low - smooth).square()
        side = min(power.shape[-2:]) if window is None else max(2, window >> band)
        side = min(side, *power.shape[-2:])
        energy = (F.avg_pool2d(power, side, max(1, side // 2)) + 1e-8).sqrt()
        energies.append((energy if window is not None else energy.mean((2, 3))).flatten(1))
        low = F.avg_pool2d(smooth, 2)
    return torch.cat(energies, 1)


@register_reward(
    "appearance", range=(0.0, 1.0), differentiable=True, colour_space="Y, B - Y and R - Y of BT.601, full swing",
    variant="windows of 16 pixels, 3 octaves of luma and 2 of colour",
    purpose="perceptual", kin=("compass", "finpercep",),
)  # fmt: skip
def appearance(sr: Tensor, hr: Tensor, window: int | None = 16, bands: int = 3, floor: float = 2 / 255) -> Tensor:
    """As much detail of each scale in each place as the ground truth has.

    Mean over places and scales of (2ab + c) / (a^2 + b^2 + c), a and b the band energies of the two: [B] in (0, 1].

    Luma counts for two thirds. Colour, seen less sharply, lacks the finest octave; without it a judge lets tints pass.

    Args:
        sr, hr: [B, 3, H, W] in [0, 1], at least 24 pixels a side.
        window: side of the places in pixels at the finest scale; None compares the pictures as wholes.
        bands: number of octaves, at least 2.
        floor: the square root of c: detail below it (two grey levels) isn't seen.
    """
    c = floor**2
    total = torch.zeros(len(sr), device=sr.device)
    for ours, its, finest, weight in zip(_planes(sr), _planes(hr), (0, 1), (2 / 3, 1 / 3), strict=True):
        side = None if window is None else window >> finest
        a, b = (_energies(plane, side, bands - finest) for plane in (ours, its))
        total = total + weight * ((2 * a * b + c) / (a.square() + b.square() + c)).mean(1)
    return total
