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
from srgym.rewards.audit.attack import attacked
from srgym.rewards.audit.faults import faults_of
from srgym.rewards.compass.compact import CompactCompass
from srgym.rewards.compass.labels import calibrate, median_slope, min_max, outcomes_from_scores, win_rates
from srgym.rewards.finpercep.model import FinPercepRM
from srgym.rewards.registry import make

# The judges that label: quality on an absolute scale, and fidelity.
ANCHOR, FIDELITY = "ssimulacra2", "structure_texture"
TRUTH = "truth"  # the kind of a group's ground truth

__all__ = [
    "ANCHOR", "FIDELITY", "TRUTH", "Group", "correlations", "fit_scorer", "label", "label_loss", "predict",
    "train_scorer", "unlabelled",
]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """One context's candidates and their labels.

    Attributes:
        lr: [3, h, w]; images: [M, 3, H, W], the last of them LR upsampled; kinds: what made each.
        quality: calibrated labels in [1, 5], [M]; fidelity: in [0, 1], [M].
        votes: what each of the judges of quality says, [J, M], each in its own unit.
        labelled: whether these are labels; a group without is there for the orders that are known without judges.
    """

    lr: Tensor
    images: Tensor
    kinds: tuple[str, ...]
    quality: Tensor
    fidelity: Tensor
    votes: Tensor
    labelled: bool = True

    def families(self) -> list[list[int]]:
        """The rows of each kind that three images or more are of: samples of one policy."""
        rows: dict[str, list[int]] = {}
        for i, kind in enumerate(self.kinds):
            rows.setdefault(kind, []).append(i)
        return [family for family in rows.values() if len(family) >= 3]


def unlabelled(contexts: Sequence[tuple[Tensor, Tensor, list[tuple[str, Tensor]]]]) -> list[Group]:
    """Groups of contexts of (lr, hr, candidates) without labels, the ground truth among the candidates."""
    made = [
        (lr[0], torch.cat([image for _, image in held]), tuple(kind for kind, _ in held)) for lr, _, held in contexts
    ]
    return [
        Group(lr, images, kinds, torch.zeros(len(kinds)), torch.zeros(len(kinds)), torch.zeros(2, len(kinds)), False)
        for lr, images, kinds in made
    ]


def label(contexts: Sequence[tuple[Tensor, Tensor, list[tuple[str, Tensor]]]]) -> list[Group]:
    """Labels for contexts of (lr, hr, candidates): anchor, ranking, calibration, and fidelity.

    `ssimulacra2` anchors, it and `structure_texture` compare (a pair that they disagree on is a tie), and
    `structure_texture` is fidelity. No network is among them, so that judges with one stay independent.
    """
    anchoring, comparing = make(ANCHOR), make(FIDELITY)
    scored = []
    for lr, hr, made in contexts:
        images = torch.cat([image for _, image in made])
        truth = hr.expand_as(images)
        votes = torch.stack([judge(images, hr=truth).total.double() for judge in (anchoring, comparing)])
        anchor = 1 + 4 * torch.sigmoid((votes[0] - 10) / 50)  # 1.6 at -80 (gross faults), 4.4 at 100 (the truth)
        outcome = torch.stack([outcomes_from_scores(vote) for vote in votes]).mean(0)
        scored.append((lr, images, tuple(kind for kind, _ in made), min_max(win_rates(outcome)), anchor, votes))
    slope = median_slope([(rank, anchor) for *_, rank, anchor, _ in scored])
    return [
        Group(
            lr[0], images, kinds, calibrate(rank, anchor, slope).score.float(), votes[1].float().clamp(0, 1),
            votes.float(),
        )
        for lr, images, kinds, rank, anchor, votes in scored
    ]  # fmt: skip


def _rank_loss(predicted: Tensor, target: Tensor, sharpness: float) -> Tensor:
    """Pairwise logistic loss inside a group, each pair weighted by how far apart its labels are."""
    gap = target[:, None] - target[None, :]
    margin = sharpness * (predicted[:, None] - predicted[None, :])
    return (gap.abs() * F.softplus(-gap.sign() * margin)).sum() / gap.abs().sum().clamp_min(1e-6)


def predict(model: CompactCompass, lr: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Quality and fidelity of a context's [3, h, w] images: [M] each."""
    lr_up = F.interpolate(lr[None], size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return model.rate(lr_up.expand_as(images), images)


def _standard(x: Tensor) -> Tensor:
    """[..., M] to mean 0 and deviation 1 over the last axis; 0 where all are equal."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()


def _family_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """1 - the mean correlation of predictions [M] with each of the targets [J, M].

    The samples of one policy differ a hundredth of what candidates do: a loss in the labels' unit doesn't see them.
    """
    return 1 - (_standard(predicted) * _standard(targets).mean(0)).mean()


def label_loss(quality: Tensor, fidelity: Tensor, group: Group) -> Tensor:
    """Absolute errors against a group's labels, and the order inside the group."""
    absolute = F.smooth_l1_loss(quality, group.quality, beta=0.25)
    absolute = absolute + 8 * F.smooth_l1_loss(fidelity, group.fidelity, beta=0.05)
    return absolute + _rank_loss(quality, group.quality, 8.0) + _rank_loss(fidelity, group.fidelity, 40.0)


def _group_loss(quality: Tensor, fidelity: Tensor, group: Group, family: float) -> Tensor:
    """Against the labels, and `family` times the order inside each policy's samples."""
    families = [
        _family_loss(quality[rows], group.votes[:, rows]) + _family_loss(fidelity[rows], group.fidelity[None, rows])
        for rows in group.families()
    ]
    inside = torch.stack(families).mean() if families else quality.new_zeros(())
    return label_loss(quality, fidelity, group) + family * inside


def _order_loss(quality: Tensor, fidelity: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Rows that everybody would put above others, however little the judges say they are: pairs [P], [P]."""
    behind = [sharpness * (score[worse] - score[better]) for score, sharpness in ((quality, 8.0), (fidelity, 40.0))]
    return F.softplus(torch.stack(behind)).mean()


def _known_order(kinds: Sequence[str], count: int) -> tuple[Tensor, Tensor]:
    """Rows [P] and [P] of the truth and of all else, of `count` rows that `kinds` name the first of; and of the smooth
    enlargement and of squares. Empty where there is no truth."""
    if TRUTH not in kinds:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    truth = kinds.index(TRUTH)
    pairs = [(truth, row) for row in range(count) if row != truth]
    if {"bicubic", "nearest"} <= set(kinds):
        pairs += 4 * [(kinds.index("bicubic"), kinds.index("nearest"))]
    better, worse = torch.tensor(pairs).T
    return better, worse


def _flattered(model: CompactCompass, lr: Tensor, images: Tensor, generator: torch.Generator, most: float) -> Tensor:
    """Images, half of them climbed along the scorer's gradient by up to `most`, in units of their range.

    Their labels stay: trained on these, the scorer can't be raised by what nobody sees (Madry et al. 2018).
    """

    def score(images: Tensor) -> Tensor:
        quality, fidelity = predict(model, lr, images)
        return quality + 4 * fidelity

    strength, which = torch.rand((2, len(images), 1, 1, 1), generator=generator)
    return attacked(score, images, most * strength * (which < 0.5), steps=1, gradient=True)


def _loss(
    model: CompactCompass,
    group: Group,
    generator: torch.Generator,
    *,
    faults: int,
    order: float,
    family: float,
    flatter: float,
) -> Tensor:
    """A step's loss on a group: against its labels, and the truth against all else and against more faults."""
    images, known = group.images, len(group.images)
    if TRUTH in group.kinds:
        images = torch.cat([images, faults_of(images[group.kinds.index(TRUTH)][None], faults, generator)])
    if flatter:
        images = _flattered(model, group.lr, images, generator, flatter)
    quality, fidelity = predict(model, group.lr, images)
    loss = _group_loss(quality[:known], fidelity[:known], group, family) if group.labelled else quality.new_zeros(())
    better, worse = _known_order(group.kinds, len(images))
    return loss + order * _order_loss(quality, fidelity, better, worse) if len(better) else loss


def _vary(group: Group, generator: torch.Generator, kept: int = 18, part: float = 0.67) -> Group:
    """The truth, one policy's samples and others of a group: a part of the picture, turned, mirrored and recoloured."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    families = group.families()
    family = families[draw(len(families))] if families else []
    order = torch.randperm(len(group.images), generator=generator).tolist()
    always = (TRUTH, "bicubic", "nearest")
    first = [*(i for i in order if group.kinds[i] in always), *family]
    rows = torch.tensor([*first, *(i for i in order if i not in first)][:kept])
    height, width = group.lr.shape[1:]
    scale, side = group.images.shape[-1] // width, max(8, int(part * min(height, width)))
    top, left, turn, flip = draw(height - side + 1), draw(width - side + 1), draw(4), draw(2)
    lr = group.lr[:, top : top + side, left : left + side]
    images = group.images[rows, :, scale * top : scale * (top + side), scale * left : scale * (left + side)]
    lr, images = (torch.rot90(x.flip(-1) if flip else x, turn, (-2, -1)) for x in (lr, images))
    # Few photographs have few colours: the channels change places and pale, in LR and in all of it alike.
    colours, paler = torch.randperm(3, generator=generator), 1 - 0.4 * float(torch.rand((), generator=generator))
    lr, images = (0.5 + paler * (x[..., colours, :, :] - 0.5) for x in (lr, images))
    kinds = tuple(group.kinds[int(i)] for i in rows)
    return Group(lr, images, kinds, group.quality[rows], group.fidelity[rows], group.votes[:, rows], group.labelled)


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
        quality, fidelity = predict(model, group.lr, group.images)
        for name, predicted, target in (
            ("quality", quality, group.quality),
            ("fidelity", fidelity, group.fidelity),
        ):
            everything[name].append(predicted)
            everything[f"{name}_label"].append(target)
            found.setdefault(f"{name}_inside_groups", []).append(_spearman(predicted, target))
            for rows in group.families():
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
    faults: int = 12,
    order: float = 4.0,
    family: float = 0.1,
    flatter: float = 0.0,
    finder: FinPercepRM | None = None,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> CompactCompass:
    """Train the scorer and return the average of its weights (EMA .99).

    Args:
        train: labelled groups, and unlabelled ones.
        faults: of a group's truth in a step, which the truth must be above.
        order: weight of the orders that are known without judges.
        family: weight of the order inside of one policy's samples. There is next to nothing to learn of it without the
            truth, and at 1 its noise drowns the rest.
        flatter: in every other step half of the images are climbed along the scorer's gradient by up to this, in units
            of their range, their labels staying: the score shall not be raised by what nobody sees.
        finder: what the scorer looks with, compact and of stage 1; an untrained one when None.
        report: called with the loss and the validation correlations five times over the run.
    """

    def loss(model: CompactCompass, group: Group, generator: torch.Generator, step: int) -> Tensor:
        climbed = flatter * (step % 2)
        return _loss(model, group, generator, faults=faults, order=order, family=family, flatter=climbed)

    return fit_scorer(
        train, validation, loss, steps=steps, lr=lr, groups_per_step=groups_per_step, finder=finder, seed=seed,
        report=report,
    )  # fmt: skip


def fit_scorer(
    train: Sequence[Group],
    validation: Sequence[Group],
    loss: Callable[[CompactCompass, Group, torch.Generator, int], Tensor],
    *,
    steps: int,
    lr: float = 2e-3,
    groups_per_step: int = 2,
    finder: FinPercepRM | None = None,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> CompactCompass:
    """Train a scorer by a loss of it on a varied group, with a generator and the step, and return the average of its
    weights (EMA .99). The other arguments are `train_scorer`'s.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CompactCompass().train()
    if finder is not None:
        model.finder.load_state_dict(finder.state_dict())
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
            with torch.autocast("cpu", half, enabled=half is not None):
                losses.append(loss(model, _vary(train[int(i)], generator), generator, step))
        total = torch.stack(losses).mean()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        running = 0.98 * running + 0.02 * float(total.detach())
        if (step + 1) % max(1, steps // 5) == 0:
            report({"step": step + 1, "loss": running, **correlations(averaged, validation)})
    return averaged.eval()
