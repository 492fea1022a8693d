"""The miniature of COMPASS's pipeline: candidates, anchor scores, exhaustive ranking, calibration, and the training of
the compact scorer on the labels (`srgym train experiment=compass_compact`).

Where the paper has a multimodal model judge, the miniature has ground truth: `appearance` over whole pictures anchors
(absolute, coarse), `appearance` in small windows ranks (relative, fine), and `structure_texture` labels fidelity. The
scorer sees none of it: it must tell quality from (LR, SR) alone.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym import rewards
from srgym.envs import SRTask
from srgym.files import write_json
from srgym.policies import FlowPolicy, Noise, Sampling, derive_seeds
from srgym.policies.compact import CompactPolicy, bicubic
from srgym.rewards.base import Incompatible
from srgym.rewards.compass.train import Group, correlations, label, train_scorer
from srgym.runners.run.build import build_task
from srgym.settings import Count, check_arguments

__all__ = ["ScorerSettings", "build_scorer", "candidates", "make_groups", "shaken"]


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


@dataclass(frozen=True)
class ScorerSettings:
    """How the compact scorer is made.

    Attributes:
        groups, validation_groups: labelled contexts, of the training and of the validation split.
        presets: the degradations that contexts are taken from in turn.
        shaken: strengths of the random LoRAs whose policies add candidates.
        steps: optimiser steps, each on `groups_per_step` groups; lr: the highest learning rate.
    """

    groups: Count = 300
    validation_groups: Count = 48
    presets: Sequence[str] = ("mild", "mixture")
    shaken: Sequence[float] = (0.03, 0.08)
    steps: Count = 2500
    groups_per_step: Count = 2
    lr: float = 2e-3

    def __post_init__(self) -> None:
        check_arguments(ScorerSettings, vars(self), "scorer.")


def tasks_under(env: Mapping[str, Any], presets: Sequence[str], **changes: Any) -> list[SRTask]:
    """The contexts of an env section under each degradation; as they are where the source has LR of its own."""
    nothing = rewards.make("psnr_y")
    varied = [{"preset": preset} for preset in presets] if "preset" in env else [{}]
    return [build_task(env, nothing, **preset, **changes) for preset in varied]


def build_scorer(
    settings: ScorerSettings, policy: FlowPolicy, env: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, float]:
    """Make candidates of the policy, label them, train the scorer and write it to `folder`/scorer.

    Writes `correlations.json` beside it: see `correlations`, on the validation split. Returns what it cost.

    Raises:
        Incompatible: for a policy other than the compact one, or contexts without ground truth.
    """
    if not isinstance(policy, CompactPolicy):
        raise Incompatible(f"the compact scorer's candidates come from the compact policy, got '{policy.name}'")
    started = time.monotonic()
    policies = {"base": policy} | {f"shaken {s}": shaken(policy, s, i) for i, s in enumerate(settings.shaken)}

    def groups(n: int, seed: int, **changes: Any) -> list[Group]:
        return make_groups(tasks_under(env, settings.presets, **changes), policies, n, seed)

    train = groups(settings.groups, seed)
    validation = groups(settings.validation_groups, seed + 10**6, split="validation")
    print(f"scorer: {len(train)} groups of {len(train[0].images)} in {time.monotonic() - started:.0f} s", flush=True)
    model = train_scorer(
        train, validation, steps=settings.steps, groups_per_step=settings.groups_per_step, lr=settings.lr, seed=seed,
        report=lambda row: print("scorer: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True),
    )  # fmt: skip
    ranks = correlations(model, validation)
    write_json(folder / "scorer" / "correlations.json", ranks)
    model.save(folder / "scorer")  # last: it seals the folder
    return {"seconds": time.monotonic() - started, "updates": float(settings.steps), **ranks}
