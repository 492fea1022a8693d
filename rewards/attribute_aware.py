"""GDPO-SR's attribute-aware reward (Yi et al. 2026, arXiv 2603.16769): fidelity where an image is smooth, perceptual
quality where it has texture.

    R = (1 - tau) f + tau (mean of the q),   every metric brought from its least to its greatest in the group to [0, 1],

tau being the share of ground truth that is texture: of its patches of 10 x 10 pixels, those whose Sobel gradients'
histogram has more than half a bit of entropy. The published code has PSNR-Y as f, MUSIQ and MANIQA as q.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.rewards.composite import min_max
from srgym.rewards.registry import make, register_reward

__all__ = ["AttributeAware", "texture_share"]

_PATCH, _SIDE = 10, 64
_BINS, _REACH = 512, 5.5
_BITS = 0.5
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def texture_share(hr: Tensor) -> Tensor:
    """The share of images [B, 3, H, W] in [0, 1], sides of 10 pixels at least, that is texture: [B] in [0, 1].

    A patch is enlarged to 64 x 64 first, as in the published code; what is left over at the right and below isn't
    looked at, where that code has narrower patches.
    """
    height, width = (side // _PATCH * _PATCH for side in hr.shape[-2:])
    if not height or not width:
        raise Refusal(f"attribute_aware looks at patches of {_PATCH} pixels, got images of {tuple(hr.shape[-2:])}")
    luma = (hr.float() * hr.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    patches = F.unfold(luma[..., :height, :width], _PATCH, stride=_PATCH).transpose(1, 2).reshape(-1, 1, _PATCH, _PATCH)
    large = F.interpolate(patches, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    kernel = hr.new_tensor(_SOBEL, dtype=torch.float32)
    slopes = F.conv2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    magnitude = slopes.square().sum(1).sqrt().flatten(1)
    place = ((magnitude + _REACH) / (2 * _REACH) * _BINS).long().clamp(0, _BINS - 1)
    counts = torch.zeros(len(place), _BINS, device=hr.device).scatter_add_(1, place, torch.ones_like(magnitude))
    share = counts / counts.sum(1, keepdim=True)
    bits = -(share * (share + 1e-10).log2()).sum(1)
    return (bits > _BITS).float().reshape(len(hr), -1).mean(1)


@register_reward("attribute_aware", group=True, range=(0.0, 1.0), purpose="perceptual")
class AttributeAware:
    """GDPO-SR's reward; samples are only ever compared inside their group.

    Components: `texture`, the share tau, and each metric as it is, under its own name.

    Args:
        fidelity: f, see `make`. perceptual: the q.

    Raises:
        ValueError: without a perceptual metric.
    """

    def __init__(self, fidelity: Any = "psnr_y", perceptual: Sequence[Any] = ("structure_texture",)) -> None:
        self.fidelity, self.perceptual = make(fidelity), [make(metric) for metric in perceptual]
        if not self.perceptual:
            raise Refusal("attribute_aware: expected at least one perceptual metric, got none")
        self.needs = frozenset({"hr"}).union(self.fidelity.needs, *(metric.needs for metric in self.perceptual))

    def __call__(self, sr: Tensor, hr: Tensor, group: Tensor | None = None, **beside: Any) -> dict[str, Tensor]:
        """SR and HR [B, 3, H, W] to `total`, `valid` and components, all [B]; without groups all are one."""
        label = torch.zeros(len(sr), dtype=torch.int64, device=sr.device) if group is None else group.to(sr.device)
        outputs = [metric(sr, hr=hr, group=group, **beside) for metric in (self.fidelity, *self.perceptual)]
        valid = torch.stack([output.valid for output in outputs]).all(0)
        scaled = [min_max(output.total, valid, label, flat=0.5) for output in outputs]
        texture = _of_each(hr)
        total = (1 - texture) * scaled[0] + texture * torch.stack(scaled[1:]).mean(0)
        named = zip((self.fidelity, *self.perceptual), outputs, strict=True)
        return {
            "total": total, "valid": valid, "texture": texture,
            **{metric.name: output.total for metric, output in named},
        }  # fmt: skip


def _of_each(hr: Tensor) -> Tensor:
    """`texture_share` of images of which neighbours are often one, a group's: [B]."""
    new = torch.ones(len(hr), dtype=torch.bool, device=hr.device)
    new[1:] = (hr[1:] != hr[:-1]).flatten(1).any(1)
    return texture_share(hr[new])[new.cumsum(0) - 1]
