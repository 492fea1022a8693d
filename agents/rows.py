"""Rows to train on: what differs between forwards in columns, what they share kept once beside them.

A sample is trained at many times. Repeating its latent and its condition for every time would multiply the memory of
a batch by the number of times, so a row holds the number of its sample, and all rows point to the same samples.
"""

from typing import Any

from tensordict import NonTensorData, TensorDict
from torch import Tensor

__all__ = ["make_rows", "shared"]


class _Samples:
    """Keeps TensorDict from taking the samples for columns of its own."""

    def __init__(self, data: TensorDict) -> None:
        self.data = data


def make_rows(samples: TensorDict, sample: Tensor, **columns: Tensor) -> TensorDict:
    """Rows over samples.

    Args:
        samples: TensorDict [N].
        sample: each row's sample, int64 [M], on the samples' device.
        columns: [M, ...] each.

    Returns:
        TensorDict [M]; slicing it copies columns alone.
    """
    size = [len(sample)]
    kept: Any = NonTensorData(_Samples(samples), batch_size=size)
    return TensorDict({"sample": sample, **columns, "samples": kept}, batch_size=size)


def shared(batch: TensorDict) -> tuple[TensorDict, Tensor]:
    """The samples [N] behind a batch of rows, and each row's place among them, int64 [B]."""
    samples: TensorDict = batch["samples"].data
    sample: Tensor = batch["sample"]
    return samples, sample
