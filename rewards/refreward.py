"""RefReward-SR: a judge that sees the low-resolution reference, and the ranking reward that trains such a judge."""

import math

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.compass.mllm import seed_of, shown
from srgym.rewards.later import Later, then
from srgym.rewards.registry import register_reward
from srgym.rewards.serving.engines import Engine, asked, make_engine
from srgym.rewards.serving.parsing import score_pattern, score_reply
from srgym.rewards.serving.prompts import REFREWARD, REFREWARD_FIELDS
from srgym.rewards.serving.question import Question, Reply

__all__ = ["FORMS", "RefReward", "ranking_reward", "ranking_rewards"]

FORMS = ("linear", "square_root")

_SERVED = "http://127.0.0.1:8002"


@register_reward(
    "refreward",
    range=(0.0, 1.0),
    weights="a judge served by `srgym serve refreward --model PATH`",
    purpose="perceptual",
)
class RefReward:
    """RefReward-SR: a multimodal judge of SR against its LR reference, R = ((c + n) / 2 - 1) / 4.

    Components: `consistency` c (of meaning, with the reference) and `naturalness` n, both in [1, 5].

    Args:
        engine: who answers (see `make_engine`); by default what `srgym serve refreward` starts, known as "refreward".
        seed: of the sampling; every pair's own seed follows from it and the two images, whatever the batch.
        temperature: of the sampling.
    """

    def __init__(self, engine: "Spec | Engine" = _SERVED, seed: int = 0, temperature: float = 0.0) -> None:
        self.engine = make_engine(engine, model="refreward")
        self.seed, self.temperature = seed, temperature
        self._pattern = score_pattern(REFREWARD_FIELDS)

    def __call__(self, sr: Tensor, lr: Tensor) -> Later[dict[str, Tensor]]:
        """SR [B, 3, H, W] and LR [B, 3, h, w] in [0, 1] to `total`, `consistency` and `naturalness`, all [B]."""
        answers = asked(self.engine, [self._question(pair) for pair in shown(lr, sr)], _read)
        return then(answers, lambda answers: _columns(answers, sr.device))

    def _question(self, pair: tuple[bytes, bytes]) -> Question:
        seed = seed_of(self.seed, *pair)
        return Question(REFREWARD, pair, seed, 64, temperature=self.temperature, pattern=self._pattern)


def _columns(answers: list[dict[str, float] | None], device: torch.device) -> dict[str, Tensor]:
    rows = [tuple(answer.values()) if answer is not None else (math.nan, math.nan) for answer in answers]
    consistency, naturalness = torch.tensor(rows, device=device).unbind(1)
    total = ((consistency + naturalness) / 2 - 1) / 4
    return {"total": total, "consistency": consistency, "naturalness": naturalness}


def _read(reply: Reply) -> dict[str, float]:
    return score_reply(reply, REFREWARD_FIELDS)


def ranking_reward(
    score: Tensor,
    other_mean: Tensor,
    variance: Tensor,
    other_variance: Tensor,
    better: Tensor,
    form: str = "linear",
) -> Tensor:
    """How well a score ranks its image: p g + (1 - p)(1 - g), p = Phi((s - m') / sqrt(v + v' + 1e-6)).

    A tie, p = 0.5, pays 0.5, as much as a judge that is right in half of the cases. The form "square_root" (Wu et al.
    2025, VisualQuality-R1), sqrt(p g) + sqrt((1 - p)(1 - g)), pays 0.707 for a tie: a judge that is right in less than
    71% of the cases earns more by telling nothing apart, and learns that.

    Args:
        score: s, one sampled score of an image.
        other_mean: m', the mean of another image's sampled scores.
        variance, other_variance: v and v', of both images' sampled scores.
        better: g, 1 where the image is the better one of the two, 0 where it's the worse, 0.5 for a tie.
        form: one of `FORMS`.

    Returns:
        in [0, 1], of the arguments' common shape.
    """
    if form not in FORMS:
        raise Refusal(f"expected a ranking reward of form {' or '.join(FORMS)}, got '{form}'")
    p: Tensor = torch.special.ndtr((score - other_mean) / (variance + other_variance + 1e-6).sqrt())
    right, wrong = p * better, (1 - p) * (1 - better)
    return right + wrong if form == "linear" else right.sqrt() + wrong.sqrt()


def ranking_rewards(scores: Tensor, better: Tensor, form: str = "linear") -> Tensor:
    """The reward of every sampled answer in a batch of images: its mean ranking reward, plus 1 for a readable answer.

    Args:
        scores: [M, K], K answers to each of M images; NaN where an answer can't be read.
        better: [M, M], 1 where image i is better than image j, 0.5 for a tie, 0 where it's worse; NaN where the two
            aren't compared. The diagonal is not looked at.
        form: of `ranking_reward`.

    Returns:
        [M, K] in [0, 2]; 0 for an unreadable answer, 1 for a readable one without a comparison.
    """
    readable = scores.isfinite()
    count = readable.sum(1)
    filled = scores.nan_to_num()
    mean = filled.sum(1) / count.clamp(min=1)
    variance = (torch.where(readable, filled - mean[:, None], 0.0) ** 2).sum(1) / count.clamp(min=1)
    apart = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    compared = better.isfinite() & apart & (count > 0)[None, :]
    each = ranking_reward(
        filled[:, :, None],
        mean[None, None, :],
        variance[:, None, None],
        variance[None, None, :],
        better.nan_to_num(0.5)[:, None, :],
        form,
    )
    rank = torch.where(compared[:, None, :], each, 0.0).sum(2) / compared.sum(1).clamp(min=1)[:, None]
    return torch.where(readable, rank + 1, 0.0)
