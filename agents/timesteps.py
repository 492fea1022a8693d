"""At which times an agent trains, and with what noise: both belong to a row, never to how the batch was cut."""

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.policies.noise import Noise, derive_seeds

__all__ = ["DENSITIES", "corrupt", "draw_times", "schedule_steps", "share_of_steps", "shift_times"]

DENSITIES = ("uniform", "logit_normal")


def corrupt(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps: x0 and eps [B, ...], t [B]."""
    s = t.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1))
    return (1 - s) * x0 + s * eps


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise: s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv 2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def draw_times(
    noise: Noise, density: str = "uniform", *, shift: float = 1.0, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """One time a row, [N] in [0, 1]: uniform, or logit-normal with `mean` and `std`; then shifted."""
    if density == "uniform":
        return shift_times(noise.uniform(), shift)
    if density == "logit_normal":
        return shift_times(torch.sigmoid(mean + std * noise.normal(())), shift)
    raise Refusal(f"times are drawn {' or '.join(DENSITIES)}, got '{density}'")


def share_of_steps(steps: int, share: float) -> int:
    """How many of the sampler's times are trained: int(share T), but at least 1."""
    return max(1, int(share * steps))


def schedule_steps(seed: Tensor, steps: int, share: float) -> Tensor:
    """Which of the sampler's own times each sample is trained at.

    Args:
        seed: of the samples, int64 [N].
        steps: the sampler's steps T.
        share: of them that are trained.

    Returns:
        int64 [N, S], S = `share_of_steps`: the beginning of a permutation of 0..T-1 for each sample.
    """
    count = share_of_steps(steps, share)
    if not len(seed):
        return torch.zeros(0, count, dtype=torch.int64)
    return Noise(derive_seeds(0, 0, seed, stream="timesteps")).permutation(steps)[:, :count]
