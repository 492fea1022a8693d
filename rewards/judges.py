"""Full-reference judges that other packages compute, on 8-bit pictures, one by one: `pip install "srgym[judges]"`.

Neither carries a gradient. SSIMULACRA 2 labels the quality that the compact COMPASS scorer learns; FLIP labels nothing.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srgym.rewards.backbones import require_package
from srgym.rewards.registry import register_reward

__all__ = ["FLIP", "SSIMULACRA2"]

_SCALES_FIT = 256


@register_reward(
    "ssimulacra2", range=(-float("inf"), 100.0), licence="BSD-3-Clause (ssimulacra2)",
    variant="ssimulacra2 (PyPI), 8 bits; sides under 256 pixels are mirrored up to 256", purpose="perceptual",
    kin=("compass",),
)  # fmt: skip
class SSIMULACRA2:
    """SSIMULACRA 2 (Sneyers 2023): multi-scale structure in XYB, with its artefacts, weighed for compression.

    100 is a copy; about 90 can't be told from it, 70 is high, 50 medium and 30 low quality; bad pictures go below 0.
    The metric lays 108 weights over six scales, and hands out the wrong ones where there are fewer; pictures under 256
    pixels a side are therefore continued by reflection, the truth likewise.

    Raises:
        Incompatible: without the package, with the command that brings it.
    """

    def __init__(self) -> None:
        self._compare = require_package("ssimulacra2", "ssimulacra2", "judges").compute_ssimulacra2

    def __call__(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to [B]."""
        return torch.tensor([self._compare(_file(truth), _file(ours)) for ours, truth in zip(sr, hr)])


@register_reward(
    "flip", range=(0.0, 1.0), licence="BSD-3-Clause (flip-evaluator)",
    variant="1 - mean LDR-FLIP of flip-evaluator, 67 pixels per degree, 8 bits", purpose="perceptual",
)  # fmt: skip
class FLIP:
    """1 - LDR-FLIP (Andersson et al. 2020): what is seen to change when one picture is flipped for the other.

    Raises:
        Incompatible: without the package, with the command that brings it.
    """

    def __init__(self) -> None:
        self._evaluate = require_package("flip", "flip_evaluator", "judges").evaluate

    def __call__(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [0, 1] to `total` and `distance`, [B] each."""
        pairs = [(_pixels(truth) / np.float32(255), _pixels(ours) / np.float32(255)) for ours, truth in zip(sr, hr)]
        distance = torch.tensor([self._evaluate(*pair, "LDR", applyMagma=False)[1] for pair in pairs])
        return {"total": 1 - distance, "distance": distance}


def _pixels(image: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """[3, H, W] to uint8 [H, W, 3]."""
    pixels = (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
    return pixels.contiguous().numpy()


def _file(image: Tensor) -> io.BytesIO:
    """The picture as the package takes it, which reads files."""
    pixels = _pixels(image)
    lacking = [(0, max(0, _SCALES_FIT - side)) for side in pixels.shape[:2]]
    file = io.BytesIO()
    Image.fromarray(np.pad(pixels, [*lacking, (0, 0)], mode="reflect")).save(file, "BMP")
    file.seek(0)
    return file
