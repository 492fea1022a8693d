"""The training of the compact FinPercep-RM that ships with the package (`srgym train experiment=finpercep_compact`).

Super-resolutions of many kinds come from the compact policy (at several numbers of steps, under random LoRAs, its
mean), from plain enlargements and from faults; masks plant them in the ground truth. Every step draws contexts, kinds,
crops, symmetries and masks anew.

Where the paper starts from a trained global model, the compact one starts from nothing, so S_base is a constant, 0.8:
without a base model every clean image counts as good as any other. The features of the true map are band energies,
DINOv3's place being empty.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from srgym import rewards
from srgym.envs import SRTask
from srgym.errors import Refusal
from srgym.files import write_json
from srgym.policies import Policy, derive_seeds
from srgym.policies.compact import CompactPolicy
from srgym.precision import autocast_dtype
from srgym.rewards.audit.faults import faults_of
from srgym.rewards.base import Incompatible
from srgym.rewards.finpercep.heldout import held_out
from srgym.rewards.finpercep.model import FinPercepRM, load
from srgym.rewards.finpercep.reward import SHIPPED
from srgym.rewards.finpercep.synthesis import (
    Features,
    Segmenter,
    band_energies,
    dinov3,
    fault_map,
    normaliser,
    sam,
)
from srgym.rewards.finpercep.train import Example, make_examples, train
from srgym.runners.reward_models.compass import candidates, makers, tasks_under
from srgym.settings import Count, check_arguments

__all__ = ["FinPercepSettings", "Pool", "build_finpercep", "draw_examples", "held_out_examples", "make_pool"]

_STEPS = (6, 2, 12, 4)


@dataclass(frozen=True)
class FinPercepSettings:
    """How the compact FinPercep-RM is made.

    Attributes:
        contexts, validation_contexts: of the training and of the validation split.
        candidates: super-resolutions kept of each context, of kinds drawn at random.
        quantile: of the training maps' non-zero values, what counts as a fault of 1.
        presets: the degradations that contexts are taken from in turn.
        shaken: strengths of the random LoRAs whose policies add candidates.
        steps: optimiser steps of stage 0, 1, ...; a stage with none is passed through.
        contexts_per_step, candidates_per_step: of each context so many of its super-resolutions.
        crop: side of what a step sees of them, in pixels.
        dither: standard deviation, at most, of the noise on what a step sees; the labels are those without it.
        lr: the highest learning rate.
        flatter: see `srgym.rewards.finpercep.train.train`.
        learnt: as of `srgym.runners.reward_models.compass.ScorerSettings`.
        faults: of each context's truth in a step, that the truth must score above: kinds, strengths and places drawn.
        map, likelihood, grade, order: weights of these terms of the loss (`srgym.rewards.finpercep.train`).
        modulation: see `FinPercepRM`.
        start: the folder of a trained model, whose encoder and head stage 0 begins with ("shipped": the one of the
            package); None: from nothing.
        dinov3: the folder of a DINOv3 model, whose features the true map compares; None: band energies.
        sam: the folder of a SAM model, whose regions masks follow; None: superpixels.
    """

    contexts: Count = 360
    validation_contexts: Count = 24
    candidates: Count = 8
    quantile: Annotated[float, Gt(0), Le(1)] = 0.9
    presets: Sequence[str] = ("mild", "mixture")
    shaken: Sequence[float] = (0.01, 0.03)
    steps: Sequence[int] = (0, 12000)
    contexts_per_step: Count = 2
    candidates_per_step: Count = 3
    crop: Annotated[int, Ge(32)] = 64
    dither: float = 0.006
    lr: float = 2.5e-3
    flatter: float = 0.0
    learnt: Sequence[str] = ()
    faults: Count = 6
    map: float = 1.0
    likelihood: float = 2.0
    grade: float = 1.0
    order: float = 3.0
    modulation: str = "clean"
    start: str | None = None
    dinov3: str | None = None
    sam: str | None = None

    def __post_init__(self) -> None:
        check_arguments(FinPercepSettings, vars(self), "scorer.")
        if not 1 <= len(self.steps) <= 4 or min(self.steps) < 0 or self.steps[-1] < 1:
            raise Refusal(
                f"scorer.steps are those of stage 0, 1, ... (up to 3), the last at least 1, got {list(self.steps)}"
            )


@dataclass(frozen=True)
class Pool:
    """One context's ground truth [3, H, W] and super-resolutions of it [M, 3, H, W], of the kinds named.

    `plain` are the bicubic and the nearest-neighbour enlargement [2, 3, H, W], which are of a known order; `segments`
    the regions of the ground truth, int64 [H, W], where a model found them.
    """

    gt: Tensor
    sr: Tensor
    kinds: tuple[str, ...]
    plain: Tensor
    segments: Tensor | None = None


def make_pool(
    tasks: Sequence[SRTask],
    policies: Mapping[str, Policy],
    n: int,
    kept: int,
    seed: int,
    segmenter: Segmenter | None = None,
) -> list[Pool]:
    """Super-resolutions of n contexts, taken in turn from the tasks (degradations) and the policies.

    Raises:
        Incompatible: for contexts without ground truth, which faults are told by.
    """
    pool = []
    for i in range(n):
        task = tasks[i % len(tasks)]
        context = task.context(derive_seeds(seed, 0, i, stream="context") % len(task))
        if context.hr is None:
            raise Incompatible("FinPercep-RM learns faults against ground truth, and these contexts have no 'hr'")
        name = list(policies)[i % len(policies)]
        steps = _STEPS[i // len(tasks) % len(_STEPS)]
        made = candidates(context.lr, context.hr, {name: policies[name]}, steps, seed + i, repeats=2)
        made = [(kind, image) for kind, image in made if kind != "truth"]
        order = torch.randperm(len(made), generator=torch.Generator().manual_seed(seed + i))[:kept].tolist()
        images = torch.cat([made[j][1] for j in order])
        named = dict(made)
        plain = torch.cat([named["bicubic"], named["nearest"]])
        regions = None if segmenter is None else segmenter(context.hr[0])
        pool.append(Pool(context.hr[0], images, tuple(made[j][0] for j in order), plain, regions))
    return pool


def _divisor(pool: Sequence[Pool], quantile: float, features: Features) -> float:
    """What brings the pool's fault maps to [0, 1]."""
    maps = [fault_map(p.sr, p.gt.expand_as(p.sr), features).flatten() for p in pool]
    return normaliser(torch.cat(maps), quantile)


def draw_examples(
    pool: Sequence[Pool],
    settings: FinPercepSettings,
    divisor: float,
    seed: int,
    features: Features = band_energies,
) -> Iterator[Example]:
    """Endless batches: contexts, kinds, a part of the picture, its symmetry and colours, and masks, all drawn anew."""
    generator, number = torch.Generator().manual_seed(seed), 0
    while True:
        number += 1
        picked = torch.randint(len(pool), (settings.contexts_per_step,), generator=generator)
        sr, gt, better, worse, regions = [], [], [], [], []
        for i in picked:
            ours, truth, plain, segments = _part(pool[int(i)], settings, generator)
            regions += [segments] * len(ours)
            sr.append(ours)
            gt.append(truth.expand_as(ours))
            faulty = faults_of(truth[None], settings.faults, generator, seen_alone=True)
            better += [truth.expand_as(faulty), plain[:1]]
            worse += [faulty, plain[1:]]
        pair = (torch.cat(sr), torch.cat(gt))
        masks = seed * 7919 + number
        (example,) = make_examples([pair], seed=masks, segments=_stacked(regions), features=features, divisor=divisor)
        pairs = {"better": torch.cat(better), "worse": torch.cat(worse)}
        example = replace(example, group=picked.repeat_interleave(len(sr[0])), **pairs)
        yield _dithered(example, settings.dither, generator)


def _dithered(example: Example, most: float, generator: torch.Generator) -> Example:
    """Faint noise on every image, of a strength of its own: a score must not turn on what nobody sees."""

    def noisy(image: Tensor) -> Tensor:
        sigma = most * torch.rand(len(image), 1, 1, 1, generator=generator)
        return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1)

    return replace(example, sr=noisy(example.sr), gt=noisy(example.gt), synthetic=noisy(example.synthetic))


def _stacked(regions: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The regions of a batch's images as `make_examples` takes them."""
    known = [each for each in regions if each is not None]
    return [torch.stack(known)] if known else None


def _part(
    pool: Pool, settings: FinPercepSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Some of a context's super-resolutions, its truth, its plain ones and the truth's regions: [M, 3, s, s],
    [3, s, s], [2, 3, s, s] and [s, s]."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    rows = torch.randperm(len(pool.sr), generator=generator)[: settings.candidates_per_step]
    side = min(settings.crop, *pool.gt.shape[-2:])
    top, left, turn, flip = draw(pool.gt.shape[-2] - side + 1), draw(pool.gt.shape[-1] - side + 1), draw(4), draw(2)
    place = (..., slice(top, top + side), slice(left, left + side))
    cut = (x[place] for x in (pool.sr[rows], pool.gt, pool.plain))
    regions = None if pool.segments is None else pool.segments[place]
    # Other colours, darker or paler: there are few photographs, and a score must not be learnt of what they show.
    colours = torch.randperm(3, generator=generator)
    darker, lift = torch.rand(2, generator=generator).tolist()
    contrast = 1 - 0.4 * darker

    def turned(x: Tensor) -> Tensor:
        return torch.rot90(x.flip(-1) if flip else x, turn, (-2, -1))

    sr, gt, plain = (lift * (1 - contrast) + contrast * turned(x)[..., colours, :, :] for x in cut)
    return sr, gt, plain, None if regions is None else turned(regions)


def held_out_examples(
    pool: Sequence[Pool], divisor: float, seed: int, features: Features = band_energies
) -> list[Example]:
    """One example a context, of all its super-resolutions."""
    return [
        make_examples(
            [(p.sr, p.gt.expand_as(p.sr))], seed=seed + i, segments=_stacked([p.segments] * len(p.sr)),
            features=features, divisor=divisor,
        )[0]
        for i, p in enumerate(pool)
    ]  # fmt: skip


def build_finpercep(
    settings: FinPercepSettings, policy: Policy, env: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, float]:
    """Make super-resolutions with the policy, train FinPercep-RM on them stage by stage, write it to `folder`/scorer.

    `held_out.json` beside it has the figures on the validation split (`srgym.rewards.finpercep.heldout`). The models of
    earlier stages are in `folder`/rm0, rm1, ... Returns what it cost, and the figures.

    Raises:
        Incompatible: for a policy other than the compact one, or contexts without ground truth.
    """
    started = time.monotonic()
    if not isinstance(policy, CompactPolicy):
        raise Incompatible(f"FinPercep-RM's super-resolutions come from the compact policy, got '{policy.name}'")
    features = band_energies if settings.dinov3 is None else dinov3(settings.dinov3)
    segmenter = None if settings.sam is None else sam(settings.sam)
    policies = makers(policy, settings.shaken, settings.learnt)

    def pool(n: int, seed: int, **changes: Any) -> list[Pool]:
        tasks = tasks_under(env, settings.presets, **changes)
        return make_pool(tasks, policies, n, settings.candidates, seed, segmenter)

    learnt = pool(settings.contexts, seed)
    divisor = _divisor(learnt, settings.quantile, features)
    kept = pool(settings.validation_contexts, seed + 10**6, split="validation")
    validation = held_out_examples(kept, divisor, seed, features)
    print(f"finpercep: {len(learnt)} contexts in {time.monotonic() - started:.0f} s", flush=True)
    model = _fit(settings, draw_examples(learnt, settings, divisor, seed, features), validation, folder, seed)
    figures = held_out(model, validation, _judge)
    write_json(folder / "scorer" / "held_out.json", figures)
    notes = {"settings": asdict(settings), "divisor": divisor, "s_base": 0.8, "seed": seed}
    notes["features"] = "band_energies" if settings.dinov3 is None else "dinov3"
    model.save(folder / "scorer", held_out=figures, **json.loads(json.dumps(notes)))  # last: it seals the folder
    return {"seconds": time.monotonic() - started, "updates": float(sum(settings.steps)), **figures}


def _judge(images: Tensor, truth: Tensor) -> Tensor:
    return rewards.make("structure_texture")(images, hr=truth).total


def _fit(
    settings: FinPercepSettings,
    examples: Iterator[Example],
    validation: Sequence[Example],
    folder: Path,
    seed: int,
) -> FinPercepRM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FinPercepRM("compact", 0, settings.modulation)
    if settings.start is not None:
        model.begin_with(load(SHIPPED if settings.start == "shipped" else Path(settings.start)))
    for stage, steps in enumerate(settings.steps):
        if stage:
            with torch.random.fork_rng():
                torch.manual_seed(seed + stage)
                model.grow()
        if not steps:
            continue
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half again as fast on a CPU
        history = train(
            model, examples, steps=steps, weights=(settings.map, 1.0, 1.0), grade=settings.grade,
            likelihood=settings.likelihood, order=settings.order, lr=settings.lr, cosine=True, flatter=settings.flatter,
            autocast=autocast_dtype("auto", torch.device("cpu")),
        )  # fmt: skip
        model.save(folder / f"rm{stage}")
        last = history[-max(1, steps // 20) :]
        shown = {name: sum(row[name] for row in last) / len(last) for name in last[0]}
        shown |= {name: value for name, value in held_out(model, validation, _judge).items() if "spearman" in name}
        print(f"finpercep, stage {stage}: " + ", ".join(f"{k} {v:.3g}" for k, v in shown.items()), flush=True)
    return model
