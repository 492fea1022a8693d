"""Rewards that mean nothing, to hold the meaningful ones against."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from srgym.rewards.registry import make, register_reward

__all__ = ["CONTROLS", "Random", "RandomNetwork", "Shuffled"]

CONTROLS = ("random", "random_network", "shuffled")


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
        return _numbers(sr, index, self.seed)


def _numbers(sr: Tensor, index: Tensor | None, seed: int) -> Tensor:
    """A number in [0, 1) for each image of a context."""
    pixels = (sr.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    contexts = [0] * len(sr) if index is None else [int(i) for i in index]
    drawn = []
    for image, context in zip(pixels, contexts, strict=True):
        digest = hashlib.blake2b(f"{seed} {context} {tuple(image.shape)} ".encode(), digest_size=8)
        digest.update(image.contiguous().numpy().tobytes())
        drawn.append(int.from_bytes(digest.digest(), "big") / 2.0**64)
    return torch.tensor(drawn)


@register_reward("shuffled", group=True, range=(-math.inf, math.inf), direction="none")
class Shuffled:
    """Another reward whose scores are dealt out to the wrong samples: the control that keeps their distribution.

    Each sample gets the score of the next one of its group, components along with totals, in an order that follows from
    the images, so that it is the same in any batch. What a reward teaches by its spread alone (a policy that grows less
    random), this control teaches, too.

    Args:
        reward: whose scores, see `make`.
        seed: of the order.
    """

    def __init__(self, reward: Any = "psnr_y", seed: int = 0) -> None:
        self.inner = make(reward)
        self.seed = int(seed)
        self.needs, self.range = self.inner.needs, self.inner.range
        self.weights = getattr(self.inner.score, "weights", None)

    def __call__(self, sr: Tensor, group: Tensor | None = None, index: Tensor | None = None, **beside: Any) -> Any:
        """Images [B, 3, H, W] to a `RewardOutput` [B]; without groups, or alone in one, a sample keeps its score."""
        scored = self.inner(sr, group=group, index=index, **beside)
        group = torch.arange(len(sr)) if group is None else group.cpu()
        order = torch.argsort(_numbers(sr, index, self.seed), stable=True)
        source = torch.empty_like(order)
        for members in (order[group[order] == label] for label in torch.unique(group)):
            source[members] = members.roll(-1)
        source = source.to(scored.total.device)
        components = {name: part[source] for name, part in scored.components.items()}
        return replace(scored, total=scored.total[source], valid=scored.valid[source], components=components)


@register_reward("random_network", differentiable=True, range=(0.0, 1.0), direction="none")
class RandomNetwork:
    """What a fixed untrained network says of an image: the control of agents that follow their reward's gradient.

    Three convolutions with Gaussian weights drawn from the seed, tanh between them, the mean over the image squashed
    to (0, 1). Smooth, the same for the same image, and about nothing.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        sides = [nn.Conv2d(3, 16, 5), nn.Conv2d(16, 16, 3, dilation=2), nn.Conv2d(16, 1, 3, dilation=4)]
        for layer in sides:
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 2 / fan_in**0.5
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.network = nn.Sequential(sides[0], nn.Tanh(), sides[1], nn.Tanh(), sides[2]).requires_grad_(False)

    def __call__(self, sr: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], of at least 17 pixels a side, to [B]."""
        answer: Tensor = self.network.to(sr.device)(2 * sr.float() - 1)
        return answer.mean((1, 2, 3)).sigmoid()
