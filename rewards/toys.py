"""Rewards that mean nothing, to hold the meaningful ones against."""

import hashlib

import torch
from torch import Tensor

from srgym.rewards.registry import register_reward

__all__ = ["Random"]


@register_reward("random", range=(0.0, 1.0), direction="none")
class Random:
    """A fixed random number for every image: the control that no gain may be claimed without.

    Uniform in [0, 1), a function of (seed, context, image in 8 bits) and of nothing else: the same image in another
    batch scores the same, another sample of the same context is an independent draw.

    Args:
        seed: of the whole function.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = int(seed)

    def __call__(self, sr: Tensor, index: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W] and their contexts' numbers [B] to [B]."""
        pixels = (sr.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        contexts = [0] * len(sr) if index is None else [int(i) for i in index]
        return torch.tensor([self._draw(image, context) for image, context in zip(pixels, contexts)])

    def _draw(self, image: Tensor, context: int) -> float:
        digest = hashlib.blake2b(f"{self.seed} {context} {tuple(image.shape)} ".encode(), digest_size=8)
        digest.update(image.contiguous().numpy().tobytes())
        return int.from_bytes(digest.digest(), "big") / 2.0**64
