"""Pictures to try rewards on: crops of photographs that scikit-image ships, and ways to make them worse in steps."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srgym.errors import Refusal

__all__ = ["WORSE", "Specimen", "photographs", "specimen", "worse"]

# (file of skimage.data, top, left) of crops that have both texture and plain areas.
_CROPS = (("astronaut", 40, 120), ("coffee", 60, 180), ("chelsea", 20, 80), ("rocket", 120, 200))
# What they show, in their order.
_SHOWN = (("woman", "helmet"), ("cup", "spoon"), ("cat",), ("rocket", "tower"))
# What was done to all of them, in the form of the degradation's own records.
_RECORD: dict[str, Any] = {
    "blur1": {"sigma": 0.4},
    "resize1": {"factor": 0.25},
    "noise1": {"kind": "gaussian", "strength": 2.0},
    "jpeg1": None,
    "blur2": None,
    "resize2": None,
    "noise2": None,
    "jpeg2": {"quality": 90.0},
}
_SECTIONS = (
    ("degradation", "First blur: light. First resize: heavy. First noise: light gaussian. Second JPEG: light."),
    ("rough_understand", "A picture of {shown}."),
    ("rough_image", ""),
    ("middle_understand", "{shown}, in more detail."),
    ("middle_image", ""),
    ("final_understand", "{shown}."),
    ("final_image", ""),
)
_LARGEST = 280
_SCALE = 4

# Four ways, each from nothing to severe.
WORSE: dict[str, tuple[float, ...]] = {
    "blur": (0.0, 0.8, 1.5, 2.5, 4.0),
    "noise": (0.0, 0.02, 0.05, 0.1, 0.2),
    "jpeg": (100, 60, 30, 15, 5),
    "pixels": (1, 2, 4, 6, 8),
}


@dataclass(frozen=True)
class Specimen:
    """Candidates and all that a reward might want to know of them."""

    sr: Tensor
    context: dict[str, Any]

    def rows(self, which: list[int]) -> "Specimen":
        """Some of the candidates, in the order given."""
        picked = {
            key: value[which] if isinstance(value, Tensor) else [value[i] for i in which]
            for key, value in self.context.items()
        }
        return Specimen(self.sr[which], picked)


def photographs(size: int) -> Tensor:
    """Four crops [4, 3, size, size] in [0, 1].

    Raises:
        ValueError: for a size that isn't a multiple of 4 between 16 and 280.
    """
    from skimage import data

    if size % _SCALE or not 16 <= size <= _LARGEST:
        raise Refusal(f"expected pictures of a multiple of {_SCALE} between 16 and {_LARGEST} pixels, got {size}")
    crops = []
    for name, top, left in _CROPS:
        picture = torch.from_numpy(getattr(data, name)()[top:, left:].copy()).permute(2, 0, 1)
        crops.append(picture[:, :size, :size].float() / 255)
    return torch.stack(crops)


def specimen(candidates: Tensor, hr: Tensor) -> Specimen:
    """Candidates [P, K, 3, H, W] of P photographs, as P groups of K contiguous rows, with their context."""
    count, each = candidates.shape[:2]
    lr = F.interpolate(hr, scale_factor=1 / _SCALE, mode="bicubic", antialias=True).clamp(0, 1)
    index = torch.arange(count).repeat_interleave(each)
    context = {
        "lr": lr.repeat_interleave(each, 0),
        "hr": hr.repeat_interleave(each, 0),
        "text": [_text(_SHOWN[i % len(_SHOWN)]) for i in index.tolist()],
        "degradation": [dict(_RECORD) for _ in index.tolist()],
        "tags": [list(_SHOWN[i % len(_SHOWN)]) for i in index.tolist()],
        "group": index,
        "index": index,
    }
    return Specimen(candidates.flatten(0, 1), context)


def _text(shown: tuple[str, ...]) -> str:
    """What a policy that reasons might write: right about what is shown, and about four of the eight steps."""
    things = " and ".join(f"a {thing}" for thing in shown)
    return "\n".join(f"<{name}>{text.format(shown=things)}</{name}>" for name, text in _SECTIONS)


def worse(image: Tensor, kind: str, step: float, seed: int = 0) -> Tensor:
    """Images [B, 3, H, W] made worse by one of the ways of `WORSE`, to its step."""
    return _WAYS[kind](image, step, seed).clamp(0, 1)


def _blur(image: Tensor, sigma: float, seed: int) -> Tensor:
    if not sigma:
        return image
    reach = int(3 * sigma) + 1
    taps = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(image, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, taps[:, :, None, :], groups=3), taps[:, :, :, None], groups=3)


def _noise(image: Tensor, sigma: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return image + sigma * torch.randn(image.shape, generator=generator)


def _jpeg(image: Tensor, quality: float, seed: int) -> Tensor:
    return image if quality == 100 else torch.stack([_jpeg_one(picture, int(quality)) for picture in image])


def _jpeg_one(image: Tensor, quality: int) -> Tensor:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


def _pixels(image: Tensor, side: float, seed: int) -> Tensor:
    """Averaged over squares, drawn as squares."""
    small = F.avg_pool2d(image, int(side), ceil_mode=True)
    return F.interpolate(small, scale_factor=int(side))[..., : image.shape[-2], : image.shape[-1]]


_WAYS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "pixels": _pixels,
}
