"""How much of a degradation can be read off LR: what RealSR-R1's reward for naming it can teach at most.

    python tools/degradation_ceiling.py PRESET SIZE [STEPS]

trains a small classifier on the eight steps' labels, on crops of SIZE pixels of the training photographs, and prints
its share of right labels on the validation photographs beside that of the best constant answer. Where the two are
alike, the reward is noise.
"""

import sys
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.envs.photographs import Photographs
from srgym.rewards.realsr_r1.degradation import STEPS, labels

__all__ = ["Classifier", "ceiling"]

_WIDTH = 64


class Classifier(nn.Module):
    """Means and spreads of convolutional features of an LR image and its high frequencies, to a label of each step."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (6, _WIDTH, _WIDTH, _WIDTH):
            layers += [nn.Conv2d(channels, _WIDTH, 3, padding=1), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(2 * _WIDTH, count) for count in choices)

    def forward(self, lr: Tensor) -> list[Tensor]:
        centred = lr - 0.5
        high = 5 * (centred - F.avg_pool2d(F.pad(centred, (1, 1, 1, 1), mode="reflect"), 3, 1))
        seen = self.features(torch.cat([centred, high], 1))
        pooled = torch.cat([seen.mean((2, 3)), (seen.var((2, 3), correction=0) + 1e-6).sqrt()], 1)
        return [head(pooled) for head in self.heads]


def _draw(split: str, preset: str, size: int, crops: int) -> tuple[Tensor, list[dict[str, str]]]:
    source = Photographs(split, preset, 4, size, crops=crops, augment=split == "train")
    samples = [source[i] for i in range(len(source))]
    return torch.stack([s.lr for s in samples]), [labels(s.degradation or {}) for s in samples]


def ceiling(preset: str, size: int, steps: int = 3000) -> tuple[float, float]:
    """(the classifier's share of right labels, that of the best constant answer), on validation crops."""
    torch.manual_seed(0)
    lr, said = _draw("train", preset, size, 600)
    held, truth = _draw("validation", preset, size, 200)
    words = [sorted({row[step] for row in [*said, *truth]}) for step in STEPS]
    target = torch.tensor([[words[i].index(row[step]) for i, step in enumerate(STEPS)] for row in said])
    wanted = torch.tensor([[words[i].index(row[step]) for i, step in enumerate(STEPS)] for row in truth])
    model = Classifier([len(choice) for choice in words])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(lr), (64,))
        losses = [F.cross_entropy(out, target[rows, i]) for i, out in enumerate(model(lr[rows]))]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = [(out.argmax(1) == wanted[:, i]).float().mean() for i, out in enumerate(model(held))]
    best = [Counter(row[step] for row in said).most_common(1)[0][0] for step in STEPS]
    constant = [sum(row[step] == best[i] for row in truth) / len(truth) for i, step in enumerate(STEPS)]
    return float(torch.stack(right).mean()), sum(constant) / len(constant)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("expected a preset and a size: python tools/degradation_ceiling.py mixture 64")
    classifier, constant = ceiling(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
    print(f"{sys.argv[1]}, {sys.argv[2]} pixels: classifier {classifier:.3f}, best constant {constant:.3f}")
