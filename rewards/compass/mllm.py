"""COMPASS's scores from a multimodal language model: read from its answer, or expected over its digits."""

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.registry import Spec
from srgym.rewards.later import Later, then
from srgym.rewards.serving.engines import Engine, asked, make_engine
from srgym.rewards.serving.parsing import score_pattern, score_reply
from srgym.rewards.serving.prompts import COMPASS_FIELDS, COMPASS_STOP, FIDELITY, QUALITY, compass
from srgym.rewards.serving.question import Question, Reply, encode_images

__all__ = ["MLLMScorer", "SoftScorer", "enlarge", "seed_of", "shown"]

_SERVED = "http://127.0.0.1:8000"
_DIGITS = ("1", "2", "3", "4", "5")

Rated = tuple[Tensor, Tensor, Tensor, Tensor]


class MLLMScorer:
    """Asks a model for {"fidelity": F, "q_lr": Q_LR, "q_sr": Q_SR} about two images, LR (enlarged) and SR.

    The scores come before the description, so in training decoding stops behind them. Every input, a real one too, is
    asked about as a `synthetic` one is: the reward needs F, and a model learns F from inputs made of a picture alone.

    Args:
        engine: who answers (see `make_engine`); by default what `srgym serve compass` starts, known as "compass".
        seed: of the sampling; every pair's own seed follows from it and the two images, whatever the batch.
        temperature: of the sampling.
        describe: let the model write its description too, without constraint; slower, and for looking at.
    """

    differentiable = False

    def __init__(
        self,
        engine: "Spec | Engine" = _SERVED,
        seed: int = 0,
        temperature: float = 0.0,
        describe: bool = False,
    ) -> None:
        self.engine = make_engine(engine, model="compass")
        self.seed, self.temperature, self.describe = seed, temperature, describe

    def __call__(self, lr: Tensor, sr: Tensor) -> Later[Rated]:
        """LR [B, 3, h, w] and SR [B, 3, H, W] in [0, 1] to (F, Q_LR, Q_SR, valid), all [B]."""
        answers = asked(self.engine, [self.question(pair) for pair in shown(lr, sr)], _read)
        return then(answers, lambda answers: _columns([_scores(a) for a in answers], sr.device))

    def question(self, pair: tuple[bytes, bytes]) -> Question:
        """What is asked about one pair of PNG files, LR and SR."""
        seed = seed_of(self.seed, *pair)
        text = compass("synthetic")
        if self.describe:
            return Question(text, pair, seed, max_tokens=512, temperature=self.temperature)
        pattern = score_pattern(COMPASS_FIELDS)
        stop = (COMPASS_STOP,)
        return Question(text, pair, seed, 64, temperature=self.temperature, stop=stop, pattern=pattern)


class SoftScorer:
    """The expectation of a one-digit rating from 1 to 5 under the model's own probabilities: no sampling, no ties.

    Both qualities are one question about one image each, so they're on one scale, and a group's LR image is asked about
    once. F is a question about the pair, and (E - 1) / 4.

    Args:
        engine: who answers (see `make_engine`); by default what `srgym serve compass` starts, known as "compass".
    """

    differentiable = False

    def __init__(self, engine: "Spec | Engine" = _SERVED) -> None:
        self.engine = make_engine(engine, model="compass")

    def __call__(self, lr: Tensor, sr: Tensor) -> Later[Rated]:
        """LR [B, 3, h, w] and SR [B, 3, H, W] in [0, 1] to (F, Q_LR, Q_SR, valid), all [B]."""
        pairs = shown(lr, sr)
        questions: dict[tuple[bytes, ...], Question] = {}
        for images in [*pairs, *((image,) for column in zip(*pairs) for image in column)]:
            text = QUALITY if len(images) == 1 else FIDELITY
            questions.setdefault(images, Question(text, images, choices=_DIGITS))

        def rated(answers: list[float | None]) -> Rated:
            mean = dict(zip(questions, answers, strict=True))
            return _columns([_together(mean[pair], mean[pair[:1]], mean[pair[1:]]) for pair in pairs], sr.device)

        return then(asked(self.engine, list(questions.values()), _expected), rated)


def shown(lr: Tensor, sr: Tensor) -> list[tuple[bytes, bytes]]:
    """Pairs [B] as a model sees them, in use and in training: the enlarged LR and the SR, as PNG files."""
    return list(zip(encode_images(enlarge(lr, sr)), encode_images(sr), strict=True))


def enlarge(lr: Tensor, sr: Tensor) -> Tensor:
    """LR [B, 3, h, w] at the size of SR, bicubic, in [0, 1]; a group's repeated image is enlarged once."""
    unique = [i for i in range(len(lr)) if i == 0 or not torch.equal(lr[i], lr[i - 1])]
    large = F.interpolate(lr[unique].detach(), size=sr.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    ends = [*unique[1:], len(lr)]
    return large.repeat_interleave(torch.tensor([b - a for a, b in zip(unique, ends)], device=lr.device), dim=0)


def seed_of(seed: int, *images: bytes) -> int:
    """A seed for a question about images, the same in every batch and order."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=4)
    for image in images:
        digest.update(hashlib.blake2b(image).digest())
    return int.from_bytes(digest.digest(), "big") & 0x7FFFFFFF


def _read(reply: Reply) -> dict[str, float]:
    return score_reply(reply, COMPASS_FIELDS)


def _scores(answer: dict[str, float] | None) -> tuple[float, float, float] | None:
    return None if answer is None else (answer["fidelity"], answer["q_lr"], answer["q_sr"])


def _expected(reply: Reply) -> float:
    return reply.expectation(_DIGITS)


def _together(f: float | None, q_lr: float | None, q_sr: float | None) -> tuple[float, float, float] | None:
    return None if f is None or q_lr is None or q_sr is None else ((f - 1) / 4, q_lr, q_sr)


def _columns(rows: "list[tuple[float, float, float] | None]", device: torch.device) -> Rated:
    table = torch.tensor([row if row is not None else (torch.nan,) * 3 for row in rows], device=device)
    f, q_lr, q_sr = table.unbind(1)
    return f, q_lr, q_sr, torch.tensor([row is not None for row in rows], device=device)
