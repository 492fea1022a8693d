"""Randomness that belongs to a sample and not to a batch.

A sample's noise is a function of (seed, iteration, context, k) and of the stream it is drawn for. However a batch is
cut, reordered or resumed, the sample sees the same numbers.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgym.errors import Refusal

__all__ = ["Noise", "derive_seeds"]


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that mixes every bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def derive_seeds(
    seed: int, iteration: int | Tensor, index: int | Tensor, k: int | Tensor = 0, stream: str = "rollout"
) -> Tensor:
    """One seed for each sample.

    Args:
        seed: the run's seed.
        iteration: the training iteration, an integer or int64 [N].
        index: the context's index, int64 [N]; or, to start another stream of known samples, their seeds.
        k: the sample's place in its group, an integer or int64 [N].
        stream: what the randomness is for ("rollout", "timesteps", ...); different streams are independent.

    Returns:
        int64 [N], each in [0, 2**63).
    """
    state = np.full(1, (seed ^ (crc32(stream.encode()) << 32)) & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (iteration, index, k):
            values = part.cpu().numpy() if isinstance(part, Tensor) else np.asarray([part])
            state = _mix((state + np.uint64(0x9E3779B97F4A7C15)) ^ _mix(values.astype(np.int64).view(np.uint64)))
    return torch.from_numpy((state & np.uint64(0x7FFFFFFFFFFFFFFF)).view(np.int64).copy())


class Noise:
    """A source of random numbers with one generator a sample.

    Args:
        seeds: int64 [N], as `derive_seeds` makes them.
        device: where the numbers are wanted. They are always drawn on the CPU, so that a run on another device, or
            cut into other batches, sees the same ones.
    """

    def __init__(self, seeds: Tensor, device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._device = torch.device(device)

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers [N, *shape]."""
        return self._stack([torch.randn(tuple(shape), generator=g, dtype=dtype) for g in self._generators])

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in [0, 1): [N, *shape]."""
        return self._stack([torch.rand(tuple(shape), generator=g, dtype=dtype) for g in self._generators])

    def integers(self, high: int) -> Tensor:
        """Integers in [0, high), one a sample: int64 [N]."""
        return self._stack([torch.randint(high, (), generator=g) for g in self._generators])

    def permutation(self, n: int) -> Tensor:
        """A permutation of 0..n-1 for each sample: int64 [N, n]."""
        return self._stack([torch.randperm(n, generator=g) for g in self._generators])

    def _stack(self, drawn: list[Tensor]) -> Tensor:
        if not drawn:
            raise Refusal("noise was asked for no samples: expected at least one seed, got an empty tensor")
        return torch.stack(drawn).to(self._device)
