"""Full-reference fidelity on luma, by the conventions of super-resolution papers: no crop, population statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.registry import register_reward

__all__ = ["luma", "ms_ssim", "psnr_chroma", "psnr_y", "ssim_y"]

_VARIANT = "Y of BT.601, no crop"
_LUMA = "Y of BT.601, studio swing"

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

# An exact copy has no finite PSNR; 1e-10 is 100 dB, far beyond what 8 bits can tell apart (59 dB).
_SMALLEST_MSE = 1e-10


def luma(image: Tensor) -> Tensor:
    """ITU-R BT.601 luma in studio swing: RGB [B, 3, H, W] in [0, 1] to Y [B, 1, H, W] in [16/255, 235/255]."""
    weights = image.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return ((image * weights).sum(1, keepdim=True) + 16.0) / 255.0


@register_reward(
    "psnr_y",
    differentiable=True,
    range=(0.0, 100.0),
    variant=_VARIANT,
    unit="dB",
    colour_space=_LUMA,
    purpose="fidelity",
)
def psnr_y(sr: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio on luma, in dB.

    Images [B, 3, H, W] to [B]; peak 1, no crop, capped at 100 dB.
    """
    mse = (luma(sr) - luma(hr)).square().mean((1, 2, 3))
    return -10.0 * mse.clamp_min(_SMALLEST_MSE).log10()


@register_reward(
    "psnr_chroma", differentiable=True, range=(0.0, 100.0), variant="peak 1, no crop, capped at 100 dB", unit="dB",
    colour_space="CbCr of BT.601, full swing", purpose="fidelity",
)  # fmt: skip
def psnr_chroma(sr: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio on the two colour differences, in dB.

    Images [B, 3, H, W] in [0, 1] to [B]. It falls when a sample speckles in colour, which `psnr_y` can't see.
    """
    red, green, blue = (sr - hr).unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - grey) / 1.772, (red - grey) / 1.402], 1)
    return -10.0 * chroma.square().mean((1, 2, 3)).clamp_min(_SMALLEST_MSE).log10()


@register_reward(
    "ssim_y", differentiable=True, range=(-1.0, 1.0), variant=_VARIANT, colour_space=_LUMA, purpose="fidelity"
)
def ssim_y(sr: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity on luma.

    Images [B, 3, H, W] to [B]. Gaussian window of 11 with sigma 1.5, K = (0.01, 0.03), windows that lie inside the
    image only (Wang et al. 2004, eq. 13).

    Raises:
        ValueError: for images smaller than the window.
    """
    luminance, contrast = _ssim_terms(luma(sr), luma(hr), "ssim_y")
    return (luminance * contrast).mean((1, 2, 3))


@register_reward(
    "ms_ssim",
    differentiable=True,
    range=(0.0, 1.0),
    variant=_VARIANT,
    colour_space=_LUMA,
    purpose="fidelity",
    kin=("ssim_y",),
)
def ms_ssim(sr: Tensor, hr: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale structural similarity on luma.

    Images [B, 3, H, W] to [B]: contrast and structure at every scale, luminance at the coarsest (Wang et al. 2003,
    eq. 7), 0 where the pictures are anticorrelated at some scale.

    Args:
        scales: 1 to 5; fewer than the paper's 5 keep the finest ones, with their weights made to sum to 1 again.

    Raises:
        ValueError: for images whose coarsest scale is smaller than the window: 5 scales need 176 pixels, 4 need 88.
    """
    if not 1 <= scales <= len(_SCALE_WEIGHTS):
        raise Refusal(f"ms_ssim: expected between 1 and {len(_SCALE_WEIGHTS)} scales, got {scales}")
    least = _WINDOW * 2 ** (scales - 1)
    if min(sr.shape[-2:]) < least:
        raise Refusal(
            f"ms_ssim: {scales} scales need images of at least {least} pixels a side, got {tuple(sr.shape[-2:])}; "
            f"use larger images or fewer scales"
        )
    x, y = luma(sr), luma(hr)
    total = sr.new_ones(len(sr))
    for scale, weight in enumerate(_SCALE_WEIGHTS[:scales], 1):
        luminance, contrast = _ssim_terms(x, y, "ms_ssim")
        seen = contrast if scale < scales else luminance * contrast
        total = total * _positive_power(seen.mean((1, 2, 3)), weight / sum(_SCALE_WEIGHTS[:scales]))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total


def _positive_power(base: Tensor, exponent: float) -> Tensor:
    """max(base, 0) ^ exponent, with gradient 0 and not infinity where the base isn't positive."""
    positive = base > 0
    return torch.where(positive, torch.where(positive, base, torch.ones_like(base)) ** exponent, torch.zeros_like(base))


def _ssim_terms(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The luminance and the contrast-structure maps of SSIM, of one-channel images."""
    if min(x.shape[-2:]) < _WINDOW:
        raise Refusal(f"{name}: expected images of at least {_WINDOW} pixels a side, got {tuple(x.shape[-2:])}")
    position = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    kernel = torch.exp(-position.square() / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    stacked = torch.cat([x, y, x * x, y * y, x * y], 1)
    stacked = F.conv2d(stacked, kernel.view(1, 1, -1, 1).expand(5, 1, -1, 1), groups=5)
    stacked = F.conv2d(stacked, kernel.view(1, 1, 1, -1).expand(5, 1, 1, -1), groups=5)
    mx, my, xx, yy, xy = (stacked[:, i : i + 1] for i in range(5))
    luminance = (2 * mx * my + _C1) / (mx.square() + my.square() + _C1)
    contrast = (2 * (xy - mx * my) + _C2) / ((xx - mx.square()) + (yy - my.square()) + _C2)
    return luminance, contrast
