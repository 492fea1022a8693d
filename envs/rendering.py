"""Pictures of an episode: LR, SR and ground truth side by side."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["panels", "pixels"]

_GROUND = 255
_PENDING = 128


def pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3], a new array, of an image [3, H, W] in [0, 1]; what isn't a number is black."""
    levels = image.detach().float().cpu().nan_to_num(0.0).clamp(0, 1).mul(255).round()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy().astype(np.uint8))


def panels(lr: Tensor, sr: Tensor | None, hr: Tensor | None, scale: int, gap: int = 4) -> npt.NDArray[np.uint8]:
    """One frame, LR | SR | HR from left to right.

    LR [3, h, w] is enlarged without interpolation; SR [3, h * scale, w * scale] is grey as long as there is none; HR is
    left out where there is none. A white gap of `gap` pixels lies between. Sides are even, as video encoders want them.

    Returns:
        uint8 [H, W, 3].
    """
    first = pixels(lr).repeat(scale, 0).repeat(scale, 1)
    shown = [first, np.full_like(first, _PENDING) if sr is None else pixels(sr)]
    if hr is not None:
        shown.append(pixels(hr))
    height, width = first.shape[:2]
    whole = len(shown) * width + (len(shown) - 1) * gap
    frame = np.full((height + height % 2, whole + whole % 2, 3), _GROUND, np.uint8)
    for place, panel in enumerate(shown):
        left = place * (width + gap)
        frame[:height, left : left + width] = panel
    return frame
