"""How good the generated image is: a judge that sees a whole group at once."""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.compass.mllm import seed_of
from srgym.rewards.later import Later, gathered, then
from srgym.rewards.serving.engines import Engine, asked, make_engine
from srgym.rewards.serving.parsing import parse_object
from srgym.rewards.serving.prompts import judge
from srgym.rewards.serving.question import BadAnswer, Question, Reply, encode_images

__all__ = ["AXES", "Judge", "read_verdict", "verdict_pattern"]

AXES = ("quality", "realism", "consistency")

_SERVED = "http://127.0.0.1:8001"
_BEST = 10
_LARGEST = 26

Verdict = dict[str, dict[str, float]]


class Judge:
    """Asks a multimodal model to score all samples of a context in one question, each on three axes from 0 to 10.

    The samples are shown in an order that follows from a hash of the images and the seed, so neither the order in a
    batch nor a model's liking for the first place favours anyone; scores are put back in the batch's order. An answer
    that doesn't name every sample exactly once is no answer, and the group's rows are NaN.

    Args:
        engine: who answers (see `make_engine`); by default what `srgym serve judge` starts, known as "judge".
        weights: of quality, realism and consistency; they sum to 1.
        seed: of the order and of the sampling.
        temperature: of the sampling.

    Raises:
        ValueError: for weights that aren't three shares.
    """

    def __init__(
        self,
        engine: "Spec | Engine" = _SERVED,
        weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
        seed: int = 0,
        temperature: float = 0.0,
    ) -> None:
        if len(weights) != 3 or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise Refusal(f"judge: expected three weights of {', '.join(AXES)} that sum to 1, got {list(weights)}")
        self.engine = make_engine(engine, model="judge")
        self.weights = tuple(float(weight) for weight in weights)
        self.seed, self.temperature = seed, temperature

    def __call__(self, sr: Tensor, group: Tensor, lr: Tensor | None = None) -> Later[dict[str, Tensor]]:
        """SR [B, 3, H, W], their group int64 [B] and, to be shown too, LR [B, 3, h, w].

        Returns:
            `total` and the three axes, each [B] in [0, 1]; NaN for a group without an answer.
        """
        files = encode_images(sr)
        inputs = encode_images(lr) if lr is not None else None
        rows = [[i for i, of in enumerate(group.tolist()) if of == label] for label in torch.unique(group).tolist()]
        shown = [self._shuffled(members, files) for members in rows]
        questions = [self._question(order, files, inputs) for order in shown]
        verdicts = self._ask(questions, [len(order) for order in shown])
        return then(verdicts, lambda verdicts: self._columns(len(sr), shown, verdicts, sr.device))

    def _columns(
        self, count: int, shown: list[list[int]], verdicts: list[Verdict | None], device: torch.device
    ) -> dict[str, Tensor]:
        table = torch.full((count, 3), math.nan)
        for order, verdict in zip(shown, verdicts, strict=True):
            if verdict is not None:
                for row, name in zip(order, _names(len(order)), strict=True):
                    table[row] = torch.tensor([verdict[name][axis] / _BEST for axis in AXES])
        table = table.to(device)
        total = (table * table.new_tensor(self.weights)).sum(1)
        return {"total": total} | {axis: table[:, i] for i, axis in enumerate(AXES)}

    def _shuffled(self, members: list[int], files: list[bytes]) -> list[int]:
        key = str(self.seed).encode()
        return sorted(members, key=lambda i: hashlib.blake2b(files[i], key=key[:64]).digest())

    def _question(self, order: list[int], files: list[bytes], inputs: list[bytes] | None) -> Question:
        if len(order) > _LARGEST:
            raise Refusal(
                f"the judge names the samples of a group by letter, so it takes {_LARGEST} at most, got {len(order)}"
            )
        images = (*([inputs[order[0]]] if inputs is not None else []), *(files[i] for i in order))
        names = _names(len(order))
        return Question(
            judge(names, referenced=inputs is not None),
            images,
            seed_of(self.seed, *images),
            max_tokens=64 * len(order) + 16,
            temperature=self.temperature,
            pattern=verdict_pattern(names),
        )

    def _ask(self, questions: list[Question], sizes: list[int]) -> Later[list[Verdict | None]]:
        """Verdicts; groups of one size, as they nearly always are, are asked about together."""
        places = {str(size): [i for i, of in enumerate(sizes) if of == size] for size in sorted(set(sizes))}
        answers = {
            size: asked(self.engine, [questions[i] for i in at], partial(_read, names=_names(int(size))))
            for size, at in places.items()
        }

        def sorted_in(answers: dict[str, list[Verdict | None]]) -> list[Verdict | None]:
            found = {i: verdict for size, at in places.items() for i, verdict in zip(at, answers[size], strict=True)}
            return [found[i] for i in range(len(questions))]

        return then(gathered(answers), sorted_in)


def read_verdict(text: str, names: Sequence[str]) -> Verdict:
    """A judge's answer {"A": {"quality": 7, "realism": 6, "consistency": 8}, ...}.

    Raises:
        BadAnswer: unless it has each name exactly once and no other, and for each the three axes as numbers from 0 to
            10.
    """
    values = parse_object(text)
    if set(values) != set(names):
        raise BadAnswer(f"expected scores of {', '.join(names)}, got {', '.join(map(str, values)) or 'none'}")
    return {name: {axis: _axis(name, axis, values[name]) for axis in AXES} for name in names}


def verdict_pattern(names: Sequence[str]) -> str:
    """A regular expression for a verdict on these names, in order, with one decimal."""
    number = r"([0-9]\.[0-9]|10\.0)"
    scores = r"\{" + ",".join(f'"{axis}":{number}' for axis in AXES) + r"\}"
    return r"\{" + ",".join(f'"{name}":{scores}' for name in names) + r"\}"


def _read(reply: Reply, names: Sequence[str]) -> Verdict:
    return read_verdict(reply.text, names)


def _axis(name: str, axis: str, scores: Any) -> float:
    value = scores.get(axis) if isinstance(scores, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _BEST:
        raise BadAnswer(f"expected {name}'s {axis} from 0 to {_BEST}, got {value!r:.80}")
    return float(value)


def _names(count: int) -> list[str]:
    return [chr(ord("A") + i) for i in range(count)]
