"""Whether a run still learns: what it is warned of, and what ends it."""

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from srgym.errors import Refusal, WrongType

__all__ = ["Failed", "Health", "check_terms"]

_INVALID = 0.2
_UPDATES = 20
_SPREADLESS = 10


class Failed(Exception):
    """A run that went wrong: nothing is learnt any more, or what is learnt are no numbers.

    Attributes:
        exit_code: of the process.
    """

    exit_code = 1


class Health:
    """Watches one stage.

    Args:
        stage: its name; `reward` and `agent`: their names, for messages.
        patience: iterations in a row without one valid score that end the run. Ten times as many end it where there
            are scores and yet nothing to learn from.
        checkpoints: the folder of the stage's checkpoints, whose newest is named when the run ends.
    """

    def __init__(self, stage: str, reward: str, agent: str, patience: int, checkpoints: Path) -> None:
        self._stage, self._reward, self._agent = stage, reward, agent
        self._patience, self._checkpoints = patience, checkpoints
        self._scoreless, self._rowless, self._skipped = 0, 0, 0
        self._warned: set[str] = set()

    def scored(self, iteration: int, samples: int, scores: Mapping[str, float]) -> None:
        """Look at what is logged of a rollout's scores (see `srgym.runners.loop.collect.statistics`).

        Raises:
            Failed: after too many iterations without a valid score.
        """
        if "reward/invalid" not in scores:
            return
        invalid = scores["reward/invalid"] / samples
        self._scoreless = self._scoreless + 1 if invalid == 1 else 0
        if self._scoreless >= self._patience:
            raise self._failure(
                iteration,
                f"the reward '{self._reward}' gave no valid score in {self._scoreless} iterations",
                f"try it with `srgym rewards check {self._reward}`",
            )
        if _INVALID < invalid < 1:
            self._warn(f"{invalid:.0%} of the scores of '{self._reward}' are invalid; such samples aren't learnt from")
        if invalid < 1 and scores.get("reward/spread_in_groups") == 0:
            self._warn(f"'{self._reward}' scores the samples of each group alike: there's nothing to prefer")

    def learnt(self, iteration: int, rows: float) -> None:
        """Look at how many rows an iteration had to learn from.

        Raises:
            Failed: after too many iterations without one.
        """
        self._rowless = 0 if rows else self._rowless + 1
        if self._rowless >= _SPREADLESS * self._patience:
            raise self._failure(
                iteration,
                f"{self._rowless} iterations had nothing to learn from",
                "look at the reward and agent.filter",
            )

    def skipped(self, iteration: int, updates: int) -> None:
        """Look at how many updates were skipped, as their gradient wasn't finite.

        Raises:
            Failed: when there are too many.
        """
        if updates >= _UPDATES:
            raise self._failure(
                iteration,
                f"{updates} updates had a non-finite gradient (expected none)",
                "lower runner.lr, or look at the reward",
            )

    def weights(self, iteration: int, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Look at trained weights before they are saved.

        Raises:
            Failed: naming the first that isn't finite.
        """
        for name, parameter in parameters:
            if not math.isfinite(float(parameter.detach().sum())) and not torch.isfinite(parameter).all():
                raise self._failure(iteration, f"the weight '{name}' isn't finite any more", "lower runner.lr")

    def _warn(self, sentence: str) -> None:
        if sentence.partition(" ")[2] not in self._warned:
            self._warned.add(sentence.partition(" ")[2])
            warnings.warn(f"stage '{self._stage}': {sentence}", stacklevel=3)

    def place(self, iteration: int) -> str:
        """Where the run is, and where it is saved, in words."""
        kept = sorted(path.name for path in self._checkpoints.glob("[0-9]*"))
        saved = f"what was learnt until iteration {int(kept[-1])} is in {self._checkpoints / kept[-1]}" if kept else ""
        where = f"stage '{self._stage}', iteration {iteration + 1}, reward '{self._reward}', agent '{self._agent}'"
        return f"{where}; {saved or 'nothing was saved before'}"

    def _failure(self, iteration: int, what: str, advice: str) -> Failed:
        return Failed(f"{what}; {advice} ({self.place(iteration)})")


def check_terms(terms: Any, agent: str) -> None:
    """Refuse what a loss returned, where it isn't a TensorDict with a term that is learnt from."""
    if not isinstance(terms, TensorDictBase):
        raise WrongType(f"{agent}.loss: expected a TensorDict of scalars, got {type(terms).__name__}")
    if not any(key.startswith("loss_") for key in terms.keys()):  # noqa: SIM118 - a TensorDict iterates over rows
        named = ", ".join(map(str, terms.keys())) or "nothing"
        raise Refusal(f"{agent}.loss: expected a term named loss_*, which is learnt from, got {named}")
