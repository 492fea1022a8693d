"""From a judge's scores to the compact scorer (OARS, A.6): it asks the judge, and looks at no ground truth.

What reinforcement learning asks of a reward is an order among the samples of one policy, which differ a hundredth of
what candidates do. So the judge is asked about K samples of each input besides the set's candidates, and their pairs
have a term of the loss of their own, in which a pair counts by how sure it is in face of the judge's noise.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.files import to_png, write_json
from srgym.policies import Policy, derive_seeds
from srgym.rewards.compass.compact import CompactCompass
from srgym.rewards.compass.mllm import MLLMScorer
from srgym.rewards.compass.train import Group as Taught
from srgym.rewards.compass.train import fit_scorer, label_loss, predict
from srgym.rewards.finpercep.model import load as load_finder
from srgym.rewards.finpercep.reward import SHIPPED
from srgym.rewards.serving.engines import Engine
from srgym.runners.judges.material import Group, Material
from srgym.runners.judges.rating import Rated, rate, scored_by
from srgym.runners.judges.sft import from_png
from srgym.runners.reward_models.audit_lines import group_correlations
from srgym.settings import Count, Natural, Positive, check_arguments

__all__ = ["DistilSettings", "agreement", "distil", "pair_loss", "with_samples"]

_INPUT = "the input, enlarged"
_ROUNDING = 0.01 / np.sqrt(12)  # what a score of two decimals is rounded by, as a standard deviation


@dataclass(frozen=True)
class DistilSettings:
    """How a judge is distilled.

    Attributes:
        policy: whose samples the student must tell apart, as a policy section; {}: the compact one. samples: K of each.
        sampler_steps: of the policy.
        validation: split that the student is measured on; its training is on `split`.
        repeats, temperature: a judge that samples is asked so often about every image; its mean teaches, and the spread
            is its noise. Once, at temperature 0: what is left is that of rounding.
        steps, lr, groups_per_step: of the student's training. pairs: weight of the pairs of one policy's samples.
        engine: who answers for the judge's folder: transformers (also {}) or vllm with their options.
    """

    policy: Mapping[str, Any] = field(default_factory=dict)
    samples: Annotated[int, Ge(3)] = 8
    sampler_steps: Count = 6
    split: str = "train"
    validation: str = "test"
    repeats: Count = 1
    temperature: Annotated[float, Ge(0)] = 0.0
    steps: Count = 2500
    groups_per_step: Count = 2
    lr: Positive = 2e-3
    pairs: Annotated[float, Ge(0)] = 1.0
    seed: Natural = 0
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arguments(DistilSettings, vars(self), "")
        if (self.repeats > 1) != (self.temperature > 0):
            raise Refusal(
                "repeats and temperature: a judge is asked several times to know its noise, which it has "
                f"at a temperature above 0 alone, got {self.repeats} and {self.temperature}"
            )


# What the judge is asked about


class _Extended:
    """A set's pictures, and behind each group's own those of the policy and the enlarged input."""

    def __init__(self, material: Material, policy: Policy, settings: DistilSettings) -> None:
        self._material, self._policy, self._settings = material, policy, settings
        self._held: tuple[int, list[bytes]] = (-1, [])

    def lr(self, group: int) -> bytes:
        return self._material.images.lr(group)

    def hr(self, group: int) -> None:
        """Not for the student."""

    def sr(self, group: int, place: int) -> bytes:
        own = len(self._material.groups[group].methods)
        if place < own:
            return self._material.images.sr(group, place)
        if self._held[0] != group:
            self._held = group, self._drawn(group)
        return self._held[1][place - own]

    @torch.no_grad()
    def _drawn(self, group: int) -> list[bytes]:
        settings, material = self._settings, self._material
        lr = from_png(material.images.lr(group))[None]
        like = from_png(material.images.sr(group, 0))
        seeds = derive_seeds(settings.seed, 0, group, torch.arange(settings.samples), stream="distil")
        with self._policy.adapter("ema"):
            sampling = self._policy.sampling(settings.sampler_steps)
            drawn = self._policy.rollout({"lr": lr, "prompt": None}, sampling, seeds)["sr"]
        if drawn.shape[-2:] != like.shape[-2:]:
            raise Refusal(
                f"policy: expected samples of the candidates' size, {tuple(like.shape[-2:])}, got "
                f"{tuple(drawn.shape[-2:])}: a policy of another scale"
            )
        large = F.interpolate(lr, size=like.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        return [to_png(image) for image in (*drawn, *large)]


def with_samples(material: Material, policy: Policy, settings: DistilSettings) -> Material:
    """A material whose groups have K samples of the policy, and the enlarged input, behind their own candidates; labels
    are left out.
    """
    groups: list[Group] = []
    for group in material.groups:
        methods = (*group.methods, *settings.samples * [f"policy {policy.name}"], _INPUT)
        groups.append(replace(group, methods=methods, quality=(), anchor=(), fidelity=None, descriptions=()))
    return Material(groups, _Extended(material, policy, settings), material.about)


def _asked(
    material: Material, engine: Engine, settings: DistilSettings, folder: Path, split: str
) -> tuple[dict[str, Taught], float]:
    """The judge's scores of a split as a student's lessons, by group, and the noise of a score's mean."""
    rounds = [
        rate(
            scored_by(MLLMScorer(engine, seed=settings.seed + i, temperature=settings.temperature)), material,
            folder / "asked" / f"{split}.{i}.jsonl",
        )
        for i in range(settings.repeats)
    ]  # fmt: skip
    lessons: dict[str, Taught] = {}
    spreads = []
    for at, group in enumerate(material.groups):
        said = {part: _stacked(rounds, group.name, part) for part in ("fidelity", "q_lr", "q_sr")}
        kept = torch.tensor(np.isfinite(np.stack(list(said.values()))).all((0, 1)))
        spreads.append(said["q_sr"].var(0, ddof=1) if settings.repeats > 1 else np.zeros(len(kept)))
        if int(kept.sum()) < 2 or not bool(kept[-1]):
            continue  # without the input's own score a group teaches nothing
        fidelity, q_lr, q_sr = (torch.tensor(said[part].mean(0)).float() for part in ("fidelity", "q_lr", "q_sr"))
        q_sr[-1] = q_lr[-1]
        rows = kept.nonzero().flatten().tolist()
        images = torch.stack([from_png(material.images.sr(at, row)) for row in rows])
        kinds = tuple(group.methods[row] for row in rows)
        lr = from_png(material.images.lr(at))
        lessons[group.name] = Taught(lr, images, kinds, q_sr[kept], fidelity[kept], q_sr[kept][None])
    if not lessons:
        raise Refusal(f"the judge has given no usable score of any input of the split '{split}'")
    noise = float(np.sqrt(np.nanmean(np.concatenate(spreads)) / settings.repeats + _ROUNDING**2))
    return lessons, noise


def _stacked(rounds: Sequence[Mapping[str, Rated]], name: str, part: str) -> Any:
    return np.array([own[name][part] for own in rounds], dtype=np.float64)


# What the student learns


def pair_loss(predicted: Tensor, taught: Tensor, noise: float) -> Tensor:
    """Pairwise logistic loss among the samples of one policy, scores [K] each; 0 where the teacher tells none apart.

    A pair is worth how surely the teacher orders it: |2 P - 1|, P = Phi(gap / (sqrt(2) noise)). Margins are in units of
    the teacher's mean gap, so that samples that differ little count as others do.

    Args:
        noise: standard deviation of a taught score.
    """
    gap, margin = taught[:, None] - taught[None, :], predicted[:, None] - predicted[None, :]
    sure = (2 * torch.special.ndtr(gap.abs() / (2**0.5 * noise)) - 1) * (gap != 0)
    if not bool(sure.any()):
        return predicted.sum() * 0
    scale = (gap.abs() * sure).sum() / sure.sum()
    loss: Tensor = (sure * F.softplus(-gap.sign() * margin / scale)).sum() / sure.sum()
    return loss


def _student_loss(model: CompactCompass, group: Taught, noise: float, pairs: float) -> Tensor:
    quality, fidelity = predict(model, group.lr, group.images)
    loss = label_loss(quality, fidelity, group)
    inside = [
        pair_loss(quality[rows], group.quality[rows], noise)
        + pair_loss(fidelity[rows], group.fidelity[rows], noise / 4)
        for rows in group.families()
    ]
    return loss + pairs * torch.stack(inside).mean() if inside else loss


def distil(
    engine: Engine, material: Material, validation: Material, policy: Policy, settings: DistilSettings, folder: Path
) -> dict[str, Any]:
    """Ask the judge, train the student and write it to `folder`, with `distillation.json`; answers are kept.

    Args:
        engine: who answers as the judge. material, validation: to learn from, and to be measured on.

    Returns:
        What `distillation.json` holds.
    """
    started = time.monotonic()
    splits = {"train": material, "validation": validation}
    lessons = {}
    noise = _ROUNDING
    for name, own in splits.items():
        lessons[name], spread = _asked(with_samples(own, policy, settings), engine, settings, folder, name)
        noise = spread if name == "train" else noise
    asked = time.monotonic() - started
    model = fit_scorer(
        list(lessons["train"].values()), list(lessons["validation"].values()),
        lambda student, group, generator, step: _student_loss(student, group, noise, settings.pairs),
        steps=settings.steps, lr=settings.lr, groups_per_step=settings.groups_per_step, seed=settings.seed,
        finder=load_finder(SHIPPED),
        report=lambda row: print("student: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True),
    )  # fmt: skip
    result = {
        "teacher": dict(material.about), "noise": noise, "samples": settings.samples, "policy": policy.name,
        "groups": {name: len(own) for name, own in lessons.items()},
        "agreement": agreement(model, lessons["validation"], {g.name: g.picture or g.name for g in validation.groups}),
        "seconds": {"asking": round(asked, 1), "whole": round(time.monotonic() - started, 1)},
    }  # fmt: skip
    write_json(folder / "distillation.json", result)
    model.save(folder)
    return result


@torch.no_grad()
def agreement(model: CompactCompass, lessons: Mapping[str, Taught], pictures: Mapping[str, str]) -> dict[str, Any]:
    """Spearman's correlation of student and teacher: inside groups, and among one policy's samples.

    The mean over photographs, each the mean of its groups, with its standard error over photographs; groups in which
    either side is constant aren't counted, and how many there are is.

    Args:
        lessons: by group. pictures: the photograph that each group is a piece of.
    """
    rho: dict[str, list[float]] = {"inside_groups": [], "one_policy": []}
    for lesson in lessons.values():
        said = predict(model, lesson.lr, lesson.images)[0].numpy()[None]
        taught = lesson.quality.numpy()[None]
        families = lesson.families()
        rho["inside_groups"].append(float(group_correlations(said, taught)[0]))
        own = [float(group_correlations(said[:, rows], taught[:, rows])[0]) for rows in families]
        rho["one_policy"].append(float(np.nanmean(own)) if np.isfinite(own).any() else np.nan)
    photographs = np.array([pictures[name] for name in lessons])
    return {name: _by_photograph(np.array(values), photographs) for name, values in rho.items()}


def _by_photograph(rho: Any, photographs: Any) -> dict[str, Any]:
    there = np.isfinite(rho)
    means = np.array([rho[there & (photographs == name)].mean() for name in np.unique(photographs[there])])
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    mean = float(means.mean()) if len(means) else None
    return {"spearman": mean, "error": error, "photographs": len(means), "groups": int(there.sum())}
