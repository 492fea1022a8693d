"""Training FinPercep-RM: its three losses, and the loop over one stage.

L = w_map |M - M_gt|_1 + w_rank [relu(m1 - (S_syn - S_SR)) + relu(m2 - (S_GT - S_syn))] + w_align |S(GT) - S_base(GT)|.
The paper leaves margins, weights and the optimiser open; the defaults are ours. So is that the map is learnt on SR and
on the ground truth too, not on the mixture alone: a map that never saw a clean image finds faults in it. And so is
two terms that are off unless asked for. `grade_loss`: the paper's two margins order three images and say nothing of
two super-resolutions, one of which is worse. `likelihood_loss`: the absolute error is least at the median, and where a
fault is less likely than not that is a blank map; cross-entropy is least at the mean. `order_loss`: pairs that
everybody would put in one order, however near their faults are by the map's measure (a smooth image over squares).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.rewards.audit.attack import attacked
from srgym.rewards.finpercep.model import FinPercepRM
from srgym.rewards.finpercep.synthesis import Features, fault_map, normaliser, random_mask, region_mask, synthesise

__all__ = [
    "Example", "align_loss", "fit", "grade_loss", "likelihood_loss", "losses", "make_examples", "map_loss", "measure",
    "order_loss", "rank_loss", "train",
]  # fmt: skip

Base = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Example:
    """A batch to learn from: SR, its ground truth, the mixture of both, and the map of what is wrong with the mixture.

    Attributes:
        sr, gt, synthetic: [B, 3, H, W] in [0, 1].
        fault: [B, 1, H, W] in [0, 1], the mixture's.
        sr_fault: [B, 1, H, W] in [0, 1], that of SR itself.
        group: int64 [B], equal for rows of one context; None: all are of one.
        better, worse: [P, 3, H, W] in [0, 1], pairs of a known order; None: there are none.
    """

    sr: Tensor
    gt: Tensor
    synthetic: Tensor
    fault: Tensor
    sr_fault: Tensor
    group: Tensor | None = None
    better: Tensor | None = None
    worse: Tensor | None = None

    def to(self, device: torch.device) -> "Example":
        """The same on another device."""
        return Example(**{name: part if part is None else part.to(device) for name, part in vars(self).items()})  # type: ignore[arg-type]


def make_examples(
    pairs: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int,
    segments: Sequence[Tensor] | None = None,
    features: Features | None = None,
    alpha: float = 0.5,
    divisor: float | None = None,
    regions: float = 0.5,
) -> list[Example]:
    """Examples from batches (SR, GT), each [B, 3, H, W] in [0, 1].

    Args:
        seed: of the masks; each image's depends on it and on the image's number, not on the cut into batches.
        segments: of each batch, the regions of every GT, int64 [B, H, W]; SLIC superpixels when None.
        features: for the map (see `fault_map`).
        alpha: the pixels' share in the map.
        divisor: that brings maps to [0, 1] (see `normaliser`); of these very examples when None. Held-out data take
            the training data's.
        regions: how many of the masks follow the picture's regions; the others are rectangles and strokes.
    """
    made, number = [], 0
    for batch, (sr, gt) in enumerate(pairs):
        masks = []
        for i, image in enumerate(gt):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            number += 1
            follow = torch.rand((), generator=generator) < regions
            regions_of = None if segments is None else segments[batch][i]
            masks.append(
                region_mask(image, generator, regions_of)
                if follow
                else random_mask(image.shape[-2], image.shape[-1], generator)
            )
        synthetic = synthesise(sr, gt, torch.stack(masks).to(gt))
        faults = (fault_map(synthetic, gt, features, alpha), fault_map(sr, gt, features, alpha))
        made.append(Example(sr, gt, synthetic, *faults))
    if not made:
        raise Refusal("expected at least one batch of (SR, GT) to learn from, got none")
    if divisor is None:
        divisor = normaliser(torch.cat([example.fault.flatten() for example in made]))
    return [
        Example(e.sr, e.gt, e.synthetic, (e.fault / divisor).clamp(max=1), (e.sr_fault / divisor).clamp(max=1))
        for e in made
    ]


def map_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """|M - M_gt|_1: [B] from maps [B, 1, H, W]."""
    return (predicted - target).abs().mean((1, 2, 3))


def rank_loss(s_sr: Tensor, s_syn: Tensor, s_gt: Tensor, margins: tuple[float, float] = (0.05, 0.05)) -> Tensor:
    """relu(m1 - (S_syn - S_SR)) + relu(m2 - (S_GT - S_syn)), [B]: SR below the mixture below the ground truth."""
    return torch.relu(margins[0] - (s_syn - s_sr)) + torch.relu(margins[1] - (s_gt - s_syn))


def align_loss(s_gt: Tensor, base: Tensor) -> Tensor:
    """|S(GT) - S_base(GT)|, [B]: keeps the scale of the model that training starts from."""
    return (s_gt - base).abs()


def grade_loss(score: Tensor, severity: Tensor, group: Tensor | None = None, sharpness: float = 10.0) -> Tensor:
    """Pairwise logistic loss of scores [N] against severities [N].

    A pair's weight is g / (g + 0.05), g how far apart its severities are: near ties count for little, and grave faults
    not for much more than plain ones.

    With `group` [N] only pairs of one group count: over contexts the error follows the content as much as the quality.
    """
    gap = severity[None, :] - severity[:, None]
    if group is not None:
        gap = gap * (group[:, None] == group[None, :])
    margin = sharpness * (score[:, None] - score[None, :])
    weight = gap.abs() / (gap.abs() + 0.05)
    return (weight * F.softplus(-gap.sign() * margin)).sum() / weight.sum().clamp_min(1e-6)


def likelihood_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of maps [B, 1, H, W] in (0, 1) with true ones in [0, 1], less its least value: [B], 0 if equal."""
    p, m = predicted.clamp(1e-6, 1 - 1e-6), target.clamp(0, 1)
    least: Tensor = torch.special.entr(m) + torch.special.entr(1 - m)
    found = -(m * p.log() + (1 - m) * (1 - p).log())
    return (found - least).mean((1, 2, 3))


def order_loss(better: Tensor, worse: Tensor, sharpness: float = 20.0) -> Tensor:
    """Pairwise logistic loss of scores [P] that should be above others [P]: [P]."""
    return F.softplus(sharpness * (worse - better))


def losses(
    model: FinPercepRM,
    example: Example,
    base: Base,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    margins: tuple[float, float] = (0.05, 0.05),
    grade: float = 0.0,
    likelihood: float = 0.0,
    order: float = 0.0,
) -> dict[str, Tensor]:
    """The weighted terms `map`, `rank` and `align`, scalars; stage 0 has no map to learn.

    With `grade` above 0 also that weight of `grade_loss` inside the batch's groups, severity being the mean fault;
    with `likelihood` that of `likelihood_loss` of their maps; with `order` that of `order_loss` of the example's pairs.
    """
    count = len(example.gt)
    pairs = [] if example.better is None or example.worse is None or order == 0 else [example.better, example.worse]
    # One pass for all, so that they see the same weights and cost one launch.
    scores, faults = model(torch.cat([example.sr, example.synthetic, example.gt, *pairs]))
    scores, fault = scores.float(), faults[: 3 * count].float()  # under autocast they come in bfloat16
    score, of_pairs = scores[: 3 * count], scores[3 * count :]
    s_sr, s_syn, s_gt = score.split(count)
    target = torch.cat([example.sr_fault, example.fault, torch.zeros_like(example.fault)])
    terms = {
        "rank": weights[1] * rank_loss(s_sr, s_syn, s_gt, margins).mean(),
        "align": weights[2] * align_loss(s_gt, base(example.gt)).mean(),
    }
    if grade > 0:
        group = None if example.group is None else example.group.repeat(3)
        terms["grade"] = grade * grade_loss(score, target.mean((1, 2, 3)), group)
    if pairs:
        terms["order"] = order * order_loss(*of_pairs.chunk(2)).mean()
    if model.stage > 0:
        terms["map"] = weights[0] * map_loss(fault, target).mean()
        if likelihood > 0:
            terms["likelihood"] = likelihood * likelihood_loss(fault, target).mean()
    return terms


def train(
    model: FinPercepRM,
    examples: Iterable[Example],
    *,
    steps: int,
    base: Base | None = None,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    margins: tuple[float, float] = (0.05, 0.05),
    grade: float = 0.0,
    likelihood: float = 0.0,
    order: float = 0.0,
    lr: float = 1e-4,
    cosine: bool = False,
    flatter: float = 0.0,
    autocast: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, float]]:
    """Train the model at its stage, in place; grow it and train again for the next.

    Args:
        examples: batches, an endless or long enough iterable; the caller shuffles them.
        steps: optimiser steps (AdamW).
        base: S_base, images to scores [B] in [0, 1]; 0.8 everywhere when None, for a model that starts from nothing.
        weights: of map, rank and align. margins: m1 and m2.
        grade, likelihood, order: weights of the terms that the paper hasn't.
        lr: the learning rate; 1e-4 suits a pretrained encoder, 1e-3 to 2e-3 the compact one, which starts from nothing.
        cosine: whether it rises over the first twentieth of the steps and falls to zero at the last.
        flatter: how far images are climbed along the score's gradient before a step, in units of their range, from
            nothing to all of it in turn; labels stay, so that the score can't be raised by what nobody sees (Madry et
            al. 2018).
        autocast: the precision of the forward pass; None: as the weights are.

    Returns:
        one mapping a step: `loss` and its terms.

    Raises:
        ValueError: if the examples end before `steps`.
    """
    if steps < 1:
        raise Refusal(f"expected at least 1 step, got {steps}")
    device = torch.device(device)
    model.to(device).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = model.trainable()
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=lr)
    history = []
    for step, example in enumerate(islice(examples, steps)):
        if cosine:
            for group in optimiser.param_groups:
                group["lr"] = lr * _share_of_rate((step + 1) / steps)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            example = example.to(device)
            if flatter > 0:
                example = _flattered(model, example, flatter * (step % 8) / 7)
            base = base if base is not None else _constant
            terms = losses(model, example, base, weights, margins, grade, likelihood, order)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        history.append({"loss": float(loss.detach())} | {name: float(term.detach()) for name, term in terms.items()})
    model.eval().requires_grad_(False)
    if len(history) < steps:
        raise Refusal(f"expected examples for {steps} steps, got {len(history)}")
    return history


def fit(
    model: FinPercepRM,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    folder: str | Path,
    *,
    steps: Mapping[int, int],
    seed: int,
    base: Base | None = None,
    lr: float = 1e-4,
    device: str | torch.device = "cpu",
    notes: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train a model stage by stage, measure it on held-out images, and save it with both written beside the weights.

    Args:
        model: at any stage up to the first of `steps`; grown as needed.
        examples, held_out: of different photographs.
        folder: where the model is saved.
        steps: of each stage, in order, such as {0: 2000, 1: 2000}.
        seed: of the order in which batches are seen.
        notes: what else to write down (the data's source, the date, the command).

    Returns:
        what `measure` finds at the end.
    """
    started = time.monotonic()
    order = torch.Generator().manual_seed(seed)
    for stage, count in sorted(steps.items()):
        while model.stage < stage:
            model.grow()
        if model.stage > stage:
            raise Refusal(f"the model is at stage {model.stage}, past stage {stage}, which it was to be trained at")
        train(model, _shuffled(examples, order), steps=count, base=base, lr=lr, device=device)
    found = measure(model, held_out, device)
    told = {"steps": {str(stage): count for stage, count in steps.items()}, "lr": lr, "seed": seed, **(notes or {})}
    model.save(folder, held_out=found, seconds=round(time.monotonic() - started), **told)
    return found


def measure(model: FinPercepRM, examples: Sequence[Example], device: str | torch.device = "cpu") -> dict[str, float]:
    """How good a model is on examples.

    Returns:
        `ordered`, the share with S_SR < S_syn < S_GT; `spearman`, the rank correlation of S with minus the mean fault
        over SR, mixture and ground truth; `map_l1` and `map_pearson`, of the mixture's map.
    """
    from scipy.stats import pearsonr, spearmanr

    scores, faults, maps, targets = [], [], [], []
    with torch.no_grad():
        for example in examples:
            e = example.to(torch.device(device))
            parts = [model(image) for image in (e.sr, e.synthetic, e.gt)]
            scores.append(torch.stack([score for score, _ in parts], 1))
            of_gt = torch.zeros(len(e.gt), device=e.gt.device)
            faults.append(torch.stack([e.sr_fault.mean((1, 2, 3)), e.fault.mean((1, 2, 3)), of_gt], 1))
            maps.append(parts[1][1].flatten())
            targets.append(e.fault.flatten())
    s, fault = torch.cat(scores).cpu(), torch.cat(faults).cpu()
    m, target = torch.cat(maps).cpu(), torch.cat(targets).cpu()
    return {
        "ordered": float(((s[:, 0] < s[:, 1]) & (s[:, 1] < s[:, 2])).float().mean()),
        "spearman": float(spearmanr(s.flatten().numpy(), -fault.flatten().numpy()).statistic),
        "map_l1": float((m - target).abs().mean()),
        "map_pearson": float(pearsonr(m.numpy(), target.numpy()).statistic),
    }


def _shuffled(examples: Sequence[Example], generator: torch.Generator) -> Iterator[Example]:
    while True:
        for i in torch.randperm(len(examples), generator=generator).tolist():
            yield examples[i]


def _flattered(model: FinPercepRM, example: Example, budget: float) -> Example:
    """The example's images as the score likes them better within a budget, in one step of the gradient's sign."""
    kinds = ("sr", "gt", "synthetic")
    images = torch.cat([getattr(example, kind) for kind in kinds])
    climbed = attacked(lambda x: model(x)[0].float(), images, budget, steps=1, gradient=True)
    return replace(example, **dict(zip(kinds, climbed.chunk(3), strict=True)))


def _share_of_rate(progress: float) -> float:
    return min(1.0, 20 * progress) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


def _constant(images: Tensor) -> Tensor:
    return images.new_full((len(images),), 0.8)
