"""The labels and the training of the compact COMPASS scorer: groups of candidates in, a scorer and its figures out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgym.precision import autocast_dtype
from srgym.rewards.appearance import appearance
from srgym.rewards.compass.compact import CompactCompass
from srgym.rewards.compass.labels import calibrate, median_slope, min_max, outcomes_from_scores, win_rates
from srgym.rewards.registry import make

__all__ = ["Group", "correlations", "label", "train_scorer"]


@dataclass(frozen=True)
class Group:
    """One context's candidates and their labels.

    Attributes:
        lr: [3, h, w]; images: [M, 3, H, W], the last of them LR upsampled; kinds: what made each.
        quality: calibrated labels in [1, 5], [M]; fidelity: in [0, 1], [M].
    """

    lr: Tensor
    images: Tensor
    kinds: tuple[str, ...]
    quality: Tensor
    fidelity: Tensor


def label(contexts: Sequence[tuple[Tensor, Tensor, list[tuple[str, Tensor]]]], margin: float = 0.004) -> list[Group]:
    """Labels for contexts of (lr, hr, candidates): anchor, ranking, calibration, and fidelity."""
    judge = make("structure_texture")
    scored = []
    for lr, hr, made in contexts:
        images = torch.cat([image for _, image in made])
        truth = hr.expand_as(images)
        anchor = 1 + 4 * appearance(images, truth, window=None, bands=4).double() ** 3
        fine = appearance(images, truth, window=12, bands=3).double()
        rank = min_max(win_rates(outcomes_from_scores(fine, margin)))
        fidelity = judge(images, hr=truth).total
        scored.append((lr, images, tuple(kind for kind, _ in made), rank, anchor, fidelity))
    slope = median_slope([(rank, anchor) for *_, rank, anchor, _ in scored])
    return [
        Group(lr[0], images, kinds, calibrate(rank, anchor, slope).score.float(), fidelity.float().clamp(0, 1))
        for lr, images, kinds, rank, anchor, fidelity in scored
    ]


def _rank_loss(predicted: Tensor, target: Tensor, sharpness: float) -> Tensor:
    """Pairwise logistic loss inside a group, each pair weighted by how far apart its labels are."""
    gap = target[:, None] - target[None, :]
    margin = sharpness * (predicted[:, None] - predicted[None, :])
    return (gap.abs() * F.softplus(-gap.sign() * margin)).sum() / gap.abs().sum().clamp_min(1e-6)


def _predict(model: CompactCompass, group: Group) -> tuple[Tensor, Tensor]:
    """Quality and fidelity of a group's images: [M] each."""
    size = group.images.shape[-2:]
    lr_up = F.interpolate(group.lr[None], size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    return model.quality(group.images), model.fidelity(lr_up.expand_as(group.images), group.images)


def _group_loss(quality: Tensor, fidelity: Tensor, group: Group) -> Tensor:
    """Absolute errors, and the order inside the group."""
    absolute = F.smooth_l1_loss(quality, group.quality, beta=0.25)
    absolute = absolute + 8 * F.smooth_l1_loss(fidelity, group.fidelity, beta=0.05)
    return absolute + _rank_loss(quality, group.quality, 8.0) + _rank_loss(fidelity, group.fidelity, 40.0)


def _vary(group: Group, generator: torch.Generator, kept: int = 14, part: float = 0.67) -> Group:
    """Some of a group's images, a part of the picture, under one of the eight symmetries of the square."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    rows = torch.randperm(len(group.images), generator=generator)[:kept]
    height, width = group.lr.shape[1:]
    scale, side = group.images.shape[-1] // width, max(8, int(part * min(height, width)))
    top, left, turn, flip = draw(height - side + 1), draw(width - side + 1), draw(4), draw(2)
    lr = group.lr[:, top : top + side, left : left + side]
    images = group.images[rows, :, scale * top : scale * (top + side), scale * left : scale * (left + side)]
    lr, images = (torch.rot90(x.flip(-1) if flip else x, turn, (-2, -1)) for x in (lr, images))
    kinds = tuple(group.kinds[int(i)] for i in rows)
    return Group(lr, images, kinds, group.quality[rows], group.fidelity[rows])


@torch.no_grad()
def correlations(model: CompactCompass, groups: Sequence[Group]) -> dict[str, float]:
    """Spearman rank correlations on held-out groups, of quality and fidelity.

    `over_contexts`: all candidates of all contexts together. `inside_groups`: mean over contexts. `one_policy`: mean
    over contexts and policies of the correlation among the samples of one policy at one number of steps.
    """
    model.eval()
    found: dict[str, list[float]] = {}
    everything: dict[str, list[Tensor]] = {"quality": [], "fidelity": [], "quality_label": [], "fidelity_label": []}
    for group in groups:
        quality, fidelity = _predict(model, group)
        families: dict[str, list[int]] = {}
        for i, kind in enumerate(group.kinds):
            families.setdefault(kind, []).append(i)
        samples = [rows for rows in families.values() if len(rows) >= 3]
        for name, predicted, target in (
            ("quality", quality, group.quality),
            ("fidelity", fidelity, group.fidelity),
        ):
            everything[name].append(predicted)
            everything[f"{name}_label"].append(target)
            found.setdefault(f"{name}_inside_groups", []).append(_spearman(predicted, target))
            for rows in samples:
                found.setdefault(f"{name}_one_policy", []).append(_spearman(predicted[rows], target[rows]))
    result = {
        name: float(torch.tensor([v for v in values if not math.isnan(v)]).mean()) for name, values in found.items()
    }
    for name in ("quality", "fidelity"):
        result[f"{name}_over_contexts"] = _spearman(torch.cat(everything[name]), torch.cat(everything[f"{name}_label"]))
    return result


def _spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; NaN where either side has nothing to rank."""
    if len(a.unique()) < 2 or len(b.unique()) < 2:  # type: ignore[no-untyped-call]
        return math.nan
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def train_scorer(
    train: Sequence[Group],
    validation: Sequence[Group],
    *,
    steps: int,
    lr: float = 2e-3,
    groups_per_step: int = 2,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> CompactCompass:
    """Train the scorer and return the average of its weights (EMA .99).

    Args:
        report: called with the loss and the validation correlations five times over the run.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CompactCompass().train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))  # type: ignore[no-untyped-call]
    averaged = cast(CompactCompass, average.module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    half, running = autocast_dtype("auto", torch.device("cpu")), 0.0
    for step in range(steps):
        for settings in optimizer.param_groups:
            settings["lr"] = lr * min(1.0, 20 * step / steps) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        picked = torch.randint(len(train), (groups_per_step,), generator=generator)
        losses = []
        for i in picked:
            group = _vary(train[int(i)], generator)
            with torch.autocast("cpu", half, enabled=half is not None):
                quality, fidelity = _predict(model, group)
            losses.append(_group_loss(quality.float(), fidelity.float(), group))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        running = 0.98 * running + 0.02 * float(loss.detach())
        if (step + 1) % max(1, steps // 5) == 0:
            report({"step": step + 1, "loss": running, **correlations(averaged, validation)})
    return averaged.eval()
