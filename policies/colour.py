"""Colour fixes: give a sample the colours of its input, which diffusion policies drift away from."""

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal

__all__ = ["MODES", "fix_colour"]

MODES = ("none", "adain", "wavelet")


def fix_colour(image: Tensor, reference: Tensor, mode: str = "adain") -> Tensor:
    """Bring an image's colours to those of a reference.

    Args:
        image: SR [B, 3, H, W] in [0, 1].
        reference: the LR image upsampled to the same size, [B, 3, H, W].
        mode: "adain" matches every channel's mean and standard deviation (Huang and Belongie 2017, arXiv 1703.06868);
            "wavelet" takes the low frequencies of the reference and keeps the image's details (StableSR, arXiv
            2305.07015); "none" returns the image.

    Raises:
        ValueError: for another mode, or shapes that differ.
    """
    if mode not in MODES:
        raise Refusal(f"colour is one of {', '.join(MODES)}, got '{mode}'")
    if mode == "none":
        return image
    if image.shape != reference.shape:
        raise Refusal(
            f"a colour fix needs two images of one shape, got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    if mode == "adain":
        return _match_moments(image, reference).clamp(0, 1)
    return (image - _smooth(image) + _smooth(reference)).clamp(0, 1)


def _match_moments(image: Tensor, reference: Tensor) -> Tensor:
    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3), keepdim=True), x.std((2, 3), correction=0, keepdim=True)

    mean, spread = moments(image)
    wanted_mean, wanted_spread = moments(reference)
    # A flat image has no contrast to scale: its colour alone is moved.
    gain = torch.where(spread > 1e-5, wanted_spread / spread.clamp_min(1e-5), torch.ones_like(spread))
    return (image - mean) * gain + wanted_mean


def _smooth(x: Tensor, levels: int = 5) -> Tensor:
    """What is left of an image after the details of `levels` dyadic scales (a B3-spline kernel, dilated)."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    weight = (kernel[:, None] * kernel[None, :]).expand(3, 1, 3, 3)
    for level in range(levels):
        reach = 2**level
        x = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), weight, groups=3, dilation=reach)
    return x
