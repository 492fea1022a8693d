"""A tiny policy that writes, and documents of it."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym import policies
from srgym.policies.noise import derive_seeds
from srgym.policies.tokens import AutoregressivePolicy, TokenSampling

TINY: dict[str, Any] = {
    "side": 32, "levels": [2, 3], "codec_width": 8, "width": 32, "layers": 2, "heads": 2,
}  # fmt: skip


def writer(adapters: bool = True, **options: Any) -> Any:
    """A compact VLCoT of HR images of 32 pixels, with adapters that have moved."""
    made = policies.make("compact_vlcot", weights=None, **{**TINY, **options})
    if adapters:
        made.add_adapters(rank=2, alpha=4.0)
        with torch.no_grad():
            for _, parameter in made.trainable_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        made.sync("default", "old")
    return made


def inputs(count: int) -> Tensor:
    """LR images of 8 x 8."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(policy: AutoregressivePolicy, count: int = 6, cut: int | None = None, **how: Any) -> TensorDict:
    """Documents of the first `count` inputs, `cut` at once."""
    seeds, sampling = derive_seeds(0, 0, torch.arange(count)), TokenSampling(**how)
    parts = [slice(i, i + (cut or count)) for i in range(0, count, cut or count)]
    with torch.no_grad():
        rolled = [policy.rollout({"lr": inputs(count)[part]}, sampling, seeds[part]) for part in parts]
    whole: TensorDict = torch.cat(rolled)
    return whole
