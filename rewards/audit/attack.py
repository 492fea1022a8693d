"""Images that a reward likes better within a few grey levels: by its gradient, or by its answers alone."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attacked"]

_SIDES = (8, 16, 32, 64)  # of the noise that answers are asked about, from coarse to fine
_PROBE = 2 / 255


def attacked(
    score: Callable[[Tensor], Tensor],
    start: Tensor,
    budget: float | Tensor,
    *,
    steps: int,
    gradient: bool,
    seed: int = 0,
) -> Tensor:
    """Climb a reward from images, no pixel further than `budget` away, and round to 8 bits.

    With a gradient, projected steps along its sign (Madry et al. 2018, eq. 1, but upward); without one, the gradient is
    estimated from pairs of answers to smooth noise of several scales (natural evolution strategies, Ilyas et al. 2018,
    section 2.1), eight pairs a step.

    Args:
        score: images [N, 3, H, W] to [N]. start: images in [0, 1].
        budget: in units of the images' range; one for all, or [N, 1, 1, 1].

    Returns:
        Images [N, 3, H, W]. A step that a reward gives no finite slope for is taken nowhere.
    """
    generator = torch.Generator().manual_seed(seed)
    slope = _slope if gradient else _estimated
    x, most = start.clone(), torch.as_tensor(budget, device=start.device)
    for _ in range(steps):
        step = 2.5 * most / steps * slope(score, x, generator).nan_to_num(0.0).sign()
        x = (start + (x + step - start).clamp(-most, most)).clamp(0, 1)
    return (x * 255).round() / 255


def _slope(score: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(score(moved).nan_to_num(0.0).sum(), moved)
    return slope


@torch.no_grad()
def _estimated(score: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
    slope = torch.zeros_like(x)
    for side in 2 * _SIDES:
        coarse = torch.randn((*x.shape[:2], min(side, x.shape[-2]), min(side, x.shape[-1])), generator=generator)
        way = F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=False).to(x.device)
        ahead, behind = (score((x + sign * _PROBE * way).clamp(0, 1)) for sign in (1, -1))
        slope = slope + (ahead - behind).nan_to_num(0.0).view(-1, 1, 1, 1) * way
    return slope
