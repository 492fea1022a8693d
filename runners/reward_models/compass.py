"""The miniature of COMPASS's pipeline: candidates, anchor scores, exhaustive ranking, calibration, and the training of
the compact scorer on the labels (`srgym train experiment=compass_compact`).

Where the paper has a multimodal model judge, the miniature has judges that see the ground truth: SSIMULACRA 2 anchors
(absolute), it and `structure_texture` rank, and `structure_texture` labels fidelity. The scorer sees no truth: it must
tell from (LR, SR) alone.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from srgym import rewards
from srgym.envs import SRTask
from srgym.files import write_json
from srgym.policies import Policy, derive_seeds, load
from srgym.policies.compact import CompactPolicy, bicubic
from srgym.rewards.audit.faults import FAULTS, spoilt_somehow
from srgym.rewards.base import Incompatible
from srgym.rewards.compass.train import Group, correlations, label, train_scorer, unlabelled
from srgym.rewards.finpercep.model import load as load_finder
from srgym.rewards.finpercep.reward import SHIPPED
from srgym.runners.run.build import build_task
from srgym.settings import Count, Natural, check_arguments

__all__ = ["ScorerSettings", "build_scorer", "candidates", "make_groups", "makers", "shaken", "tasks_under"]


def _fakes(image: Tensor, name: str, count: int, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """Faults of one image [1, 3, H, W]: kinds, strengths and places drawn, everywhere in half of them."""
    kinds = [list(FAULTS)[i] for i in torch.randperm(len(FAULTS), generator=generator)[:count].tolist()]
    return [(f"{name}, {kind}", spoilt_somehow(image, kind, generator, least=0.15, area=(0.1, 0.5))) for kind in kinds]


@torch.no_grad()
def candidates(
    lr: Tensor,
    hr: Tensor,
    policies: Mapping[str, Policy],
    steps: int,
    seed: int,
    repeats: int = 6,
    faults: tuple[int, int, int] = (6, 4, 3),
) -> list[tuple[str, Tensor]]:
    """What a context [1, 3, h, w] may be turned into: (kind, image [1, 3, H, W]).

    `repeats` samples of every policy, the mean, bicubic and nearest enlargements, the truth, mixtures with the truth,
    and as many `faults` (`srgym.rewards.audit.faults`) of truth, sample and bicubic. The last is bicubic.
    """
    made: list[tuple[str, Tensor]] = []
    seeds = derive_seeds(seed, 0, 0, torch.arange(repeats), stream="candidates")
    for name, policy in policies.items():
        with policy.adapter("ema"):
            drawn = policy.rollout({"lr": lr}, policy.sampling(steps), seeds)["sr"]
        made += [(name, sr[None]) for sr in drawn]
    generator = torch.Generator().manual_seed(int(seeds[0]))
    scale = hr.shape[-1] // lr.shape[-1]
    plain, sample = bicubic(lr, scale), made[0][1]
    made += [("mean", policy.predict_mean(lr)) for policy in policies.values() if isinstance(policy, CompactPolicy)][:1]
    mix = float(torch.rand((), generator=generator))
    made += [("truth", hr), ("truth and sample", hr.lerp(sample, mix)), ("truth and bicubic", hr.lerp(plain, mix))]
    for (name, image), count in zip((("truth", hr), ("sample", made[1][1]), ("bicubic", plain)), faults, strict=True):
        made += _fakes(image, name, count, generator)
    return [*made, ("nearest", F.interpolate(lr, scale_factor=scale)), ("bicubic", plain)]


def shaken(policy: CompactPolicy, strength: float, seed: int) -> CompactPolicy:
    """A copy of the policy under a random LoRA of a given strength: what training might pass through."""
    other = deepcopy(policy)
    other.add_adapters(rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.trainable_parameters():
            if ".lora_B." in name:
                parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
    other.sync("default", "ema")
    return other


def makers(policy: CompactPolicy, strengths: Sequence[float], learnt: Sequence[str]) -> dict[str, Policy]:
    """The policies whose samples are candidates, by name: the policy, the same at temperature 1, shaken, and learnt."""
    hot = deepcopy(policy)
    hot.temperature = 1.0
    made: dict[str, Policy] = {"base": policy, "base at temperature 1": hot}
    made |= {f"shaken {strength}": shaken(policy, strength, i) for i, strength in enumerate(strengths)}
    return made | {folder: load(folder) for folder in learnt}


def make_groups(
    tasks: Sequence[SRTask],
    policies: Mapping[str, Policy],
    n: int,
    seed: int,
    *,
    samples: int = 3,
    labelled: bool = True,
) -> list[Group]:
    """n groups, contexts taken in turn from the tasks (degradations), with so many samples of each policy.

    Those without labels have two and no faults.

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
        steps = (6, 4, 6, 12)[i // len(tasks) % 4]
        fewer: dict[str, Any] = {"repeats": samples} if labelled else {"repeats": 2, "faults": (0, 0, 0)}
        made = candidates(context.lr, context.hr, policies, steps, seed + i, **fewer)
        contexts.append((context.lr, context.hr, made))
    return label(contexts) if labelled else unlabelled(contexts)


@dataclass(frozen=True)
class ScorerSettings:
    """How the compact scorer is made.

    Attributes:
        groups, validation_groups: labelled contexts, of the training and of the validation split.
        samples: of each policy in a labelled group.
        unlabelled: further contexts of the training split, whose truth must be above all else that is made of them.
        presets: the degradations that contexts are taken from in turn.
        shaken: strengths of the random LoRAs whose policies add candidates.
        learnt: folders of policies that learnt from an earlier scorer: what reinforcement learning makes of one belongs
            among what the next is shown.
        steps: optimiser steps, each on `groups_per_step` groups; lr: the highest learning rate.
        finder: folder of the FinPercep-RM that the scorer looks with; None: the one that ships.
        faults, order, family, flatter: as of `srgym.rewards.compass.train.train_scorer`.
    """

    groups: Count = 300
    validation_groups: Count = 48
    samples: Annotated[int, Ge(2)] = 3
    unlabelled: Natural = 0
    presets: Sequence[str] = ("mild", "mixture")
    shaken: Sequence[float] = (0.03, 0.08)
    learnt: Sequence[str] = ()
    steps: Count = 2500
    groups_per_step: Count = 2
    lr: float = 2e-3
    finder: str | None = None
    faults: Count = 12
    order: float = 4.0
    family: float = 0.1
    flatter: float = 0.0

    def __post_init__(self) -> None:
        check_arguments(ScorerSettings, vars(self), "scorer.")


def tasks_under(env: Mapping[str, Any], presets: Sequence[str], **changes: Any) -> list[SRTask]:
    """The contexts of an env section under each degradation; as they are where the source has LR of its own."""
    nothing = rewards.make("psnr_y")
    varied = [{"preset": preset} for preset in presets] if "preset" in env else [{}]
    return [build_task(env, nothing, **preset, **changes) for preset in varied]


def build_scorer(
    settings: ScorerSettings, policy: Policy, env: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, float]:
    """Make candidates of the policy, label them, train the scorer and write it to `folder`/scorer.

    Writes `correlations.json` beside it: see `correlations`, on the validation split. Returns what it cost.

    Raises:
        Incompatible: for a policy other than the compact one, or contexts without ground truth.
    """
    if not isinstance(policy, CompactPolicy):
        raise Incompatible(f"the compact scorer's candidates come from the compact policy, got '{policy.name}'")
    started = time.monotonic()
    policies = makers(policy, settings.shaken, settings.learnt)

    def groups(n: int, seed: int, labelled: bool = True, **changes: Any) -> list[Group]:
        tasks = tasks_under(env, settings.presets, **changes)
        return make_groups(tasks, policies, n, seed, samples=settings.samples, labelled=labelled)

    train = groups(settings.groups, seed) + groups(settings.unlabelled, seed + 2 * 10**6, labelled=False)
    validation = groups(settings.validation_groups, seed + 10**6, split="validation")
    print(f"scorer: {len(train)} groups of {len(train[0].images)} in {time.monotonic() - started:.0f} s", flush=True)
    model = train_scorer(
        train, validation, steps=settings.steps, groups_per_step=settings.groups_per_step, lr=settings.lr, seed=seed,
        faults=settings.faults, order=settings.order, family=settings.family, flatter=settings.flatter,
        finder=load_finder(settings.finder or SHIPPED),
        report=lambda row: print("scorer: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True),
    )  # fmt: skip
    ranks = correlations(model, validation)
    write_json(folder / "scorer" / "correlations.json", ranks)
    model.save(folder / "scorer")  # last: it seals the folder
    return {"seconds": time.monotonic() - started, "updates": float(settings.steps), **ranks}
