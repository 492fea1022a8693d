"""Who takes part in a study and how far they are: the one place where votes are counted, whatever the page asks."""

import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srgym.errors import Refusal
from srgym.runners.arena.schedule import Trial, schedule
from srgym.runners.arena.study import Study
from srgym.runners.arena.votes import Lines, read_lines
from srgym.sealed import Damaged

__all__ = ["Sittings", "Stale", "UnknownRater", "is_vote"]

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that are misread
_LONGEST = 7 * 86400.0  # seconds at one trial


class UnknownRater(Refusal):
    """A code that nobody was given."""


class Stale(Refusal):
    """A vote on another trial than the one that the rater is at: of a double click, or of an old tab."""


class Sittings:
    """The raters of a study and their votes. Several threads may use it at once; one process has a study's.

    What was voted before goes on where it ended. Images have addresses signed with a secret of this process, so that
    neither a method nor a trial to come can be guessed from one.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._raters, self._votes = Lines(study.folder / "raters.jsonl"), Lines(study.folder / "votes.jsonl")
        self._trials = {
            row["rater"]: schedule(study, row["rater"]) for row in read_lines(study.folder / "raters.jsonl")
        }
        self._done = dict.fromkeys(self._trials, 0)
        for row in read_lines(study.folder / "votes.jsonl"):
            if row.get("rater") not in self._done:
                raise Damaged(
                    f"{study.folder}: votes.jsonl has a vote of '{row.get('rater')}', who isn't in raters.jsonl"
                )
            self._done[row["rater"]] += 1

    def __enter__(self) -> "Sittings":
        return self

    def __exit__(self, *_: object) -> None:
        self._raters.close()
        self._votes.close()

    @property
    def counts(self) -> tuple[int, int]:
        """How many raters there are, and how many votes."""
        return len(self._done), sum(self._done.values())

    def join(self) -> str:
        """A new rater, who has agreed to take part: the code that they go on with."""
        rater = "".join(secrets.choice(_LETTERS) for _ in range(10))
        with self._lock:
            self._raters.append({"rater": rater, "agreed": _now()})
            self._trials[rater], self._done[rater] = schedule(self.study, rater), 0
        return rater

    def trial(self, rater: str) -> dict[str, Any]:
        """What the page shows next; `done` where there is no more.

        Raises:
            UnknownRater: for a code that nobody was given.
        """
        trials = self._of(rater)
        number = self._done[rater]
        if number >= len(trials):
            return {"done": True, "total": len(trials)}
        ahead = self._addresses(rater, number + 1) if number + 1 < len(trials) else {"images": []}
        return {
            "done": False, "number": number, "total": len(trials),
            **self._addresses(rater, number), "ahead": ahead["images"],
        }  # fmt: skip

    def vote(self, rater: str, number: int, choice: int | None, seconds: float) -> None:
        """Count a vote; it is on the disk when this returns.

        Args:
            number: the trial's. choice: the place of the image from the left, from 0; None: can't tell.
            seconds: how long the rater looked.

        Raises:
            UnknownRater: see `trial`. Stale: for any trial but the one that the rater is at.
            Refusal: for a choice that there isn't.
        """
        trials = self._of(rater)
        with self._lock:
            if number != self._done[rater] or number >= len(trials):
                raise Stale(f"expected a vote on trial {self._done[rater]}, got one on trial {number}")
            trial = trials[number]
            self._votes.append({
                "rater": rater, "number": number, "kind": trial.kind, "id": self.study.contexts[trial.context],
                "shown": list(trial.shown), "choice": self._chosen(trial, choice),
                "seconds": round(max(seconds, 0.0), 3), "at": _now(),
            })  # fmt: skip
            self._done[rater] += 1

    def _chosen(self, trial: Trial, choice: int | None) -> str | None:
        if choice is None:
            if not self.study.design.ties:
                raise Refusal("this study has no ties: expected the number of an image, got none")
            return None
        if not 0 <= choice < len(trial.shown):
            raise Refusal(f"expected an image from 0 to {len(trial.shown) - 1}, got {choice}")
        return trial.shown[choice]

    def image(self, rater: str, number: int, place: str, signature: str) -> Path | None:
        """The file behind an address; None for one that wasn't signed here."""
        if not hmac.compare_digest(signature.encode(), self._signature(rater, number, place).encode()):
            return None
        trial = self._trials[rater][number]
        return self.study.image("lr" if place == "lr" else trial.shown[int(place)], trial.context)

    def _of(self, rater: str) -> list[Trial]:
        if rater not in self._done:
            raise UnknownRater("expected the code of a rater of this study, got another")
        return self._trials[rater]

    def _addresses(self, rater: str, number: int) -> dict[str, Any]:
        def address(place: str) -> str:
            return f"/image/{rater}/{number}/{place}/{self._signature(rater, number, place)}"

        places = range(len(self._trials[rater][number].shown))
        return {"images": [address(str(place)) for place in places], "lr": address("lr")}

    def _signature(self, rater: str, number: int, place: str) -> str:
        return hmac.digest(self._secret, f"{rater}/{number}/{place}".encode(), "sha256").hex()[:32]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def is_vote(body: Mapping[str, Any]) -> bool:
    """Whether what was posted has the form of a vote."""
    choice, number, seconds = body.get("choice", ""), body.get("number"), body.get("seconds")
    return (
        isinstance(body.get("rater"), str)
        and type(number) is int
        and (choice is None or type(choice) is int)
        and isinstance(seconds, (int, float))
        and abs(seconds) <= _LONGEST  # NaN isn't
    )
