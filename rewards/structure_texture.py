"""Structure and texture similarity on a fixed filter bank: the two terms of DISTS, without a network and its weights.

The bank stands where DISTS has VGG16. Every feature is non-negative, as after a ReLU, so that its mean is an energy:

- the picture: luma (1 map), and two colour differences at half the resolution, each split into its positive and its
  negative part (4 maps);
- of luma, at three octaves: the band-pass residual x - blur(x), split likewise (2 maps), and the energy of a pair of
  oriented Gaussian derivatives, steered to 0, 45, 90 and 135 degrees (4 maps);
- of the colour differences, at three octaves from half the resolution: the residual, split (4 maps).

An octave is the last one blurred by the binomial 5 x 5 filter and halved. The residual of the finest octave keeps
everything up to the Nyquist frequency, so that checkerboards and pixel noise are seen. Octaves of fewer than 8 pixels a
side are left out. Each stage counts as one whatever its number of maps, a colour stage as half.

Means, variances and covariances are taken in windows of 8 x 8 feature pixels that overlap by half, and the similarities
are averaged over windows. DISTS takes them over the whole picture: that forgives texture which moved, but also lets
speckle in a sky pay for detail that is missing in the grass. Windows see both, and at 8 pixels they still prefer detail
that is right in kind and a little out of place to none.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.registry import register_reward

__all__ = ["Stage", "features", "structure_texture"]

_OCTAVES = 3
_WINDOW, _STRIDE = 8, 4
_SMALLEST = 16

# DISTS learnt .88 and .12 on a network's features, which already forgive shifts; these need more of the second.
_TEXTURE_WEIGHT, _STRUCTURE_WEIGHT = 2 / 3, 1 / 3

# The root of each constant is where a difference begins to count: one grey level of detail, five of colour cast.
_C_DETAIL = (1 / 255) ** 2
_C_COLOUR = 0.02**2
_C_STRUCTURE = 0.01**2


class Stage(NamedTuple):
    """Maps of one kind [B, C, H_i, W_i], what they count for, and the texture term's constant on them."""

    maps: Tensor
    weight: float
    constant: float


@register_reward("structure_texture", differentiable=True, range=(-1 / 3, 1.0), purpose="perceptual", kin=("compass",))
def structure_texture(sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Structure and texture similarity to the ground truth on a fixed filter bank, without weights.

    Images [B, 3, H, W] to `total` = 2/3 texture + 1/3 structure, and its terms, [B] each:

    - `texture`, in (0, 1]: (2 a b + c) / (a^2 + b^2 + c) of windows' mean features: is there as much detail as there
      should be? Blur has too little, noise too much; where exactly it lies in the window doesn't count.
    - `structure`, in (-1, 1]: (2 cov + c) / (var_a + var_b + c): does it lie where it should?

    The forms are DISTS's (Ding et al. 2020, eqs. 5 and 6), the features and the windows are this module's.

    Raises:
        ValueError: for images of fewer than 16 pixels a side.
    """
    if min(sr.shape[-2:]) < _SMALLEST:
        raise Refusal(
            f"structure_texture: expected images of at least {_SMALLEST} pixels a side, got {tuple(sr.shape[-2:])}"
        )
    texture, structure, weights = sr.new_zeros(len(sr)), sr.new_zeros(len(sr)), 0.0
    for maps, weight, constant in features(torch.cat([sr, hr])):
        ours, truth = maps.chunk(2)
        t, s = _similarities(ours, truth, constant)
        texture, structure, weights = texture + weight * t, structure + weight * s, weights + weight
    texture, structure = texture / weights, structure / weights
    total = _TEXTURE_WEIGHT * texture + _STRUCTURE_WEIGHT * structure
    return {"total": total, "texture": texture, "structure": structure}


def features(image: Tensor) -> list[Stage]:
    """The filter bank's maps of images [B, 3, H, W] in [0, 1]."""
    luma, colour = _opponent(image)
    colour = F.avg_pool2d(colour, 2, ceil_mode=True)
    stages = [Stage(luma, 1.0, _C_DETAIL), Stage(_rectified(colour), 0.5, _C_COLOUR)]
    for _ in range(_OCTAVES):
        if min(luma.shape[-2:]) >= _WINDOW:
            smooth = _blur(luma)
            maps = torch.cat([_rectified(luma - smooth), _oriented_energy(luma)], 1)
            stages.append(Stage(maps, 1.0, _C_DETAIL))
            luma = F.avg_pool2d(smooth, 2, ceil_mode=True)
        if min(colour.shape[-2:]) >= _WINDOW:
            smooth = _blur(colour)
            stages.append(Stage(_rectified(colour - smooth), 0.5, _C_DETAIL))
            colour = F.avg_pool2d(smooth, 2, ceil_mode=True)
    return stages


def _similarities(a: Tensor, b: Tensor, constant: float) -> tuple[Tensor, Tensor]:
    """The texture and structure terms of maps [B, C, H, W], averaged over channels and windows: [B] each."""
    mean_a, mean_b = _windowed(a), _windowed(b)
    cross, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    covariance = _windowed(a * b) - cross
    variances = (_windowed(a.square() + b.square()) - squares).clamp_min(0)
    texture = (2 * cross + constant) / (squares + constant)
    structure = (2 * covariance + _C_STRUCTURE) / (variances + _C_STRUCTURE)
    return texture.mean((1, 2, 3)), structure.mean((1, 2, 3))


def _windowed(maps: Tensor) -> Tensor:
    """Means of overlapping windows; those at the right and lower border may be cut short, so no pixel is left out."""
    side = min(_WINDOW, *maps.shape[-2:])
    return F.avg_pool2d(maps, side, _STRIDE, ceil_mode=True, count_include_pad=False)


def _opponent(image: Tensor) -> tuple[Tensor, Tensor]:
    """RGB to luma [B, 1, H, W] in [0, 1] and two colour differences [B, 2, H, W] in [-.5, .5] (BT.601)."""
    r, g, b = image.unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return luma[:, None], torch.stack([0.564 * (b - luma), 0.713 * (r - luma)], 1)


def _rectified(x: Tensor) -> Tensor:
    """The positive and the negative parts, side by side."""
    return torch.cat([x.relu(), (-x).relu()], 1)


def _blur(x: Tensor) -> Tensor:
    """Binomial 5 x 5 low-pass of every channel."""
    taps = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return _filter(x, (taps[:, None] * taps)[None])[:, :, 0]


def _oriented_energy(luma: Tensor) -> Tensor:
    """sqrt(odd^2 + even^2) of Gaussian derivatives (sigma 1) at four orientations: [B, 1, H, W] to [B, 4, H, W]."""
    odd, even = _filter(luma, _steered_bank(luma))[:, 0].chunk(2, 1)
    # The constant keeps the root's gradient finite on flat areas; it is a tenth of a grey level.
    return (odd.square() + even.square() + 1.6e-7).sqrt()


def _filter(x: Tensor, kernels: Tensor) -> Tensor:
    """Every channel of x [B, C, H, W] by each of K kernels [K, k, k], borders reflected: [B, C, K, H, W].

    The batch is folded into the channels of one depthwise convolution, which is 30 times faster on a CPU than a
    convolution of one channel.
    """
    count, side = kernels.shape[0], kernels.shape[-1] // 2
    planes = F.pad(x.flatten(0, 1)[None], (side, side, side, side), mode="reflect").repeat_interleave(count, 1)
    weight = kernels[:, None].repeat(x.shape[0] * x.shape[1], 1, 1, 1)
    return F.conv2d(planes, weight, groups=planes.shape[1]).view(*x.shape[:2], count, *x.shape[2:])


def _steered_bank(like: Tensor) -> Tensor:
    """First derivatives, then second ones, of a Gaussian at 0, 45, 90, 135 degrees: [8, 7, 7].

    Each answers the sinusoid of amplitude 1 that it answers most with about 1: frequency 1 and sqrt(2) at sigma 1.
    """
    x = torch.arange(-3.0, 4.0, dtype=like.dtype, device=like.device)
    g = torch.exp(-x.square() / 2)
    g = g / g.sum()
    first = -x * g * math.exp(0.5)
    second = (x.square() - 1) * g
    second = (second - second.mean()) * math.e / 2
    dx, dy = g[:, None] * first, first[:, None] * g
    dxx, dyy = g[:, None] * second, second[:, None] * g
    dxy = (x * g)[:, None] * (x * g) * math.e / 2
    half = math.sqrt(0.5)
    odd = [dx, half * (dx + dy), dy, half * (dx - dy)]
    even = [dxx, (dxx + dyy) / 2 + dxy, dyy, (dxx + dyy) / 2 - dxy]
    return torch.stack([*odd, *even])
