"""The miniature of COMPASS's pipeline: candidates, anchor scores, exhaustive ranking, calibration, and the training of
the compact scorer on the labels (`srgym train experiment=compass_compact`).

Where the paper has a multimodal model judge, the miniature has ground truth: `appearance` over whole pictures anchors
(absolute, coarse), `appearance` in small windows ranks (relative, fine), and `structure_texture` labels fidelity. The
scorer sees none of it: it must tell quality from (LR, SR) alone.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgym import rewards
from srgym.envs import SRTask
from srgym.policies import FlowPolicy, Noise, Sampling, derive_seeds
from srgym.policies.compact import CompactPolicy, bicubic
from srgym.rewards.appearance import appearance
from srgym.rewards.base import Incompatible
from srgym.rewards.compass.compact import CompactCompass
from srgym.rewards.compass.labels import calibrate, median_slope, min_max, outcomes_from_scores, win_rates

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


def _tint(colour: Tensor, size: torch.Size) -> Tensor:
    """Blotches of colour that leave luma alone: blue and red differences [1, 2, h, w] to [1, 3, H, W]."""
    blue, red = F.interpolate(colour, size=size, mode="bicubic").unbind(1)
    return torch.stack([red, -(0.299 * red + 0.114 * blue) / 0.587, blue], 1)


def _fakes(image: Tensor, name: str, noise: Noise) -> list[tuple[str, Tensor]]:
    """Manipulations of one image [1, 3, H, W], of strengths that the noise draws."""
    u = [float(noise.uniform()) for _ in range(5)]
    grain = noise.normal(image.shape[1:])
    coarse = F.interpolate(noise.normal((3, image.shape[2] // 2, image.shape[3] // 2)), scale_factor=2.0)
    tint = _tint(noise.normal((2, image.shape[2] // 8, image.shape[3] // 8)), image.shape[-2:])
    small = F.interpolate(image, scale_factor=1 / (1.2 + 1.8 * u[2]), mode="bilinear", antialias=True)
    return [
        (f"{name}, over-sharpened", _sharpen(image, 0.4 + 2.6 * u[0])),
        (f"{name}, noise", (image + (0.01 + 0.07 * u[1]) * (grain if u[3] < 0.5 else coarse)).clamp(0, 1)),
        (f"{name}, tinted", (image + (0.01 + 0.04 * u[4]) * tint).clamp(0, 1)),
        (f"{name}, blurred", F.interpolate(small, size=image.shape[-2:], mode="bicubic").clamp(0, 1)),
    ]


@torch.no_grad()
def candidates(
    lr: Tensor, hr: Tensor, policies: Mapping[str, FlowPolicy], steps: Sequence[int], seed: int, repeats: int = 3
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
    noise = Noise(seeds[:1])
    plain = bicubic(lr, hr.shape[-1] // lr.shape[-1])
    made += [("mean", policy.predict_mean(lr)) for policy in policies.values() if isinstance(policy, CompactPolicy)][:1]
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


def shaken(policy: CompactPolicy, strength: float, seed: int) -> CompactPolicy:
    """A copy of the policy under a random LoRA of a given strength: what training might pass through."""
    other = deepcopy(policy)
    other.add_adapters(rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.trainable_parameters():
            if ".lora_B." in name:
                parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
    return other


def make_groups(tasks: Sequence[SRTask], policies: Mapping[str, FlowPolicy], n: int, seed: int) -> list[Group]:
    """n labelled groups, contexts taken in turn from the tasks (degradations).

    Raises:
        Incompatible: for contexts without ground truth, which the labels come from.
    """
    contexts = []
    for i in range(n):
        task = tasks[i % len(tasks)]
        context = task.context(derive_seeds(seed, 0, i, stream="context") % len(task))
        if context.hr is None:
            raise Incompatible(
                "the compact COMPASS scorer is labelled by ground truth, and these contexts have no 'hr'"
            )
        steps = ((1, 6), (2, 8), (4, 12), (6, 20))[i // len(tasks) % 4]
        made = candidates(context.lr, context.hr, policies, steps, seed + i)
        contexts.append((context.lr, context.hr, made))
    return label(contexts)


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
    running = 0.0
    for step in range(steps):
        for settings in optimizer.param_groups:
            settings["lr"] = lr * min(1.0, 20 * step / steps) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        picked = torch.randint(len(train), (groups_per_step,), generator=generator)
        losses = []
        for i in picked:
            group = _vary(train[int(i)], generator)
            with torch.autocast("cpu", torch.bfloat16):
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


@dataclass(frozen=True)
class ScorerSettings:
    """How the compact scorer is made.

    Attributes:
        groups, validation_groups: labelled contexts, of the training and of the validation split.
        presets: the degradations that contexts are taken from in turn.
        shaken: strengths of the random LoRAs whose policies add candidates.
        steps: optimiser steps, each on `groups_per_step` groups; lr: the highest learning rate.
    """

    groups: int = 300
    validation_groups: int = 48
    presets: Sequence[str] = ("mild", "mixture")
    shaken: Sequence[float] = (0.03, 0.08)
    steps: int = 2500
    groups_per_step: int = 2
    lr: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("groups", "validation_groups", "steps", "groups_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"scorer.{name} is at least 1, got {getattr(self, name)}")


def build_scorer(
    settings: ScorerSettings, policy: FlowPolicy, env: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, float]:
    """Make candidates of the policy, label them, train the scorer and write it to `folder`/scorer.

    Writes `correlations.json` beside it: see `correlations`, on the validation split. Returns what it cost.

    Raises:
        Incompatible: for a policy other than the compact one, or contexts without ground truth.
    """
    from srgym.runners.run.build import build_task

    if not isinstance(policy, CompactPolicy):
        raise Incompatible(f"the compact scorer's candidates come from the compact policy, got '{policy.name}'")
    started = time.monotonic()
    policies = {"base": policy} | {f"shaken {s}": shaken(policy, s, i) for i, s in enumerate(settings.shaken)}
    nothing = rewards.make("psnr_y")

    def groups(n: int, seed: int, **changes: Any) -> list[Group]:
        tasks = [build_task(env, nothing, preset=preset, **changes) for preset in settings.presets]
        return make_groups(tasks, policies, n, seed)

    train = groups(settings.groups, seed)
    validation = groups(settings.validation_groups, seed + 10**6, split="validation")
    print(f"scorer: {len(train)} groups of {len(train[0].images)} in {time.monotonic() - started:.0f} s", flush=True)
    model = train_scorer(
        train, validation, steps=settings.steps, groups_per_step=settings.groups_per_step, lr=settings.lr, seed=seed,
        report=lambda row: print("scorer: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True),
    )  # fmt: skip
    model.save(folder / "scorer")
    found = correlations(model, validation)
    (folder / "scorer" / "correlations.json").write_text(json.dumps(found, indent=2) + "\n")
    return {"seconds": time.monotonic() - started, "updates": float(settings.steps), **found}
