"""Who answers for a set: a served model, a registered reward, the compact scorer, measurements, or people.

An annotator rates single images in [1, 5], says which of two candidates is better, or describes what was done to one.
None sees which method made a candidate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym import rewards
from srgym.errors import Refusal
from srgym.rewards.base import Reward
from srgym.rewards.compass.labels import outcomes_from_scores, tie_margins
from srgym.rewards.compass.mllm import enlarge, seed_of
from srgym.rewards.later import settled
from srgym.rewards.scorers import make_scorer
from srgym.rewards.serving.engines import Engine, make_engine
from srgym.rewards.serving.parsing import parse_object, score_pattern, score_reply
from srgym.rewards.serving.prompts import COMPARE, COMPARE_CHOICES
from srgym.rewards.serving.question import BadAnswer, Question, Reply, encode_images
from srgym.settings import check_arguments

__all__ = ["ANNOTATORS", "LR", "Annotator", "Described", "View", "make_annotator"]

LR = -1
"""The place of a group's input among its candidates."""

Described = dict[str, Any]
"""{"text": what was done to the image, "verdict": how good it is by that, in [1, 5]}."""

_RATE = """Rate the visual quality of this image, its sharpness, its noise and how natural it looks, from 1.00 (bad) \
to 5.00 (excellent), with two decimals. Answer with one JSON object whose only key is quality."""
_RATED = {"quality": (1.0, 5.0)}

_DESCRIBE = """The first image is a low-resolution input, enlarged. The second is its super-resolution. Say in two or \
three sentences what the processing did: what of the input's blur, noise and blocks is gone and what is left, which \
details are true to the input, and which were invented or lost. Then give your verdict on the quality of the second \
image, from 1.00 (bad) to 5.00 (excellent). Answer with one JSON object whose keys are text and verdict."""


@dataclass(frozen=True)
class View:
    """A group as annotators see it.

    Attributes:
        lr: [3, h, w]. sr: [N, 3, H, W]. hr: [3, H, W]; None where there is none. All in [0, 1].
        families: which candidates come of one method, as numbers [N] that say nothing else.
    """

    lr: Tensor
    sr: Tensor
    hr: Tensor | None
    families: Tensor

    @property
    def large(self) -> Tensor:
        """LR at the candidates' size, [3, H, W]."""
        return enlarge(self.lr[None], self.sr[:1])[0]

    def image(self, place: int) -> Tensor:
        """A candidate, or at `LR` the enlarged input, [3, H, W]."""
        return self.large if place == LR else self.sr[place]


class Annotator(Protocol):
    """Answers about a group; None where there is no usable answer.

    Attributes:
        name: what its answers are filed under. asks: what it is asked in a stage, or what else its answer depends on: a
            change of it is a new question. repeats: whether an answer differs from time to time.
    """

    name: str
    asks: Mapping[str, str]
    repeats: bool

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        """Each image's quality in [1, 5]; `LR` among the places is the input."""

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        """Of each pair as it is shown: 1 where the first is better, 0 where the second is, 0.5 where neither."""

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        """What was done to each candidate."""


class Served:
    """A multimodal model.

    Args:
        engine: who answers (see `make_engine`). name: for its answers; a model of another name is asked anew.
        temperature: of ratings, whose samples are averaged; comparisons take the likeliest answer.
    """

    repeats = True

    def __init__(self, engine: Any = "http://127.0.0.1:8001", name: str = "served", temperature: float = 0.7) -> None:
        self.engine: Engine = make_engine(engine, model="judge")
        self.name, self.temperature = name, temperature
        self.asks: Mapping[str, str] = {"anchor": _RATE, "compare": COMPARE, "describe": _DESCRIBE}

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        files = encode_images(torch.stack([view.image(place) for place in places]))
        pattern = score_pattern(_RATED)
        questions = [
            Question(_RATE, (file,), seed_of(sample, file), 32, temperature=self.temperature, pattern=pattern)
            for file in files
        ]
        answers = self.engine.ask(questions, lambda reply: score_reply(reply, _RATED))
        return [None if answer is None else answer["quality"] for answer in answers]

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        large, *files = encode_images(torch.cat([view.large[None], view.sr]))
        questions = [Question(COMPARE, (large, files[a], files[b]), choices=COMPARE_CHOICES) for a, b in pairs]
        return self.engine.ask(questions, _chosen)

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        large, *files = encode_images(torch.cat([view.large[None], view.sr]))
        questions = [
            Question(_DESCRIBE, (large, files[place]), seed_of(0, files[place]), max_tokens=300) for place in places
        ]
        return self.engine.ask(questions, _described)


def _chosen(reply: Reply) -> float:
    values = {"1": 1.0, "2": 0.0, "0": 0.5}
    if reply.text.strip() not in values:
        raise BadAnswer(f"expected one of {', '.join(values)}, got {reply.text!r:.40}")
    return values[reply.text.strip()]


def _described(reply: Reply) -> Described:
    answer = parse_object(reply.text)
    text, verdict = answer.get("text"), answer.get("verdict")
    if not isinstance(text, str) or not text.strip() or not isinstance(verdict, (int, float)) or not 1 <= verdict <= 5:
        raise BadAnswer(f"expected a text and a verdict from 1 to 5, got {answer!r:.80}")
    return {"text": " ".join(text.split()), "verdict": float(verdict)}


class Scored:
    """A registered reward in the place of a judge; one that names `hr` sees the truth.

    Args:
        reward: by name or mapping. name: for its answers; None: the reward's.
        range: the scores that are 1 and 5 on the anchor's scale, with a straight line between; None: the reward's own.
        tie: two candidates whose scores differ by less than this share of the usual gap among their like are a tie:
            among one method's samples the gaps of that method count, else those of the group.

    Raises:
        Refusal: for a reward whose range has no ends, without `range`.
    """

    repeats = False

    def __init__(
        self, reward: Any, name: str | None = None, range: Sequence[float] | None = None, tie: float = 0.1
    ) -> None:
        self.reward: Reward = rewards.make(reward)
        self.name, self.tie = name or self.reward.name, tie
        low, high = self.reward.range if range is None else (float(end) for end in range)
        if not (high > low and high - low < float("inf")):
            raise Refusal(
                f"annotator '{self.name}': the reward's range is {self.reward.range}, so say which scores are 1 and 5 "
                "with range=[low, high]"
            )
        self.low, self.high = low, high
        self.asks: Mapping[str, str] = {"anchor": f"1 at {low:g}, 5 at {high:g}", "compare": f"ties within {tie:g}"}

    def _scores(self, view: View, images: Tensor) -> Tensor:
        truth = None if view.hr is None else view.hr.expand_as(images)
        lr = view.lr[None].expand(len(images), -1, -1, -1)
        scored = self.reward(images, lr=lr, hr=truth, group=torch.zeros(len(images), dtype=torch.int64))
        return torch.where(scored.valid, scored.total.double(), torch.nan)

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        scores = self._scores(view, torch.stack([view.image(place) for place in places]))
        return _known(1 + 4 * ((scores - self.low) / (self.high - self.low)).clamp(0, 1))

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        return _outcomes(self._scores(view, view.sr), view.families, self.tie, pairs)

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        raise _cannot(self.name, "describe")


class Compact:
    """A COMPASS scorer: qualities of LR and SR without the truth.

    Args:
        scorer: by name or mapping (see `make_scorer`). name, tie: see `Scored`.
    """

    repeats = False

    def __init__(self, scorer: Any = "compact", name: str = "compact", tie: float = 0.1) -> None:
        self.scorer, self.name, self.tie = make_scorer(scorer), name, tie
        self.asks: Mapping[str, str] = {"compare": f"ties within {tie:g}"}

    @torch.no_grad()
    def _rated(self, view: View) -> tuple[float, Tensor]:
        _, q_lr, q_sr, valid = settled(self.scorer(view.lr[None].expand(len(view.sr), -1, -1, -1), view.sr))
        known = q_lr[valid]
        return float(known.double().median()) if len(known) else float("nan"), torch.where(
            valid, q_sr.double(), torch.nan
        )

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        q_lr, q_sr = self._rated(view)
        return _known(torch.stack([torch.tensor(q_lr).double() if place == LR else q_sr[place] for place in places]))

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        return _outcomes(self._rated(view)[1], view.families, self.tie, pairs)

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        raise _cannot(self.name, "describe")


class Statistics:
    """Sentences about what can be measured between the enlarged input and a candidate; rates and compares nothing."""

    name, repeats = "statistics", False
    asks: Mapping[str, str] = MappingProxyType({})

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        raise _cannot(self.name, "rate")

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        raise _cannot(self.name, "compare")

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        before = _measured(view.large)
        return [self._said(before, view.large, view.sr[place]) for place in places]

    @staticmethod
    def _said(before: tuple[float, float], large: Tensor, sr: Tensor) -> Described:
        edges, grain = (now / max(then, 1e-4) for now, then in zip(_measured(sr), before, strict=True))
        shift = float((sr.mean((1, 2)) - large.mean((1, 2))).abs().max()) * 255
        parts = [
            f"Edges are {_word(edges, 'softer than', 'about as sharp as', 'sharper than')} in the enlarged input.",
            f"Fine grain is {_word(grain, 'reduced', 'kept', 'added')}.",
            "Colours are kept." if shift < 2 else f"Colours move by up to {shift:.0f} levels.",
        ]
        verdict = 3 + 1.5 * min(max(edges - 1, -1), 1) - 1.0 * min(max(grain / max(edges, 0.1) - 1.5, 0), 1)
        return {"text": " ".join(parts), "verdict": round(min(max(verdict, 1.0), 5.0), 2)}


def _measured(image: Tensor) -> tuple[float, float]:
    """Strength of edges at the scale of LR's pixels, and of grain at SR's own: mean absolute differences."""
    grey = image.mean(0)[None, None]
    coarse = F.avg_pool2d(grey, 2)
    fine = grey - F.interpolate(coarse, size=grey.shape[-2:], mode="bilinear", align_corners=False)
    edges = 0.5 * float(coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean())
    return edges, float(fine.abs().mean())


def _word(ratio: float, less: str, same: str, more: str) -> str:
    return less if ratio < 0.9 else more if ratio > 1.1 else same


def _known(values: Tensor) -> list[float | None]:
    return [value if value == value else None for value in values.tolist()]


def _outcomes(scores: Tensor, families: Tensor, tie: float, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
    outcome = outcomes_from_scores(scores, tie_margins(scores, families, tie))
    return [float(outcome[a, b]) if bool((scores[a] + scores[b]).isfinite()) else None for a, b in pairs]


def _cannot(name: str, what: str) -> Refusal:
    return Refusal(f"annotator '{name}' doesn't {what}: expected another one for that stage, such as served")


class Human:
    """People, through sheets that `srgym judge label` writes and reads (see `sheets.py`), not when they are asked.

    Args:
        repeated: share of the items that they are asked twice.
    """

    name, repeats = "human", False
    asks: Mapping[str, str] = MappingProxyType({})

    def __init__(self, repeated: float = 0.1) -> None:
        check_arguments(Human.__init__, {"repeated": repeated}, "human.")
        self.repeated = repeated

    def rate(self, view: View, places: Sequence[int], sample: int) -> list[float | None]:
        return [None for _ in places]

    def compare(self, view: View, pairs: Sequence[tuple[int, int]]) -> list[float | None]:
        return [None for _ in pairs]

    def describe(self, view: View, places: Sequence[int]) -> list[Described | None]:
        raise _cannot(self.name, "describe")


ANNOTATORS: Mapping[str, Callable[..., Annotator]] = {
    "served": Served,
    "compact": Compact,
    "gt": partial(Scored, {"name": "ssimulacra2"}, name="gt", range=(-80.0, 100.0)),
    "reward": Scored,
    "statistics": Statistics,
    "human": Human,
}
"""By name; `gt` is SSIMULACRA 2 against the truth, `reward:NAME` (or `pyiqa:NAME`) any registered reward."""


def make_annotator(spec: Any) -> Annotator:
    """An annotator by name, `reward:NAME`, or `{"annotator": NAME, **options}`.

    Raises:
        Refusal: for an unknown name or option.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"annotator": spec}
    name = str(options.pop("annotator", None))
    kind, _, of = name.partition(":")
    if kind in ("reward", "pyiqa") and of:
        return Scored(**{"reward": of, **options})
    if name not in ANNOTATORS:
        raise Refusal(
            f"unknown annotator '{name}': expected one of {', '.join(ANNOTATORS)}, reward:NAME, or a mapping with "
            "`annotator` and its options"
        )
    try:
        return ANNOTATORS[name](**options)
    except TypeError as error:
        raise Refusal(f"annotator '{name}': {error}") from error
