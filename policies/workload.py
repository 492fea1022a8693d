"""What an iteration of an agent asks of a policy, in forwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Workload"]


@dataclass(frozen=True)
class Workload:
    """Forwards of one sample through the velocity, on average, in an iteration that leaves no group out.

    Attributes:
        group_size: samples of each context.
        steps: solver steps of a sample without gradient; 0 where nothing is sampled.
        times: trained rows that a sample becomes; 0 where nothing is trained on the flow.
        epochs: passes over the rows.
        beside: forwards without gradient beside each trained row, by the adapter that they run under (None: the base).
        reward_steps: solver steps with gradient, decoding included (REFL, DRaFT); 0 for rewards without gradient.
        recomputed: whether those run twice, for the memory of one.
        guided: classifier-free guidance, under which every velocity is two forwards.
        detached: whether the second of a trained row's has no gradient.
    """

    group_size: int
    steps: float = 0
    times: float = 0
    epochs: int = 1
    beside: Mapping[str | None, float] = field(default_factory=dict)
    reward_steps: int = 0
    recomputed: bool = False
    guided: bool = False
    detached: bool = False

    @property
    def forwards(self) -> float:
        """Without gradient, of one sample."""
        rows = self.times * self.epochs
        return (1 + self.guided) * (self.steps + rows * sum(self.beside.values())) + rows * self.detached

    @property
    def forwards_with_gradient(self) -> float:
        """Of one sample."""
        rows = self.times * self.epochs
        return (1 + self.guided) * (rows + self.reward_steps * (1 + self.recomputed)) - rows * self.detached
