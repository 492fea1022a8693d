"""Images to tokens and back: a token codes what a known image lacks, not the image itself.

The known image is what can be told from LR without a token (a predicted mean). Finite scalar quantisation (Mentzer et
al. 2023, arXiv 2309.15505) takes the place of a learnt codebook: a latent of a few bounded numbers, each rounded to one
of a few levels, is its own code, and no entry can die.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.policies.compact import ResidualBlock, fill

__all__ = ["PATCH", "ResidualCodec", "pyramid"]

PATCH = 8  # pixels of an image's side that share their tokens
_FOLD = 4
_SIZES = 3


def pyramid(image: Tensor) -> list[Tensor]:
    """Coarse, middle and fine: [B, 3, H, W] down by 4, 2 and 1, by averaging."""
    return [F.avg_pool2d(image, 4), F.avg_pool2d(image, 2), image]


class ResidualCodec(nn.Module):
    """Codes of the difference between an image and a known one, `depth` tokens for each patch of 8 x 8 pixels.

    The decoder sees the known image, so that a code says how to change it: a sharper edge where there is one already.
    One network serves the three sizes, which it is told apart by.

    Args:
        levels: of each number of a token: its codes are their product.
        depth: tokens of a patch.
        width: channels.
    """

    def __init__(self, levels: Sequence[int] = (8, 8, 8), depth: int = 2, width: int = 64) -> None:
        super().__init__()
        self.levels, self.depth, self.codes = tuple(levels), depth, math.prod(levels)
        numbers, folded = depth * len(levels), 3 * _FOLD * _FOLD
        self.size = nn.Embedding(_SIZES, width)
        self.enter = nn.Conv2d(2 * folded, width, 3, padding=1)
        self.before = ResidualBlock(width)
        self.shrink = nn.Conv2d(width, width, 2, stride=2)
        self.below = ResidualBlock(width)
        self.squeeze = nn.Conv2d(width, numbers, 1)
        self.spread = nn.Conv2d(numbers, width, 1)
        self.above = ResidualBlock(width)
        self.grow = nn.Conv2d(width, 4 * width, 1)
        self.known = nn.Conv2d(folded, width, 3, padding=1)
        self.after = nn.ModuleList(ResidualBlock(width) for _ in range(3))
        self.leave = nn.Conv2d(width, folded, 3, padding=1)
        fill(self.leave, 0.0)
        self.register_buffer("steps", torch.tensor(self.levels * depth), persistent=False)

    def _told(self, size: int) -> Tensor:
        return self.size.weight[size][None, :, None, None]

    def _top(self) -> Tensor:
        """The highest level of each number: [n, 1, 1]."""
        return self.get_buffer("steps")[:, None, None] - 1

    def _numbers(self, image: Tensor, known: Tensor, size: int) -> Tensor:
        """[B, 3, h, w] twice to unrounded numbers [B, n, h/8, w/8], number i in 0 .. levels[i] - 1."""
        folded = F.pixel_unshuffle(torch.cat([4 * (image - known), known - 0.5], 1), _FOLD)
        hidden = self.shrink(self.before(self.enter(folded) + self._told(size)))
        top = self._top()
        return top * torch.sigmoid(self.squeeze(F.silu(self.below(hidden))))

    def _image(self, numbers: Tensor, known: Tensor, size: int) -> Tensor:
        top = self._top()
        hidden = self.above(self.spread(2 * numbers / top - 1) + self._told(size))
        hidden = F.pixel_shuffle(self.grow(F.silu(hidden)), 2) + self.known(F.pixel_unshuffle(known - 0.5, _FOLD))
        for block in self.after:
            hidden = block(hidden)
        return known + F.pixel_shuffle(self.leave(F.silu(hidden)), _FOLD)

    def reconstruct(self, image: Tensor, known: Tensor, size: int) -> Tensor:
        """An image through its codes [B, 3, h, w], differentiably (straight through the rounding), not clamped."""
        numbers = self._numbers(image, known, size)
        rounded = numbers + (numbers.round() - numbers).detach()
        return self._image(rounded, known, size)

    @torch.no_grad()
    def encode(self, image: Tensor, known: Tensor, size: int) -> Tensor:
        """Images of size 0, 1 or 2 (coarse, middle, fine) to codes int64 [B, h/8 * w/8 * depth], patch by patch."""
        numbers = self._numbers(image, known, size).round().long()
        places = numbers.flatten(2).transpose(1, 2).reshape(len(image), -1, self.depth, len(self.levels))
        codes: Tensor = (places * self._strides(numbers.device)).sum(-1).flatten(1)
        return codes

    def decode(self, codes: Tensor, known: Tensor, size: int) -> Tensor:
        """Codes [B, n] to images [B, 3, h, w] in [0, 1], of the known image's size."""
        rows, columns = (side // PATCH for side in known.shape[-2:])
        levels = torch.tensor(self.levels, device=codes.device)
        digits = codes.view(len(codes), rows * columns, self.depth, 1) // self._strides(codes.device) % levels
        numbers = digits.flatten(2).transpose(1, 2).reshape(len(codes), -1, rows, columns)
        return self._image(numbers.to(known.dtype), known, size).clamp(0, 1)

    def _strides(self, device: torch.device) -> Tensor:
        return torch.tensor([math.prod(self.levels[:i]) for i in range(len(self.levels))], device=device)
