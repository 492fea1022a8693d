"""Which contexts an iteration sees."""

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.policies.noise import derive_seeds

__all__ = ["ContextSampler"]


class ContextSampler:
    """Draws contexts without replacement: one permutation an epoch, a function of (seed, epoch).

    Its whole state is the number of contexts taken so far, so a resumed run goes on where the other stopped.

    Args:
        size: the number of contexts there are.
        seed: of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise Refusal(f"a run needs at least 1 context, got {size}")
        self._size, self._seed, self.taken = size, seed, 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """The next `count` contexts' indices, int64 [count]."""
        indices = self.peek(count)
        self.taken += count
        return indices

    def peek(self, count: int, ahead: int = 0) -> Tensor:
        """What `take(count)` will return after `ahead` more contexts have been taken."""
        start = self.taken + ahead
        return torch.stack([self._at(place) for place in range(start, start + count)])

    def _at(self, place: int) -> Tensor:
        epoch, position = divmod(place, self._size)
        if epoch != self._epoch:
            seed = derive_seeds(self._seed, epoch, 0, stream="contexts")
            self._order = torch.randperm(self._size, generator=torch.Generator().manual_seed(int(seed)))
            self._epoch = epoch
        return self._order[position]
