"""Who an agent's batch is shared with, where a run is on several processes."""

from typing import Any, Protocol

from torch import Tensor, tensor

__all__ = ["Alone", "Peers", "pooled"]


class Peers(Protocol):
    """The processes of a run, as an agent sees them: each holds whole groups, in the order of the ranks.

    Attributes:
        rank: which process this is.
        alone: whether there are no others.
        sharded: whether the policy is split between them, so that all must run the same forwards.
    """

    @property
    def rank(self) -> int: ...
    @property
    def alone(self) -> bool: ...
    @property
    def sharded(self) -> bool: ...
    def gather(self, value: Any) -> list[Any]:
        """Every process's value (JSON values), in order; all must call it."""


class Alone:
    """One process."""

    rank, alone, sharded = 0, True, False

    def gather(self, value: Any) -> list[Any]:
        return [value]


def pooled(peers: Peers, own: Tensor) -> tuple[Tensor, slice]:
    """All processes' numbers [N], on the CPU where there are several, and which of them are `own` [n]."""
    if peers.alone:
        return own, slice(0, len(own))
    parts = peers.gather(own.tolist())
    start = sum(len(part) for part in parts[: peers.rank])
    together = tensor([value for part in parts for value in part], dtype=own.dtype)
    return together, slice(start, start + len(own))
