"""The miniature of COMPASS's pipeline: candidates, anchor scores, exhaustive ranking, calibration, and the training of
the compact scorer on the labels (`srgym train experiment=compass_compact`).

Where the paper has a multimodal model judge, the miniature has ground truth: `appearance` over whole pictures anchors
(absolute, coarse), `appearance` in small windows ranks (relative, fine), and `structure_texture` labels fidelity. The
scorer sees none of it: it must tell quality from (LR, SR) alone.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from srgym import rewards
from srgym.envs import SRTask
from srgym.policies import FlowPolicy, Noise, Sampling, derive_seeds
from srgym.policies.compact import CompactPolicy, bicubic
from srgym.rewards.appearance import appearance
from srgym.rewards.compass_compact import CompactCompass
from srgym.rewards.compass_labels import calibrate, median_slope, min_max, outcomes_from_scores, win_rates

__all__ = ["Group", "candidates", "correlations", "label", "train_scorer"]


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


def _sharpen(image: Tensor, amount: float) -> Tensor:
    """Unsharp masking with a 5 x 5 box: the over-sharpened fake."""
    smooth = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), 5, 1)
    return (image + amount * (image - smooth)).clamp(0, 1)


def _fakes(image: Tensor, name: str, noise: Noise) -> list[tuple[str, Tensor]]:
    """Manipulations of one image [1, 3, H, W], of strengths that the noise draws."""
    u = [float(noise.uniform()) for _ in range(4)]
    grain = noise.normal(image.shape[1:])
    coarse = F.interpolate(noise.normal((3, image.shape[2] // 2, image.shape[3] // 2)), scale_factor=2.0)
    small = F.interpolate(image, scale_factor=1 / (1.2 + 1.8 * u[2]), mode="bilinear", antialias=True)
    return [
        (f"{name}, over-sharpened", _sharpen(image, 0.4 + 2.6 * u[0])),
        (f"{name}, noise", (image + (0.01 + 0.07 * u[1]) * (grain if u[3] < 0.5 else coarse)).clamp(0, 1)),
        (f"{name}, blurred", F.interpolate(small, size=image.shape[-2:], mode="bicubic").clamp(0, 1)),
    ]


@torch.no_grad()
def candidates(
    lr: Tensor, hr: Tensor, policies: dict[str, FlowPolicy], steps: Sequence[int], seed: int, repeats: int = 3
) -> list[tuple[str, Tensor]]:
    """What a context [1, 3, h, w] may be turned into: (kind, image [1, 3, H, W]).

    Every policy at every number of steps (`repeats` samples each), the policies' means, bicubic, the truth, mixtures of
    truth and prediction, and manipulated versions of several.
    """
    made: list[tuple[str, Tensor]] = []
    seeds = derive_seeds(seed, 0, 0, torch.arange(repeats), stream="candidates")
    for name, policy in policies.items():
        for n in steps:
            drawn = policy.rollout({"lr": lr}, Sampling(steps=n), seeds)["sr"]
            made += [(f"{name}, {n} steps", sr[None]) for sr in drawn]
        if isinstance(policy, CompactPolicy):
            made.append((f"{name}, mean", policy.predict_mean(lr)))
    noise = Noise(seeds[:1])
    plain = bicubic(lr, hr.shape[-1] // lr.shape[-1])
    mix = float(noise.uniform())
    made += [("truth", hr), ("truth and sample", mix * hr + (1 - mix) * made[0][1])]
    for name, image in (("truth", hr), ("sample", made[1][1]), ("bicubic", plain)):
        made += _fakes(image, name, noise)
    return [*made, ("bicubic", plain)]


def label(contexts: Sequence[tuple[Tensor, Tensor, list[tuple[str, Tensor]]]], margin: float = 0.004) -> list[Group]:
    """Labels for contexts of (lr, hr, candidates): anchor, ranking, calibration, and fidelity."""
    judge = rewards.make("structure_texture")
    scored = []
    for lr, hr, made in contexts:
        images = torch.cat([image for _, image in made])
        truth = hr.expand_as(images)
        anchor = 1 + 4 * appearance(images, truth, window=None, bands=4).double()
        fine = appearance(images, truth, window=12, bands=3).double()
        rank = min_max(win_rates(outcomes_from_scores(fine, margin)))
        fidelity = judge(images, hr=truth).total
        scored.append((lr, images, tuple(kind for kind, _ in made), rank, anchor, fidelity))
    slope = median_slope([(rank, anchor) for *_, rank, anchor, _ in scored])
    return [
        Group(lr[0], images, kinds, calibrate(rank, anchor, slope).score.float(), fidelity.float().clamp(0, 1))
        for lr, images, kinds, rank, anchor, fidelity in scored
    ]


def shaken(policy: CompactPolicy, strength: float, seed: int) -> CompactPolicy:
    """The policy under a random LoRA of a given strength: candidates of what training might pass through."""
    policy.add_adapters(rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            if ".lora_B." in name:
                parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
    return policy


def make_groups(tasks: Sequence[SRTask], policies: dict[str, FlowPolicy], n: int, seed: int) -> list[Group]:
    """n labelled groups, contexts taken in turn from the tasks (degradations)."""
    contexts = []
    for i in range(n):
        task = tasks[i % len(tasks)]
        place = derive_seeds(seed, 0, i, stream="context") % len(task)
        context = task.context(place)
        if context.hr is None:
            raise ValueError("the compact COMPASS scorer is labelled by ground truth: expected a source with HR images")
        steps = ((1, 6), (2, 8), (4, 12), (6, 20))[i % 4]
        contexts.append((context.lr, context.hr, candidates(context.lr, context.hr, policies, steps, seed + i)))
    return label(contexts)


def _rank_loss(predicted: Tensor, target: Tensor, sharpness: float) -> Tensor:
    """Pairwise logistic loss inside a group, each pair weighted by how far apart its labels are."""
    gap = target[:, None] - target[None, :]
    margin = sharpness * (predicted[:, None] - predicted[None, :])
    return (gap.abs() * F.softplus(-gap.sign() * margin)).sum() / gap.abs().sum().clamp_min(1e-6)


def _group_loss(model: CompactCompass, group: Group) -> Tensor:
    lr = group.lr[None].expand(len(group.images), -1, -1, -1)
    fidelity, _, quality, _ = model(lr, group.images)
    absolute = F.smooth_l1_loss(quality, group.quality, beta=0.25) + 8 * F.smooth_l1_loss(
        fidelity, group.fidelity, beta=0.05
    )
    return absolute + _rank_loss(quality, group.quality, 8.0) + _rank_loss(fidelity, group.fidelity, 30.0)


def _crop(group: Group, generator: torch.Generator) -> Group:
    """One of the eight symmetries of the square, for all images of a group."""
    turn, flip = (int(torch.randint(n, (), generator=generator)) for n in (4, 2))
    change: Callable[[Tensor], Tensor] = lambda x: torch.rot90(x.flip(-1) if flip else x, turn, (-2, -1))  # noqa: E731
    return Group(change(group.lr), change(group.images), group.kinds, group.quality, group.fidelity)


@torch.no_grad()
def correlations(model: CompactCompass, groups: Sequence[Group]) -> dict[str, float]:
    """Spearman rank correlations on held-out groups, of quality and fidelity.

    `over_contexts`: all candidates of all contexts together. `inside_groups`: mean over contexts. `one_policy`: mean
    over contexts and policies of the correlation among the samples of one policy at one number of steps.
    """
    found: dict[str, list[float]] = {}
    everything: dict[str, list[Tensor]] = {"quality": [], "fidelity": [], "quality_label": [], "fidelity_label": []}
    for group in groups:
        fidelity, _, quality, _ = model(group.lr[None].expand(len(group.images), -1, -1, -1), group.images)
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
    if float(a.std()) == 0 or float(b.std()) == 0:
        return math.nan
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def train_scorer(
    train: Sequence[Group],
    validation: Sequence[Group],
    *,
    seconds: float,
    lr: float = 1e-3,
    groups_per_step: int = 2,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> CompactCompass:
    """Train the scorer for a time and return the average of its weights (EMA .995).

    Args:
        report: called with the losses and validation correlations about ten times over the run.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CompactCompass()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    started, told, step, running = time.monotonic(), 0, 0, 0.0
    while (spent := time.monotonic() - started) < seconds:
        for settings in optimizer.param_groups:
            settings["lr"] = lr * (0.5 + 0.5 * math.cos(math.pi * spent / seconds)) + 1e-6
        picked = torch.randint(len(train), (groups_per_step,), generator=generator)
        loss = torch.stack([_group_loss(model, _crop(train[int(i)], generator)) for i in picked]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        step, running = step + 1, 0.99 * running + 0.01 * float(loss.detach())
        if spent * 10 / seconds >= told + 1:
            told += 1
            report({"seconds": round(spent), "step": step, "loss": running, **correlations(average.module, validation)})
    return average.module.eval()


def write(model: CompactCompass, folder: Path, provenance: dict[str, Any]) -> None:
    """The scorer's weights, and beside them where they come from and how good they are."""
    model.save(folder)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
