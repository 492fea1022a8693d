"""A set's labels in stages (OARS, arXiv 2603.12811, 3.2): an anchor rates every image, a ranking compares all pairs of
an input's candidates, calibration puts the one on the other's scale (eq. 2 and 3), a description gives reasons, and a
review holds back what people should look at.

Every answer lies in the set before the next is asked for; labels are made of answers alone, so that whoever is stopped
asks nothing twice and gets the same bytes.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from srgym import rewards
from srgym.errors import Refusal
from srgym.rewards.compass.labels import MOST_INVERTED, calibrate_groups, ranks
from srgym.runners.judges.annotators import LR, Annotator, Human, Scored, View, make_annotator
from srgym.runners.judges.answers import AnswerLog, answer_key
from srgym.runners.judges.judge_set import Candidate, Input, JudgeSet
from srgym.runners.judges.sft import from_png
from srgym.runners.judges.sheets import Sheet
from srgym.settings import Count, Share, check_arguments

__all__ = ["STAGES", "LabelSettings", "Unanswered", "annotate", "described", "label"]

STAGES = ("anchor", "compare", "calibrate", "describe", "review")
_ASKING = ("anchor", "compare", "describe")


class Unanswered(Refusal):
    """A stage needs answers that aren't there; those that are stay."""


@dataclass(frozen=True)
class LabelSettings:
    """How a set is labelled.

    Attributes:
        annotator: who answers in the stages anchor, compare and describe, by name or mapping (see `make_annotator`); or
            {"synthetic": one, "real": another}, since truth is known of synthetic inputs alone.
        samples: ratings of each image by the anchor that are averaged, where it answers differently each time.
        fidelity: the reward in [0, 1] that fidelity is by, where the truth is known.
        inverted, most_inverted: see `calibrate_groups`.
        review: share of the candidates at each end of the scale that people should look at.
        conflict: how far a description's verdict may lie from the score.
        seed: of the order of sheets.
    """

    annotator: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(_ASKING, "served"))
    samples: Count = 3
    fidelity: Any = "structure_texture"
    inverted: Literal["median", "drop"] = "median"
    most_inverted: Share = MOST_INVERTED
    review: Share = 0.05
    conflict: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_arguments(LabelSettings, vars(self), "")
        if set(self.annotator) != set(_ASKING):
            raise Refusal(f"annotator: expected one for each of {', '.join(_ASKING)}, got {', '.join(self.annotator)}")


@dataclass
class _Group:
    """An input with its candidates, and what they look like once that is asked for."""

    own: Input
    candidates: list[Candidate]
    made: JudgeSet = field(repr=False)

    @cached_property
    def lr_hash(self) -> str:
        """Of LR, which two inputs of one HR don't share."""
        return hashlib.sha256(self.made.lr(self.own) or b"").hexdigest()

    def hash_of(self, place: int) -> str:
        return self.lr_hash if place == LR else self.candidates[place].sha256

    @cached_property
    def view(self) -> View:
        lr, hr = self.made.lr(self.own), self.made.hr(self.own)
        if lr is None:
            raise Refusal(f"'{self.own.group}' has no LR image, which its annotators have to see")
        names = list(dict.fromkeys(candidate.method for candidate in self.candidates))
        return View(
            from_png(lr),
            torch.stack([from_png(self.made.sr(candidate)) for candidate in self.candidates]),
            None if hr is None else from_png(hr),
            torch.tensor([names.index(candidate.method) for candidate in self.candidates]),
        )


def _groups(made: JudgeSet) -> list[_Group]:
    return [_Group(own, found, made) for own in made.inputs if (found := made.of_group(own.group))]


class _Annotators:
    """Who answers in a stage, by the kind of input, with the answers that are there."""

    def __init__(self, made: JudgeSet, stage: str, spec: Any) -> None:
        split = isinstance(spec, Mapping) and set(spec) <= {"synthetic", "real"} and bool(spec)
        self.stage = stage
        if split:
            self.by_kind = {kind: make_annotator(own) for kind, own in spec.items()}
        else:
            self.by_kind = dict.fromkeys(("synthetic", "real"), make_annotator(spec))
        folder = made.folder / "answers"
        self.logs = {own.name: AnswerLog(folder / f"{stage}.{_file(own.name)}.jsonl") for own in self.by_kind.values()}

    def of(self, group: _Group) -> tuple[Annotator, AnswerLog]:
        if group.own.kind not in self.by_kind:
            raise Refusal(
                f"the set has {group.own.kind} inputs, and annotator.{self.stage} names nobody for them: expected "
                "{synthetic: ..., real: ...}"
            )
        annotator = self.by_kind[group.own.kind]
        return annotator, self.logs[annotator.name]


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


# Asking


@dataclass(frozen=True)
class _Asked:
    """One question of a group: its key, what of the group it shows, and which time it is asked."""

    key: str
    places: tuple[int, ...]
    sample: int = 0


def _questions(stage: str, group: _Group, annotator: Annotator, samples: int) -> list[_Asked]:
    prompt, name, count = annotator.asks.get(stage, ""), annotator.name, len(group.candidates)
    beside = [group.lr_hash]
    if stage == "anchor":
        times = range(samples if annotator.repeats else 1)
        return [
            _Asked(answer_key([group.hash_of(place)], prompt, name, "", time), (place,), time)
            for time in times
            for place in (LR, *range(count))
        ]
    if stage == "compare":
        pairs = permutations(range(count), 2)
        return [
            _Asked(answer_key([*beside, group.hash_of(a), group.hash_of(b)], prompt, name, "first second"), (a, b))
            for a, b in pairs
        ]
    return [_Asked(answer_key([*beside, group.hash_of(i)], prompt, name), (i,)) for i in range(count)]


def _answers(stage: str, group: _Group, annotator: Annotator, asked: Sequence[_Asked]) -> list[Any]:
    """What an annotator says to questions of one group."""
    if stage == "anchor":
        answers: list[Any] = []
        for time in dict.fromkeys(own.sample for own in asked):
            answers += annotator.rate(group.view, [own.places[0] for own in asked if own.sample == time], time)
        return answers
    if stage == "compare":
        return list(annotator.compare(group.view, [(own.places[0], own.places[1]) for own in asked]))
    return list(annotator.describe(group.view, [own.places[0] for own in asked]))


def annotate(
    made: JudgeSet, stage: str, settings: LabelSettings, progress: Callable[[float], None] | None = None
) -> tuple[int, int]:
    """Ask what isn't answered yet in a stage, group by group.

    Returns:
        How many answers there are, and how many are missing.
    """
    annotators = _Annotators(made, stage, settings.annotator[stage])
    made.note("prompts", {
        f"{stage}.{own.name}": hashlib.sha256(own.asks[stage].encode()).hexdigest()
        for own in annotators.by_kind.values() if own.asks.get(stage)
    })  # fmt: skip
    groups = _groups(made)
    for group in groups:
        _check_truth(stage, annotators.of(group)[0], group)
    people = [own for own in annotators.by_kind.values() if isinstance(own, Human)]
    if people:
        _sheet(made, stage, annotators, groups, settings, people[0])
    there, total = 0, 0
    for i, group in enumerate(groups):
        annotator, log = annotators.of(group)
        asked = _questions(stage, group, annotator, settings.samples)
        missing = [own for own in asked if own.key not in log]
        if missing and annotator not in people:
            answers = dict(zip((own.key for own in missing), _answers(stage, group, annotator, missing), strict=True))
            known = {key: answer for key, answer in answers.items() if answer is not None}
            about = {own.key: _about(group, own) for own in missing}
            log.add(known, about)
            group.__dict__.pop("view", None)  # pictures of a whole set don't fit the memory
        there, total = there + sum(own.key in log for own in asked), total + len(asked)
        if progress is not None:
            progress((i + 1) / len(groups))
    return there, total - there


def _check_truth(stage: str, annotator: Annotator, group: _Group) -> None:
    """Refuse who needs the truth for an input that has none, before anybody is asked."""
    if isinstance(annotator, Scored) and "hr" in annotator.reward.needs and group.own.kind == "real":
        raise Refusal(
            f"annotator.{stage}: '{annotator.name}' compares with the truth, which the set's real inputs don't have: "
            f"expected {{synthetic: {annotator.name}, real: ...}}"
        )


def _about(group: _Group, asked: _Asked) -> dict[str, Any]:
    shown = ["lr" if place == LR else f"{group.candidates[place].method}#{group.candidates[place].sample}"
             for place in asked.places]  # fmt: skip
    return {"group": group.own.group, "shown": shown}


def _sheet(
    made: JudgeSet, stage: str, annotators: _Annotators, groups: Sequence[_Group], settings: LabelSettings, who: Human
) -> None:
    """Write what people are asked, and take what they have filled in."""
    if stage == "describe":
        raise Refusal("people rate and compare here; descriptions come of another annotator, such as served")
    sheet, log = Sheet(made.folder / "sheets" / stage), annotators.logs[who.name]
    items = {
        own.key: (group, own)
        for group in groups
        if annotators.of(group)[0] is who
        for own in _questions(stage, group, who, 1)
        if stage == "anchor" or own.places[0] < own.places[1]  # people are shown one order, drawn
    }
    if not sheet.exists:
        new = {key: item for key, item in items.items() if key not in log}
        sheet.write(stage, list(new), lambda key: _pictures(*new[key]), who.repeated, settings.seed)
    filled = {key: answer for key, answer in sheet.read().items() if key in items and key not in log}
    about = {key: _about(*items[key]) for key in filled}
    log.add(filled, about)
    if stage == "compare":
        for key, answer in filled.items():  # the other order is the same answer
            group, own = items[key]
            (turned,) = (q for q in _questions(stage, group, who, 1) if q.places == (own.places[1], own.places[0]))
            log.add({turned.key: 1 - answer}, {turned.key: _about(group, turned)})


def _pictures(group: _Group, asked: _Asked) -> list[Tensor]:
    """The enlarged input, and what is asked about."""
    view = group.view
    group.__dict__.pop("view", None)  # pictures of a whole set don't fit the memory
    return [view.large, *(view.image(place) for place in asked.places)]


# What the answers come to


def label(made: JudgeSet, settings: LabelSettings) -> pd.DataFrame:
    """Labels of all candidates whose answers are there, a row each, as `labels.parquet` holds them.

    Columns: group, split, kind, method, sample, sha256; q_lr and anchor, as the anchor says; rank r in [0, 1]; alpha,
    beta and flag of the group's calibration; quality in [1, 5]; fidelity in [0, 1], NaN of a real input; outcomes,
    against each candidate of the group; description and its verdict, empty (see `described`); kept, whether the review
    lets it stand.

    Raises:
        Unanswered: where ratings or comparisons are missing, saying how many.
        Refusal: for an anchor that contradicts the ranking (see `calibrate_groups`).
    """
    groups = _groups(made)
    anchor = _Annotators(made, "anchor", settings.annotator["anchor"])
    compare = _Annotators(made, "compare", settings.annotator["compare"])
    rated = [_ratings(group, *anchor.of(group), settings) for group in groups]
    outcomes = [_outcomes(group, *compare.of(group), settings) for group in groups]
    lacking = sum(bool(q.isnan().any()) for q in rated)
    if lacking:
        raise Unanswered(f"{lacking} of {len(groups)} groups lack ratings: run the stage anchor first, or again")
    lacking = sum(len(o) > 1 and bool(o.isnan().all(1).any()) for o in map(_apart, outcomes))
    if lacking:
        raise Unanswered(
            f"{lacking} of {len(groups)} groups have candidates that nobody compared: run the stage compare"
        )
    ranked = [ranks(outcome) for outcome in outcomes]
    fitted = calibrate_groups(
        [(rank, q[1:]) for rank, q in zip(ranked, rated, strict=True)], settings.inverted, settings.most_inverted
    )
    fidelity = rewards.make(settings.fidelity)
    rows: list[dict[str, Any]] = []
    for group, q, outcome, rank, fit in zip(groups, rated, outcomes, ranked, fitted, strict=True):
        if fit is None:
            continue
        close = _fidelity(group, fidelity)
        for i, candidate in enumerate(group.candidates):
            rows.append({
                "group": group.own.group, "split": group.own.split, "kind": group.own.kind, "method": candidate.method,
                "sample": candidate.sample, "sha256": candidate.sha256, "q_lr": float(q[0]), "anchor": float(q[1 + i]),
                "rank": float(rank[i]), "alpha": fit.slope, "beta": fit.offset, "flag": fit.flag,
                "quality": float(fit.score[i]), "fidelity": math.nan if close is None else float(close[i]),
                "outcomes": outcome[i].tolist(), "description": "", "verdict": math.nan, "kept": True,
            })  # fmt: skip
        group.__dict__.pop("view", None)
    return pd.DataFrame(rows)


def _ratings(group: _Group, annotator: Annotator, log: AnswerLog, settings: LabelSettings) -> Tensor:
    """The mean rating of the input and of each candidate, [1 + N]; NaN without any."""
    sums: dict[int, list[float]] = {place: [] for place in (LR, *range(len(group.candidates)))}
    for own in _questions("anchor", group, annotator, settings.samples):
        if own.key in log:
            sums[own.places[0]].append(float(log[own.key]))
    means = [sum(values) / len(values) if values else math.nan for values in sums.values()]
    return torch.tensor(means, dtype=torch.float64)


def _outcomes(group: _Group, annotator: Annotator, log: AnswerLog, settings: LabelSettings) -> Tensor:
    """[N, N] as answered, NaN where nobody said anything, 0.5 on the diagonal."""
    outcome = torch.full((len(group.candidates),) * 2, math.nan, dtype=torch.float64)
    outcome.fill_diagonal_(0.5)
    for own in _questions("compare", group, annotator, settings.samples):
        if own.key in log:
            outcome[own.places] = float(log[own.key])
    return outcome


def _apart(outcome: Tensor) -> Tensor:
    """Without the diagonal, a pair known if either order is: [N, N]."""
    known = torch.where(outcome.isnan(), 1 - outcome.T, outcome)
    return known.fill_diagonal_(math.nan)


def _fidelity(group: _Group, reward: Any) -> Tensor | None:
    view = group.view
    if group.own.kind != "synthetic" or view.hr is None:
        return None
    scored = reward(view.sr, hr=view.hr.expand_as(view.sr), lr=view.lr[None].expand(len(view.sr), -1, -1, -1))
    close: Tensor = scored.total.double().clamp(0, 1)
    return close


def described(made: JudgeSet, labels: pd.DataFrame, settings: LabelSettings) -> pd.DataFrame:
    """Labels with the descriptions that are there."""
    if labels.empty or not any((made.folder / "answers").glob("describe.*.jsonl")):
        return labels
    annotators = _Annotators(made, "describe", settings.annotator["describe"])
    said = dict(_descriptions(annotators, _groups(made)))
    places = list(zip(labels["group"], labels["method"], labels["sample"], strict=True))
    return labels.assign(
        description=[said.get(place, {}).get("text", "") for place in places],
        verdict=[said.get(place, {}).get("verdict", math.nan) for place in places],
    )


def _descriptions(
    annotators: _Annotators, groups: Iterable[_Group]
) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
    for group in groups:
        annotator, log = annotators.of(group)
        for own in _questions("describe", group, annotator, 1):
            if own.key in log:
                candidate = group.candidates[own.places[0]]
                yield (group.own.group, candidate.method, candidate.sample), log[own.key]
