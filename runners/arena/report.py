"""The report of a study: who is preferred, how far raters can be relied on, which judges predict them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srgym.envs.images import read_image, to_float
from srgym.files import write_json
from srgym.rewards.kin import purpose
from srgym.runners.arena.analysis import Ballots, read_ballots
from srgym.runners.arena.judges import Scores, judge_scores
from srgym.runners.arena.study import Study
from srgym.runners.measure.statistics import Interval, holm
from srgym.runners.report.document import Block, Callout, Document, Figures, Heading, Table, Text
from srgym.runners.report.evaluation_report import method_table
from srgym.runners.report.numbers import interval_text, plain, signed
from srgym.runners.report.panels import make_panels
from srgym.runners.report.plots import forest
from srgym.runners.report.writing import write

__all__ = ["write_arena_report"]

_INTERVALS = (
    "Intervals are 95%, over raters and photographs together: another study would have others of both. A tie is half a "
    "preference for each, or an even share of the images shown."
)
_PICTURES = 4  # of disagreement


def write_arena_report(study: Study, metrics: Any = None) -> Path:
    """Write `report.html`, `report.md` with its pictures, and `report.json`, all numbers, into the study's folder.

    Args:
        metrics: the judges, see `judge_scores`.

    Returns:
        The path of the HTML.
    """
    ballots = read_ballots(study)
    scores, missing = judge_scores(study, metrics)
    found = _Found(ballots, read_ballots(study, everyone=True), scores)
    document = Document(study.design.title, _counts(study, ballots))
    document.add(*_alerts(study, ballots), *_preferences(found), *_reliance(study, found), *_judges(found, missing))
    document.add(*_disagreements(study, found), Heading("What was compared"), method_table(study.record))
    write_json(study.folder / "report.json", found.numbers())
    return write(document, study.folder)


class _Found:
    """The numbers that the report is made of, each computed once."""

    def __init__(self, ballots: Ballots, everyone: Ballots, scores: Scores) -> None:
        self.ballots, self.everyone, self.scores = ballots, everyone, scores
        self.win_rates, self.chosen, self.strengths = ballots.win_rates(), ballots.chosen(), ballots.strengths()
        self.among, self.selves, self.first = (
            ballots.among_raters(), ballots.with_themselves(), ballots.first_place(),
        )  # fmt: skip
        judged = ballots.with_judges(scores) if scores else {}
        self.judges = dict(sorted(judged.items(), key=lambda pair: -np.nan_to_num(pair[1].value, nan=-1.0)))

    def numbers(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "raters": list(self.ballots.raters), "votes": len(self.ballots.of("vote")),
            "checks": {r: None if np.isnan(v) else v for r, v in self.ballots.passed.items()},
            "win_rates": [{"method": i, "over": j, **_plain(rate)} for (i, j), rate in self.win_rates.items()],
            "chosen": _all_plain(self.chosen), "bradley_terry": _all_plain(self.strengths),
            "agreement": {"among raters": _plain(self.among), "with themselves": _plain(self.selves)},
            "first_place": _plain(self.first), "judges": _all_plain(self.judges),
        }  # fmt: skip


def _plain(interval: Interval) -> dict[str, float | None]:
    values = {"value": interval.value, "low": interval.low, "high": interval.high, "p": interval.p}
    return {key: None if np.isnan(value) else float(value) for key, value in values.items()}


def _all_plain(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: _plain(interval) for name, interval in intervals.items()}


def _counts(study: Study, ballots: Ballots) -> str:
    return (
        f"{len(ballots.of('vote'))} votes of {len(ballots.raters)} raters on {len(study.contexts)} images of "
        f"{len(ballots.photographs)} photographs, {study.design.together} methods at once. “{study.design.question}”"
    )


def _alerts(study: Study, ballots: Ballots) -> list[Block]:
    alerts: list[Block] = []
    if len(ballots.raters) == 2:
        alerts.append(Callout("warning", "Two raters show a direction: no interval can be made of them."))
    if len(ballots.raters) == 1:
        alerts.append(Callout("warning", "One rater: intervals are over photographs, and say nothing of other people."))
    if left := [rater for rater in ballots.passed if rater not in ballots.raters]:
        alerts.append(
            Callout(
                "warning",
                f"{len(left)} of {len(ballots.passed)} raters answered fewer than {study.design.pass_checks:.0%} of "
                "their attention checks rightly and are left out, by the study's own rule.",
            )
        )
    return alerts


# Methods


def _preferences(found: _Found) -> list[Block]:
    adjusted = holm([rate.p for rate in found.win_rates.values()])
    everyone = found.everyone.win_rates()
    rows = [
        [f"{i} over {j}", _bold(rate), plain(p), interval_text(everyone[i, j])]
        for ((i, j), rate), p in zip(found.win_rates.items(), adjusted, strict=True)
    ]
    ranked = sorted(found.strengths, key=lambda name: -found.strengths[name].value)
    figure = forest(
        {f"{i} over {j}": rate for (i, j), rate in found.win_rates.items()}, "share of preferences", "Win rates",
        "The line is no preference.", line=0.5, limits=(0, 1),
    )  # fmt: skip
    return [
        Heading("Who is preferred"),
        Text(_INTERVALS),
        Table(
            ["pair", "win rate", "p, Holm", "of all raters"], rows,
            "How often the first is preferred. Bold: clear of one half. p is against one half, adjusted for the number "
            "of pairs. The last column leaves nobody out.",
        ),
        Table(
            ["method", "chosen where shown", "Bradley-Terry"],
            [[name, interval_text(found.chosen[name]), signed(found.strengths[name])] for name in ranked],
            "Log-strengths of mean zero; a difference of 1 is odds of 2.7 to 1. Half a win each way is added to every "
            "pair.",
        ),
        Figures([figure]),
    ]  # fmt: skip


def _bold(rate: Interval) -> str:
    clear = rate.low > 0.5 or rate.high < 0.5
    return f"**{interval_text(rate)}**" if clear else interval_text(rate)


# Raters


def _reliance(study: Study, found: _Found) -> list[Block]:
    ballots, chance = found.ballots, 1 / study.design.together
    rows = [
        ["two raters, on the same images", interval_text(found.among), plain(chance, 2)],
        ["a rater and themselves, later", interval_text(found.selves), plain(chance, 2)],
        ["the leftmost image is chosen", interval_text(found.first), plain(chance, 2)],
    ]
    everyone = found.everyone.votes
    raters = []
    for rater, passed in ballots.passed.items():
        own = [vote for vote in everyone if vote["rater"] == rater]
        counted = "yes" if rater in ballots.raters else "no"
        checks = f"{round(passed * ballots.checks[rater])} of {ballots.checks[rater]}" if ballots.checks[rater] else "-"
        ties = np.mean([vote["choice"] is None for vote in own])
        seconds = np.median([vote["seconds"] for vote in own])
        raters.append([rater, counted, str(len(own)), checks, f"{ties:.0%}", plain(float(seconds), 1)])
    return [
        Heading("How far raters can be relied on"),
        Table(["", "how often", "by chance"], rows, "The chance that two answers are the same; a coin decides ties."),
        Table(["rater", "counted", "votes", "checks right", "ties", "seconds, median"], raters),
    ]


# Judges


def _judges(found: _Found, missing: Mapping[str, str]) -> list[Block]:
    rows = [["another rater", "", interval_text(found.among)]]
    rows += [[name, purpose(name) or "-", _bold(agreed)] for name, agreed in found.judges.items()]
    blocks: list[Block] = [
        Heading("Which judge predicts people"),
        Table(
            ["judge", "purpose", "agrees with a rater"], rows,
            "How often a rater chooses the image that the judge scores highest. Bold: clear of one half. No judge can "
            "be expected to do much better than another rater does. With as many judges as this one may be clear by "
            "chance.",
        ),
    ]  # fmt: skip
    if missing:
        blocks.append(Table(["not computed here", "why"], list(missing.items()), words=True))
    return blocks


@dataclass(frozen=True)
class _Disagreement:
    """A context and two methods: people prefer the one, judges the other.

    Attributes:
        people: the share of the votes between the two that `preferred` got. judges: those that score `other` higher.
        size: the product of how far people and judges are from indifference.
    """

    context: int
    preferred: str
    other: str
    people: float
    judges: list[str]
    size: float


def _disagreements(study: Study, found: _Found) -> list[Block]:
    worst = _worst(study, found)[:_PICTURES]
    if not worst:
        return []
    pictures, rows = [], []
    for case in worst:
        title = f"{study.contexts[case.context]}: {case.preferred} or {case.other}"
        picture: dict[str, Any] = {"id": title, "LR": _read(study, "lr", case.context)}
        for label, name in (("people", case.preferred), ("judges", case.other)):
            picture[f"{label}: {name}"] = _read(study, name, case.context)
        if study.has_hr:
            picture["HR"] = _read(study, "hr", case.context)
        pictures.append(picture)
        rows.append([title, f"{case.people:.0%} prefer {case.preferred}", ", ".join(case.judges)])
    caption = "By how clear people are, times how many of the judges are against them."
    return [
        Heading("Where people and judges disagree most"),
        Table(["image", "people", f"judges for the other, of {len(found.scores)}"], rows, caption, words=True),
        make_panels(pictures, "The image that people prefer beside the one that these judges score higher."),
    ]


def _read(study: Study, what: str, context: int) -> Any:
    return to_float(read_image(study.image(what, context)))


def _worst(study: Study, found: _Found) -> list[_Disagreement]:
    """Contexts and pairs on which most people and most judges say the opposite, the clearest first."""
    won, places = found.ballots.won, {name: i for i, name in enumerate(study.contexts)}
    cases = []
    for (name, one, other), wins in won.items():
        people = wins / total if (total := wins + won[name, other, one]) else 0.5
        against = [j for j, s in found.scores.items() if s[name][other] > s[name][one]]
        size = (people - 0.5) * (len(against) / max(len(found.scores), 1) - 0.5)
        if people > 0.5 and size > 0:
            cases.append(_Disagreement(places[name], one, other, people, _by_agreement(found, against), size))
    return sorted(cases, key=lambda case: (-case.size, case.context))


def _by_agreement(found: _Found, judges: Sequence[str]) -> list[str]:
    """Judges, those first that agree with people elsewhere."""
    return [name for name in found.judges if name in judges]
