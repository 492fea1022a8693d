"""What a rater is shown: which images of which context, in which order and on which side, drawn for each rater anew."""

import hashlib
import itertools
import random
from dataclasses import dataclass, replace

from srgym.runners.arena.study import CHECK, Study, decoys

__all__ = ["Trial", "schedule"]


@dataclass(frozen=True)
class Trial:
    """One set of images that a rater chooses from.

    Attributes:
        kind: "vote", "repeat" (of a vote) or "check" (where "intact" is right).
        context: its number in the study.
        shown: the names of the images, from left to right.
    """

    kind: str
    context: int
    shown: tuple[str, ...]


def schedule(study: Study, rater: str) -> list[Trial]:
    """A rater's trials; the same whenever they are asked for.

    Every set of methods on every context once, or as many of them as the design allows. Repeats are of the first half
    and lie in the second, checks lie anywhere.
    """
    design = study.design
    seed = hashlib.sha256(f"{design.seed}/{rater}".encode()).digest()
    chance = random.Random(seed)
    sets = itertools.combinations(study.methods, design.together)
    every = [Trial("vote", i, shown) for shown in sets for i in range(len(study.contexts))]
    votes = chance.sample(every, min(design.trials or len(every), len(every)))
    half = len(votes) // 2
    again = chance.sample(votes[:half], min(design.repeats, half))
    late = [*votes[half:], *(replace(trial, kind="repeat") for trial in again)]
    chance.shuffle(late)
    trials = [*votes[:half], *late]
    for context in study.checks:
        trials.insert(chance.randint(0, len(trials)), Trial("check", context, (CHECK, *decoys(design.together))))
    return [replace(trial, shown=tuple(chance.sample(trial.shown, len(trial.shown)))) for trial in trials]
