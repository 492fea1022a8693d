"""Sets small enough to train on in a test."""

from dataclasses import dataclass

import pytest
import torch

from srgym.files import to_png
from srgym.rewards.compass.labels import outcomes_from_scores
from srgym.runners.judges.material import Group, Material


@dataclass
class Held:
    """Pictures that are held in memory."""

    inputs: list[bytes]
    candidates: list[list[bytes]]

    def lr(self, group: int) -> bytes:
        return self.inputs[group]

    def hr(self, group: int) -> None:
        return None

    def sr(self, group: int, place: int) -> bytes:
        return self.candidates[group][place]


@pytest.fixture
def make_material():
    """Makes a split of so many inputs and candidates, every second input a real one if `real`; labels are random."""

    def make(groups: int, candidates: int, real: bool = False, side: int = 64) -> Material:
        g = torch.Generator().manual_seed(0)
        made, lows, highs = [], [], []
        for i in range(groups):
            lr = torch.rand(3, side // 4, side // 4, generator=g)
            coarse = torch.rand(candidates, 3, 4, 4, generator=g)
            sr = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
            quality = [round(x, 2) for x in (1 + 4 * torch.rand(candidates, generator=g)).tolist()]
            kind = "real" if real and i % 2 else "synthetic"
            known = tuple(round(x, 2) for x in torch.rand(candidates, generator=g).tolist())
            made.append(Group(
                f"input {i}", kind, tuple(f"method {j}" for j in range(candidates)), round(1 + 3 * float(lr.mean()), 2),
                tuple(quality), tuple(quality[::-1]), outcomes_from_scores(torch.tensor(quality)),
                None if kind == "real" else known, tuple(f"picture {j}" for j in range(candidates)),
            ))  # fmt: skip
            lows.append(to_png(lr))
            highs.append([to_png(image) for image in sr])
        about = {"name": "made here", "split": "train", "annotators": ["nobody"], "sha256": "0"}
        return Material(made, Held(lows, highs), about)

    return make
