"""A judge asked about every candidate of a set: a trained one of any recipe, or any reward; answers are kept."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.base import Reward
from srgym.rewards.compass.formula import compass
from srgym.rewards.compass.labels import win_rates
from srgym.rewards.compass.mllm import MLLMScorer
from srgym.rewards.later import settled
from srgym.rewards.refreward import RefReward
from srgym.rewards.serving.engines import Engine
from srgym.rewards.serving.prompts import COMPARE, COMPARE_CHOICES
from srgym.rewards.serving.question import Question, Reply
from srgym.runners.judges.benchmark import order_flips
from srgym.runners.judges.material import Group, Material, compare_images
from srgym.runners.judges.sft import from_png

__all__ = ["Rated", "Rater", "rate", "rater_of", "reward_rater", "scored_by", "truths"]

Rated = dict[str, list[float]]
"""Of one group: `total` of every candidate, NaN without a rating, and its parts."""

Rater = Callable[[Material, int], Rated]


def rate(rater: Rater, material: Material, path: Path) -> dict[str, Rated]:
    """Ratings of every group, by its name; those that `path` (JSON lines) holds already aren't asked for again.

    Raises:
        Refusal: if the file's ratings are of other candidates.
    """
    known = _read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for i, group in enumerate(material.groups):
            if group.name not in known:
                known[group.name] = rater(material, i)
                file.write(json.dumps({"group": group.name, **known[group.name]}) + "\n")
                file.flush()
    for group in material.groups:
        if len(known[group.name]["total"]) != len(group.methods):
            raise Refusal(
                f"{path} rates {len(known[group.name]['total'])} candidates of '{group.name}', and the set has "
                f"{len(group.methods)}: the set has changed, remove the file"
            )
    return {group.name: known[group.name] for group in material.groups}


def _read(path: Path) -> dict[str, Rated]:
    """The ratings of a file, without the last line if whoever wrote it was stopped in the middle."""
    if not path.is_file():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) != len(lines):
        path.write_text("".join(whole))
    rows = [json.loads(line) for line in whole]
    return {row.pop("group"): row for row in rows}


def rater_of(recipe: str, engine: Engine) -> Rater:
    """What asks a trained judge: `compass` gives R and its parts, `refreward` its reward, `compare` win rates."""
    if recipe == "compare":
        return lambda material, group: _compared(engine, material, group)
    if recipe == "refreward":
        judge = RefReward(engine)
        return lambda material, group: _columns(settled(judge(*reversed(_pictures(material, group)))))
    return scored_by(MLLMScorer(engine))


def scored_by(scorer: MLLMScorer) -> Rater:
    """What asks COMPASS's scorer: R, F, Q_LR and Q_SR; the input's quality is its group's median."""

    def scored(material: Material, group: int) -> Rated:
        fidelity, q_lr, q_sr, valid = settled(scorer(*_pictures(material, group)))
        q_lr = q_lr[valid].median().expand_as(q_lr) if bool(valid.any()) else q_lr
        return _columns({"total": compass(fidelity, q_lr, q_sr), "fidelity": fidelity, "q_lr": q_lr, "q_sr": q_sr})

    return scored


def reward_rater(reward: Reward) -> Rater:
    """A registered reward in the place of a judge.

    Raises:
        Incompatible: where it needs what a set hasn't got.
    """

    def rated(material: Material, group: int) -> Rated:
        lr, sr = _pictures(material, group)
        hr = material.images.hr(group)
        truth = None if hr is None else from_png(hr)[None].expand_as(sr)
        output = reward(sr, lr=lr, hr=truth, group=torch.zeros(len(sr), dtype=torch.int64))
        return _columns({"total": output.total})

    return rated


def _columns(parts: Mapping[str, Tensor]) -> Rated:
    return {name: [float(value) for value in column] for name, column in parts.items()}


def _pictures(material: Material, group: int) -> tuple[Tensor, Tensor]:
    """LR and SR of a group's candidates, [N, 3, h, w] and [N, 3, H, W]."""
    own = material.groups[group]
    sr = torch.stack([from_png(material.images.sr(group, place)) for place in range(len(own.methods))])
    return from_png(material.images.lr(group))[None].expand(len(sr), -1, -1, -1), sr


def _compared(engine: Engine, material: Material, group: int) -> Rated:
    """Every pair asked in both orders."""
    images, n = material.images, len(material.groups[group].methods)
    pairs = list(permutations(range(n), 2))
    questions = [
        Question(
            COMPARE, compare_images(images.lr(group), images.sr(group, a), images.sr(group, b)), choices=COMPARE_CHOICES
        )
        for a, b in pairs
    ]
    outcome = torch.full((n, n), 0.5, dtype=torch.float64)
    answers = dict(zip(pairs, engine.ask(questions, _outcome), strict=True))
    for (a, b), answer in answers.items():
        outcome[a, b] = 0.5 if answer is None else answer
    flips = order_flips({pair: answer for pair, answer in answers.items() if answer is not None})
    lost = sum(answer is None for answer in answers.values()) / max(1, len(answers))
    total = win_rates(outcome) if lost < 1 else torch.full((n,), math.nan)
    return {**_columns({"total": total}), "flips": [flips], "unread": [lost]}


def _outcome(reply: Reply) -> float:
    return {"1": 1.0, "2": 0.0, "0": 0.5}[reply.text]


def truths(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """What a set says of its candidates, by group and method: COMPASS of its labels; quality where F isn't known."""
    made = {}
    for group in groups:
        quality = torch.tensor(group.quality, dtype=torch.float64)
        if group.fidelity is not None:
            fidelity = torch.tensor(group.fidelity, dtype=torch.float64)
            quality = compass(fidelity, torch.full_like(quality, group.q_lr), quality)
        made[group.name] = dict(zip(group.labels, quality.tolist(), strict=True))
    return made
