"""FinPercep's map on faults planted in validation photographs, as one picture.

python tools/finpercep_picture.py docs/pictures/finpercep_map.png [WEIGHTS]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.envs import sources
from srgym.envs.rendering import legend, overlay, pixels
from srgym.envs.sources import Sample
from srgym.policies.compact import bicubic
from srgym.rewards.finpercep.model import load
from srgym.rewards.finpercep.reward import SHIPPED
from srgym.rewards.finpercep.synthesis import band_energies, fault_map, synthesise

__all__ = ["planted", "write_picture"]

_SIDE, _GAP = 128, 4


def planted(split: str = "validation", side: int = _SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth, mixtures and masks, [3, 3, side, side] and [3, 1, side, side]: one crop for each kind of fault.

    Bicubic upsampling of the LR image, noise (sigma 0.08) and over-sharpening (three times the detail), each in a
    square of half the side.
    """
    source = sources.make("photographs", split=split, size=side)
    samples = [_detailed([source[i] for i in range(third, len(source), 3)]) for third in range(3)]
    gt = torch.stack([sample.hr for sample in samples if sample.hr is not None])
    noise = 0.08 * torch.randn(gt.shape[1:], generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(F.pad(gt[2:], (2, 2, 2, 2), mode="reflect"), 5, 1)
    faults = [bicubic(samples[0].lr[None], 4)[0], gt[1] + noise, (gt[2:] + 3 * (gt[2:] - smooth))[0]]
    mask = torch.zeros(3, 1, side, side)
    for i, (top, left) in enumerate(((0.1, 0.4), (0.4, 0.1), (0.25, 0.25))):
        half = side // 2
        mask[i, :, int(top * side) : int(top * side) + half, int(left * side) : int(left * side) + half] = 1
    return gt, synthesise(torch.stack(faults).clamp(0, 1), gt, mask), mask


def _detailed(samples: Sequence[Sample]) -> Sample:
    """The one with the most detail: a blurred square in a blurred background is no fault that anyone could see."""

    def detail(sample: Sample) -> float:
        assert sample.hr is not None
        return float((sample.hr - F.avg_pool2d(sample.hr, 5, 1, 2, count_include_pad=False)).abs().mean())

    return max(samples, key=detail)


def write_picture(path: Path, weights: Path | None = None) -> None:
    """Rows of ground truth | with a planted fault | the fault as the model should find it | as it does | the scale."""
    import json

    from PIL import Image

    folder = weights or SHIPPED
    model, notes = load(folder), json.loads((folder / "model.json").read_text())["notes"]
    gt, mixed, _ = planted()
    true = (fault_map(mixed, gt, band_energies) / notes["divisor"]).clamp(max=1)
    with torch.no_grad():
        found = model.map(mixed)
    scale = legend(_SIDE).expand(3, -1, -1, -1)
    gap = torch.ones(3, 3, _SIDE, _GAP)
    columns = [gt, gap, mixed, gap, overlay(mixed, true), gap, overlay(mixed, found), gap, scale]
    rows = F.pad(torch.cat(columns, 3), (0, 0, 0, _GAP), value=1.0)
    image = Image.fromarray(pixels(torch.cat(list(rows), 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(200).save(path, optimize=True)


if __name__ == "__main__":
    write_picture(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
