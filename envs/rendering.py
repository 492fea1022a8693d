"""Pictures of an episode: LR, SR and ground truth side by side, and where the reward finds faults."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["LEGEND_WIDTH", "legend", "overlay", "panels", "pixels"]

_GROUND = 255
_PENDING = 128

LEGEND_WIDTH = 20

# Dark violet over red and orange to pale yellow: lightness rises evenly, so order is seen without colour too. Its black
# start is left out; there the picture itself is seen.
_HEAT = ((0.34, 0.06, 0.43), (0.54, 0.13, 0.42), (0.74, 0.22, 0.33), (0.89, 0.35, 0.19), (0.98, 0.56, 0.04),
         (0.98, 0.80, 0.21), (0.99, 1.00, 0.64))  # fmt: skip


def pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3], a new array, of an image [3, H, W] in [0, 1]; what isn't a number is black."""
    levels = image.detach().float().cpu().nan_to_num(0.0).clamp(0, 1).mul(255).round()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy().astype(np.uint8))


def overlay(image: Tensor, fault: Tensor) -> Tensor:
    """A map of faults as heat over the greyed image: [..., 3, H, W].

    Args:
        image: [..., 3, H, W] in [0, 1].
        fault: [..., 1, H, W] in [0, 1]: at 0 the grey image is seen, at 1 pale yellow that hides nine tenths of it.
    """
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = 0.1 + 0.65 * (image.clamp(0, 1) * weights).sum(-3, keepdim=True)  # leaves the brightest to the heat
    fault = fault.clamp(0, 1).to(image)
    stops = image.new_tensor(_HEAT)
    place = fault.squeeze(-3) * (len(_HEAT) - 1)
    low = place.floor().clamp(max=len(_HEAT) - 2).long()
    heat = torch.lerp(stops[low], stops[low + 1], (place - low)[..., None]).movedim(-1, -3)
    return torch.lerp(grey.expand_as(heat), heat, 0.9 * fault.sqrt())


def legend(height: int) -> Tensor:
    """The overlay's colours from 1 at the top to 0 at the bottom, on white with both numbers: [3, height, 20]."""
    from PIL import Image, ImageDraw

    bar = overlay(torch.full((3, height, 8), 0.5), torch.linspace(1, 0, height).view(1, height, 1).expand(1, height, 8))
    drawn = Image.new("RGB", (LEGEND_WIDTH - 8, height), "white")
    pen = ImageDraw.Draw(drawn)
    pen.text((3, 0), "1", fill="black", anchor="lt")
    pen.text((3, height - 1), "0", fill="black", anchor="lb")
    digits = torch.from_numpy(np.array(drawn)).permute(2, 0, 1).float() / 255
    return torch.cat([bar, digits], 2)


def panels(
    lr: Tensor,
    sr: Tensor | None,
    hr: Tensor | None,
    scale: int,
    gap: int = 4,
    *,
    fault: Tensor | None = None,
    mapped: bool = False,
) -> npt.NDArray[np.uint8]:
    """One frame, LR | SR | HR | faults from left to right.

    LR [3, h, w] is enlarged without interpolation; SR [3, h * scale, w * scale] is grey as long as there is none; HR is
    left out where there is none. With `mapped`, a last panel has the map `fault` [1, H, W] over SR and its scale from 0
    to 1; it is grey as long as there is no SR. A white gap of `gap` pixels lies between. Sides are even, as video
    encoders want them.

    Returns:
        uint8 [H, W, 3].
    """
    first = pixels(lr).repeat(scale, 0).repeat(scale, 1)
    shown = [first, np.full_like(first, _PENDING) if sr is None else pixels(sr)]
    if hr is not None:
        shown.append(pixels(hr))
    height = len(first)
    if mapped:
        pending = np.full_like(first, _PENDING)
        shown.append(pending if sr is None or fault is None else pixels(overlay(sr, fault)))
        shown.append(pixels(legend(height)))
    whole = sum(panel.shape[1] for panel in shown) + (len(shown) - 1) * gap
    frame = np.full((height + height % 2, whole + whole % 2, 3), _GROUND, np.uint8)
    left = 0
    for panel in shown:
        frame[:height, left : left + panel.shape[1]] = panel
        left += panel.shape[1] + gap
    return frame
