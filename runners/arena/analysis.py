"""From votes to numbers: win rates, Bradley-Terry strengths, agreement; intervals over photographs and raters together.

Each vote is one of a rater on a photograph, and both are samples: another study would have other raters and other
photographs. A binomial interval takes the votes for independent and knows of neither. Here both are resampled (see
`srgym.runners.measure.statistics`), which errs on the wide side where the votes' own noise is all there is.

Of several images at once the best is chosen. Under Luce's axiom the choice between two of them doesn't depend on the
others, so that a choice counts as a win over each image beside it (Luce 1959; Hunter 2004, section 6). A tie is shared
out evenly.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srgym.errors import Refusal
from srgym.runners.arena.study import CHECK, Study
from srgym.runners.arena.votes import read_lines
from srgym.runners.measure.evaluation import split_id
from srgym.runners.measure.statistics import Interval, resampled_intervals

__all__ = ["Ballots", "bradley_terry", "read_ballots"]

Floats = NDArray[np.float64]
Vote = Mapping[str, Any]

_ROUNDS, _STILL = 2000, 1e-9  # of the fixed point, and how little it then moves
_FAINT = 1e-9  # votes of the whole's share, for a resample in which nobody met


def bradley_terry(wins: Floats) -> Floats:
    """Log-strengths of mean zero by the fixed point of Zermelo (Hunter 2004, eq. 3).

    Args:
        wins: [B, M, M], how often row beat column. Half a win each way is added to every pair that met, so that who
            never lost has a strength, too.

    Returns:
        [B, M].
    """
    met = (wins + wins.swapaxes(1, 2) > 0).any(0)
    wins = wins + 0.5 * met
    meetings, won = wins + wins.swapaxes(1, 2), wins.sum(2)
    strength = np.ones(wins.shape[:2])
    for _ in range(_ROUNDS):
        after = won / (meetings / (strength[:, :, None] + strength[:, None, :])).sum(2)
        after /= np.exp(np.log(after).mean(1, keepdims=True))
        moved = np.abs(np.log(after / strength)).max()
        strength = after
        if moved < _STILL:
            break
    return np.log(strength)


@dataclass(frozen=True)
class Ballots:
    """The votes of a study's raters.

    Attributes:
        methods, photographs: of the study. raters: those that are counted.
        votes: theirs, as in votes.jsonl, checks left out.
        passed: the share of the attention checks that each rater, counted or not, answered rightly; NaN of none.
        checks: how many of them each was given so far.
    """

    methods: Sequence[str]
    photographs: Sequence[str]
    raters: Sequence[str]
    votes: Sequence[Vote]
    passed: Mapping[str, float]
    checks: Mapping[str, int]
    contexts: Sequence[str]
    _crops: Mapping[str, int] = field(default_factory=dict)

    def of(self, kind: str) -> list[Vote]:
        """The votes of one kind: "vote" or "repeat"."""
        return [vote for vote in self.votes if vote["kind"] == kind]

    def place(self, vote: Vote) -> tuple[int, int]:
        """Whose vote it is, and on which photograph."""
        return self.raters.index(vote["rater"]), self.photographs.index(split_id(vote["id"])[0])

    def weight(self, vote: Vote) -> float:
        """A photograph with more crops counts no more."""
        return 1 / self._crops[split_id(vote["id"])[0]]

    def shares(self, vote: Vote) -> Floats:
        """What each method got of a vote, [M]: all, or an even share of a tie."""
        return self._dealt(vote["shown"], [vote["choice"]] if vote["choice"] is not None else vote["shown"])

    def best(self, vote: Vote, scores: Mapping[str, float]) -> Floats:
        """What each method would get if scores voted, [M]; NaN where one of the images has none."""
        values = [scores[name] for name in vote["shown"]]
        if not np.isfinite(values).all():
            return np.full(len(self.methods), np.nan)
        return self._dealt(vote["shown"], [n for n, v in zip(vote["shown"], values, strict=True) if v == max(values)])

    def _dealt(self, shown: Sequence[str], among: Sequence[str]) -> Floats:
        dealt = np.zeros(len(self.methods))
        for name in among:
            dealt[self.methods.index(name)] = 1 / len(among)
        return dealt

    # Methods

    @cached_property
    def wins(self) -> Floats:
        """[raters, photographs, methods, methods]: how often the row was chosen where the column was shown, too."""
        wins = np.zeros((len(self.raters), len(self.photographs), len(self.methods), len(self.methods)))
        for vote in self.of("vote"):
            shown = [self.methods.index(name) for name in vote["shown"]]
            shares, weight = self.shares(vote), self.weight(vote)
            for i, j in itertools.permutations(shown, 2):
                wins[(*self.place(vote), i, j)] += weight * shares[i]
        return wins

    @cached_property
    def won(self) -> dict[tuple[str, str, str], float]:
        """By context's id and two methods: the votes for the first where the second was shown, too."""
        won: dict[tuple[str, str, str], float] = {}
        for vote in self.of("vote"):
            shares = dict(zip(self.methods, self.shares(vote), strict=True))
            for one, other in itertools.permutations(vote["shown"], 2):
                key = (vote["id"], one, other)
                won[key] = won.get(key, 0.0) + float(shares[one])
        return won

    def win_rates(self) -> dict[tuple[str, str], Interval]:
        """How often the first of two methods was preferred to the second, for each pair; `p` is against one half."""
        pairs = list(itertools.combinations(range(len(self.methods)), 2))
        won = np.stack([self.wins[:, :, i, j] for i, j in pairs], 2)
        met = won + np.stack([self.wins[:, :, j, i] for i, j in pairs], 2)
        rates = self.ratios(won, met, 0.5)
        return {(self.methods[i], self.methods[j]): rate for (i, j), rate in zip(pairs, rates, strict=True)}

    def chosen(self) -> dict[str, Interval]:
        """The share of the times that a method was shown in which it was chosen."""
        tops, bottoms = self._cells(len(self.methods)), self._cells(len(self.methods))
        for vote in self.of("vote"):
            tops[self.place(vote)] += self.weight(vote) * self.shares(vote)
            bottoms[self.place(vote)] += self.weight(vote) * np.isin(self.methods, vote["shown"])
        return dict(zip(self.methods, self.ratios(tops, bottoms), strict=True))

    def strengths(self) -> dict[str, Interval]:
        """Bradley-Terry log-strengths, of mean zero over the methods."""
        cells = self.wins.shape[0] * self.wins.shape[1]

        def estimate(raters: Floats, photographs: Floats) -> Floats:
            wins = np.einsum("br,bp,rpij->bij", *_alike(raters, photographs), self.wins, optimize=True)
            return bradley_terry(cells * wins)

        return dict(zip(self.methods, self._intervals(estimate), strict=True))

    # Agreement: the chance that two answers are the same, where a tie is decided by a coin

    def among_raters(self) -> Interval:
        """How often two raters choose the same of the same images."""
        same, both = (np.zeros((len(self.raters), len(self.raters), len(self.photographs))) for _ in range(2))
        by_set: dict[tuple[str, frozenset[str]], list[Vote]] = {}
        for vote in self.of("vote"):
            by_set.setdefault((vote["id"], frozenset(vote["shown"])), []).append(vote)
        for votes in by_set.values():
            for one, other in itertools.permutations(votes, 2):
                (r, p), (s, _) = self.place(one), self.place(other)
                same[r, s, p] += self.weight(one) * float(self.shares(one) @ self.shares(other))
                both[r, s, p] += self.weight(one)

        whole = _divided(same.sum(), both.sum())

        def estimate(raters: Floats, photographs: Floats) -> Floats:
            r, p = _alike(raters, photographs)
            top, bottom = (np.einsum("br,bs,bp,rsp->b", r, r, p, cells, optimize=True) for cells in (same, both))
            return np.asarray((top + _FAINT * whole) / (bottom + _FAINT))[:, None]

        return _within(self._intervals(estimate)[0])

    def with_themselves(self) -> Interval:
        """How often a rater chooses the same when a set comes again."""
        first = {(v["rater"], v["id"], frozenset(v["shown"])): v for v in self.of("vote")}
        pairs = [(v, first[v["rater"], v["id"], frozenset(v["shown"])]) for v in self.of("repeat")]
        return self._mean([(v, float(self.shares(v) @ self.shares(before))) for v, before in pairs])

    def first_place(self) -> Interval:
        """How often the leftmost image is chosen: by one in as many as are shown, if its place doesn't matter."""
        return self._mean(
            [(v, float(self.shares(v)[self.methods.index(v["shown"][0])])) for v in self.of("vote")]
        )  # fmt: skip

    def with_judges(self, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Interval]:
        """How often a rater chooses what a judge scores highest.

        Args:
            scores: by judge, context's id and method.
        """
        tops, bottoms = self._cells(len(scores)), self._cells(len(scores))
        for vote in self.of("vote"):
            for i, judge in enumerate(scores.values()):
                agreed = float(self.shares(vote) @ self.best(vote, judge[vote["id"]]))
                if np.isfinite(agreed):
                    tops[(*self.place(vote), i)] += self.weight(vote) * agreed
                    bottoms[(*self.place(vote), i)] += self.weight(vote)
        return dict(zip(scores, self.ratios(tops, bottoms, 0.5), strict=True))

    # Estimates under weights of raters and photographs

    def ratios(self, tops: Floats, bottoms: Floats, null: float = 0.0) -> list[Interval]:
        """Shares: ratios of sums over raters and photographs, each [raters, photographs, N]; bounds cut to [0, 1]."""

        whole = _divided(tops.sum((0, 1)), bottoms.sum((0, 1)))

        def estimate(raters: Floats, photographs: Floats) -> Floats:
            weights = _alike(raters, photographs)
            top, bottom = (np.einsum("br,bp,rpn->bn", *weights, cells, optimize=True) for cells in (tops, bottoms))
            return np.asarray((top + _FAINT * whole) / (bottom + _FAINT))

        return [_within(interval) for interval in self._intervals(estimate, null)]

    def _mean(self, values: Sequence[tuple[Vote, float]]) -> Interval:
        tops, bottoms = self._cells(1), self._cells(1)
        for vote, value in values:
            tops[self.place(vote)] += self.weight(vote) * value
            bottoms[self.place(vote)] += self.weight(vote)
        return self.ratios(tops, bottoms)[0]

    def _cells(self, count: int) -> Floats:
        return np.zeros((len(self.raters), len(self.photographs), count))

    def _intervals(self, estimate: Any, null: float = 0.0) -> list[Interval]:
        return resampled_intervals(estimate, len(self.raters), len(self.photographs), null=null)


def _within(share: Interval) -> Interval:
    """With bounds that a share can have."""
    return replace(share, low=float(np.clip(share.low, 0, 1)), high=float(np.clip(share.high, 0, 1)))


def _alike(raters: Floats, photographs: Floats) -> tuple[Floats, Floats]:
    count = max(len(raters), len(photographs))
    return np.broadcast_to(raters, (count, raters.shape[1])), np.broadcast_to(
        photographs, (count, photographs.shape[1])
    )


def _divided(top: Any, bottom: Any) -> Floats:
    """NaN where nothing was counted."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 0))


def read_ballots(study: Study, everyone: bool = False) -> Ballots:
    """A study's votes, without those of raters who fail the attention checks.

    Args:
        everyone: count all raters, whatever they answered to the checks.

    Raises:
        Refusal: where nobody has voted, or nobody passes.
    """
    votes = read_lines(study.folder / "votes.jsonl")
    raters = list(dict.fromkeys(vote["rater"] for vote in votes if vote["kind"] == "vote"))
    if not raters:
        raise Refusal(f"{study.folder}: nobody has voted yet; srgym arena serve {study.folder}")
    right = {rater: _right(vote for vote in votes if vote["rater"] == rater) for rater in raters}
    passed = {rater: float(np.mean(found)) if found else float("nan") for rater, found in right.items()}
    counted = [rater for rater in raters if everyone or not passed[rater] < study.design.pass_checks]
    if not counted:
        raise Refusal(f"{study.folder}: none of {len(raters)} raters passes the attention checks")
    kept = [vote for vote in votes if vote["rater"] in counted and vote["kind"] != "check"]
    photographs = [split_id(name)[0] for name in study.contexts]
    crops = {name: photographs.count(name) for name in photographs}
    counts = {rater: len(found) for rater, found in right.items()}
    return Ballots(study.methods, list(crops), counted, kept, passed, counts, study.contexts, crops)


def _right(votes: Iterable[Vote]) -> list[bool]:
    return [vote["choice"] == CHECK for vote in votes if vote["kind"] == "check"]
