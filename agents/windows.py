"""Which of a rollout's T steps add noise, and are trained: a window that moves.

The last step never does: there would be noise left in the image.
"""

from dataclasses import dataclass

from srgym.errors import Refusal
from srgym.policies.noise import derive_seeds

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """The rule by which the window moves; without one it is all steps but the last.

    Attributes:
        steps: T.
        length: of a window that moves.
        fast: its start is drawn in each iteration, from 0 to T / 2 - length (Flow-GRPO-Fast, as published).
        slide: it starts at the first step, and goes on by one after so many iterations, from its end back to the first
            (MixGRPO).
        branch: each group has its own, anywhere, of one step (TempFlow-GRPO).
        seed: of what `fast` draws.
    """

    steps: int
    length: int
    fast: bool = False
    slide: int | None = None
    branch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 2 or (self.moves and not 1 <= self.length < self.steps):
            raise Refusal(
                f"expected at least 2 steps and a window of 1 to steps - 1, got {self.steps} and {self.length}"
            )
        if self.fast + (self.slide is not None) + self.branch > 1 or (self.slide is not None and self.slide < 1):
            raise Refusal(
                "expected one of fast, branch and slide (of at least 1), or none of them, got "
                f"fast={self.fast}, branch={self.branch}, slide={self.slide}"
            )

    @property
    def moves(self) -> bool:
        return self.fast or self.branch or self.slide is not None

    @property
    def trained(self) -> int:
        """How many steps of a sample are trained."""
        return 1 if self.branch else self.length if self.moves else self.steps - 1

    @property
    def starts(self) -> int:
        """At how many steps the window of a group may begin in one iteration."""
        return self.steps - 1 if self.branch else 1

    def at(self, iteration: int) -> tuple[int, int]:
        """(start, length) in an iteration."""
        start = 0
        if self.fast:
            drawn = int(derive_seeds(self.seed, iteration, 0, stream="window"))
            start = drawn % (max(self.steps // 2 - self.length, 0) + 1)
        if self.slide is not None:
            start = iteration // self.slide % (self.steps - self.length)
        return start, self.trained
