"""RefReward-SR's training: ranking GRPO of a multimodal judge on preferences among images of one LR, through TRL.

A reward function of TRL sees one process's answers at once. That it can rank them, the M images of an LR and the K
answers to each must be among these, next to each other: the rows are written LR by LR, in a new order every epoch, TRL
doesn't shuffle them, and a process's generation batch is a multiple of M K. The reward function makes sure of it.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.compass.labels import outcomes_from_scores
from srgym.rewards.refreward import ranking_rewards
from srgym.rewards.serving.parsing import parse_scores, score_pattern
from srgym.rewards.serving.prompts import REFREWARD, REFREWARD_FIELDS
from srgym.rewards.serving.question import BadAnswer
from srgym.runners.judges.sft import Example, open_image
from srgym.runners.judges.trainer import Ranking, TrainSettings, adapter, arguments, processes, processor

__all__ = ["Preferences", "RankingReward", "Readable", "pair_figures", "ranking_rows", "ranking_trainer"]


class Preferences(Protocol):
    """Labelled images of LRs, by number; `images` are made when they are asked for."""

    @property
    def labels(self) -> Sequence[Sequence[float]]:
        """Of each LR, the label of each of its images: the higher, the better."""

    def images(self, group: int, place: int) -> tuple[bytes, ...]:
        """What is shown of an image: PNG files."""


def ranking_rows(labels: Sequence[Sequence[float]], settings: Ranking, passes: int, seed: int) -> list[tuple[int, int]]:
    """(LR, image) of every row: M images of one LR, drawn anew in every pass, in a new order of LRs.

    LRs with fewer than M images are left out.

    Raises:
        Refusal: if none has M, or all are fewer than a step takes.
    """
    enough = [i for i, own in enumerate(labels) if len(own) >= settings.images]
    if not enough:
        most = max((len(own) for own in labels), default=0)
        raise Refusal(
            f"ranking.images={settings.images}: expected LRs with as many labelled images, the most are {most}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(passes):
        for at in torch.randperm(len(enough), generator=generator).tolist():
            places = torch.randperm(len(labels[enough[at]]), generator=generator)[: settings.images]
            rows += [(enough[at], place) for place in places.tolist()]
    whole = settings.images * settings.contexts * processes()
    if len(rows) < whole:
        raise Refusal(
            f"ranking.contexts={settings.contexts}: expected at least {settings.contexts * processes()} LRs of "
            f"{settings.images} images for a step, got {len(rows) // settings.images}"
        )
    return rows[: len(rows) // whole * whole]


def pair_figures(scores: Tensor, better: Tensor) -> dict[str, float]:
    """What the reward alone doesn't tell: of answers [M, K], NaN where unreadable, and preferences [M, M].

    Returns:
        `pair_accuracy`: share of the pairs with a better image whose mean scores are in that order, a tie being wrong;
        `ties`: share of these pairs with equal means; `unreadable`: share of the answers. NaN of what there is none of.
    """
    mean = scores.nanmean(1)
    first, second = torch.triu_indices(len(mean), len(mean), 1)
    g, gap = better[first, second], mean[first] - mean[second]
    decided = g.isfinite() & (g != 0.5) & gap.isfinite()
    right = (gap.sign() == (2 * g - 1).sign())[decided].double()
    ties = (gap == 0)[decided].double()
    unreadable = float(scores.isnan().double().mean())
    return {"pair_accuracy": float(right.mean()), "ties": float(ties.mean()), "unreadable": unreadable}


class RankingReward:
    """TRL's reward function: ranking rewards of every answer, from the columns `group` and `label` of its row.

    Args:
        settings: M, K, the reward's form, and the margin of a tie.
    """

    __name__ = "ranking"

    def __init__(self, settings: Ranking) -> None:
        self.settings = settings

    def __call__(
        self,
        completions: Sequence[Any],
        group: Sequence[int],
        label: Sequence[float],
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **_: Any,
    ) -> list[float]:
        """Rewards [n] of answers [n], in [0, 2].

        Raises:
            RuntimeError: if the answers to an LR's images aren't all here and next to each other.
        """
        m, k = self.settings.images, self.settings.answers
        if len(completions) % (m * k):
            raise RuntimeError(f"expected a multiple of {m} images x {k} answers at once, got {len(completions)}")
        rewards: list[float] = []
        for start in range(0, len(completions), m * k):
            here = slice(start, start + m * k)
            labels = torch.tensor(label[here], dtype=torch.float64).view(m, k)
            if len(set(group[here])) > 1 or not bool((labels == labels[:, :1]).all()):
                raise RuntimeError(
                    f"the rows of one LR are apart: expected {k} answers to each of {m} images of one LR, got those of "
                    f"{sorted(set(group[here]))}; the rows must not be shuffled"
                )
            better = outcomes_from_scores(labels[:, 0], self.settings.margin).to(torch.float32)
            scores = torch.tensor([_score(answer) for answer in completions[here]]).view(m, k)
            for name, value in pair_figures(scores, better).items():
                if math.isfinite(value):
                    log_metric(name, value)
            rewards += ranking_rewards(scores, better, self.settings.form).flatten().tolist()
        return rewards


def _score(answer: Any) -> float:
    try:
        return sum(parse_scores(answer[0]["content"], REFREWARD_FIELDS).values()) / len(REFREWARD_FIELDS)
    except BadAnswer:
        return math.nan


class Readable:
    """Examples of the form of an answer, its scores drawn at random: what a model that can't write it learns first, so
    that all it comes to know of the order is the ranking's.

    Args:
        count: of the examples; images are shown in turn.
    """

    def __init__(self, preferences: Preferences, count: int, seed: int) -> None:
        self._preferences, self._count, self._seed = preferences, count, seed
        self._places = [(i, j) for i, own in enumerate(preferences.labels) for j in range(len(own))]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Example:
        low, high = REFREWARD_FIELDS["consistency"]
        drawn = torch.rand(2, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + i))
        c, n = (low + (high - low) * drawn).tolist()
        images = self._preferences.images(*self._places[i % len(self._places)])
        return Example(REFREWARD, images, f'{{"consistency":{c:.2f},"naturalness":{n:.2f}}}')


def ranking_trainer(settings: TrainSettings, model: Path, preferences: Preferences, folder: Path) -> Any:
    """TRL's GRPOTrainer of a model, by its folder, on preferences.

    Raises:
        Refusal: if a step isn't a multiple of the microbatch, or no LR has enough images.
    """
    from trl import GRPOConfig, GRPOTrainer

    own = settings.ranking
    if own.rows % settings.microbatch:
        raise Refusal(
            f"microbatch={settings.microbatch}: expected a divisor of the {own.rows} answers of a step (ranking."
            f"contexts x images x answers = {own.contexts} x {own.images} x {own.answers})"
        )
    parts = own.rows // settings.microbatch
    constrained = {"vllm_structured_outputs_regex": score_pattern(REFREWARD_FIELDS)} if own.vllm else {}
    common = arguments(settings, folder) | {"num_train_epochs": 1}  # the passes are in the rows
    config = GRPOConfig(
        **common, per_device_train_batch_size=settings.microbatch, gradient_accumulation_steps=parts,
        steps_per_generation=parts, num_generations=own.answers, max_completion_length=own.tokens,
        temperature=own.temperature, beta=own.beta, shuffle_dataset=False, use_vllm=own.vllm, vllm_mode="colocate",
        **constrained,
    )  # fmt: skip
    return GRPOTrainer(
        model=str(model), args=config, train_dataset=_dataset(settings, preferences), peft_config=adapter(settings),
        processing_class=processor(settings, model), reward_funcs=RankingReward(own),
    )  # fmt: skip


def _dataset(settings: TrainSettings, preferences: Preferences) -> Any:
    from datasets import Dataset

    own, labels = settings.ranking, preferences.labels
    passes = math.ceil(settings.epochs)
    if settings.steps is not None:
        usable = max(1, sum(len(group) >= own.images for group in labels))
        passes = math.ceil(settings.steps * own.contexts * processes() / usable)
    rows = ranking_rows(labels, own, passes, settings.seed)

    def rendered(batch: Any) -> dict[str, list[Any]]:
        places = [rows[i] for i in batch["row"]]
        return {
            "prompt": [[{"role": "user", "content": REFREWARD}] for _ in places],
            "images": [[open_image(image) for image in preferences.images(*place)] for place in places],
            "group": [group for group, _ in places],
            "label": [labels[group][place] for group, place in places],
        }

    return Dataset.from_dict({"row": range(len(rows))}).with_transform(rendered)
