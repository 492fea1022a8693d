"""Ways from noise to an image along which a reward's gradient reaches the learner.

Each takes the learner's velocity, noise x [B, ...] at t = 1, conditions [B] and the sampler's times [T + 1], and gives
the clean latents that are scored, with their graph, and a weight of each row (None: all count alike). What a path draws
comes from the samples' own `Noise`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srgym.policies.flow import FlowPolicy
from srgym.policies.noise import Noise
from srgym.policies.solvers import euler_step

__all__ = ["KnownNoise", "LastSteps", "LateStep", "Leaps", "Path", "leap", "recovered"]

Velocity = Callable[[Tensor, Tensor, TensorDict], Tensor]


class Path(Protocol):
    """A way from noise to an image."""

    @property
    def recomputed(self) -> bool:
        """Whether steps with gradient run twice, for the memory of one."""

    def __call__(
        self, velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        """The clean latents [B, ...] and the rows' weights [B]."""

    def forwards(self, steps: int) -> tuple[float, int]:
        """Of one sample, on average: without gradient, and with it."""


@dataclass(frozen=True)
class LateStep:
    """ReFL: to a random late step without gradient, then with it to the clean estimate x_t - t v.

    Attributes:
        late: the share of the schedule that the step is drawn from, at its end.
        policy: one that is split between processes takes every step, needed or not, to keep step with the others'.
    """

    late: float
    policy: FlowPolicy
    recomputed = False

    def __call__(
        self, velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor, noise: Noise
    ) -> tuple[Tensor, None]:
        steps = len(times) - 1
        last = steps - 1 - noise.integers(math.ceil(self.late * steps))
        with torch.no_grad():
            for i in range(steps - 1 if self.policy.sharded else int(last.max())):
                going = (i < last).nonzero().flatten()
                if not len(going):
                    velocity(x[:1], times[i].expand(1), cond[:1])
                    continue
                t, t_next = (u.expand(len(going)) for u in (times[i], times[i + 1]))
                x = x.index_copy(0, going, euler_step(velocity(x[going], t, cond[going]), x[going], t, t_next))
        t = times[last]
        return euler_step(velocity(x, t, cond), x, t, torch.zeros_like(t)), None

    def forwards(self, steps: int) -> tuple[float, int]:
        return steps - 1 - (math.ceil(self.late * steps) - 1) / 2, 1


@dataclass(frozen=True)
class LastSteps:
    """DRaFT-K: to the end, the last `count` steps with gradient; `recomputed`, with checkpointing."""

    count: int
    recomputed: bool = False

    def __call__(
        self, velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor, noise: Noise
    ) -> tuple[Tensor, None]:
        steps = len(times) - 1
        for i in range(steps):
            t, t_next = (u.expand(len(x)) for u in (times[i], times[i + 1]))
            with torch.set_grad_enabled(i >= steps - self.count):
                v: Any = (
                    checkpoint(velocity, x, t, cond, use_reentrant=False) if self.recomputed else velocity(x, t, cond)
                )
                x = euler_step(v, x, t, t_next)
        return x, None

    def forwards(self, steps: int) -> tuple[float, int]:
        return steps - self.count, self.count


@dataclass(frozen=True)
class Leaps:
    """LeapAlign (Liang et al. 2026, arXiv 2604.15311): the gradient takes two leaps over the sampler's way.

    Two of its times k > j are drawn. The latents are those of the sampler, the gradient that of a leap from x_k to x_j
    and another from there to the clean latent (eq. 4 to 10); rows whose leaps land far off weigh less (eq. 12).

    Attributes:
        discount: alpha, what of the gradient through the second leap's input is kept.
        floor: tau, below which a leap counts as exact; None: no weights.
    """

    discount: float = 0.3
    floor: float | None = 0.1
    recomputed = False

    def __call__(
        self, velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        path, steps = travelled(velocity, x, cond, times), len(times) - 1
        first, second = noise.permutation(steps)[:, :2].sort(1).values.unbind(1)
        rows = torch.arange(len(x), device=x.device)
        x_k, x_j = path[first, rows], path[second, rows]
        x0, far = leap(velocity, x_k, x_j, path[-1], times[first], times[second], cond, self.discount)
        if self.floor is None:
            return x0, None
        return x0, 1 / far.clamp_min(self.floor).sum(0)

    def forwards(self, steps: int) -> tuple[float, int]:
        return steps, 2


@dataclass(frozen=True)
class KnownNoise:
    """SRPO's Direct-Align (Shen et al. 2025, arXiv 2509.06942): a clean estimate at any time, for its noise is known.

    The sampler's result is noised anew with the noise that it came from, at any of its times; one step of length `span`
    with gradient leads towards the image, and what is left of the noise is taken out exactly. The published code also
    steps the other way, under a reward for what isn't wanted: a matter of rewards that read prompts.

    Attributes:
        span: in time; the share span / (1 - t + span) of the estimate is the learner's, the rest the sampler's.
    """

    span: float = 0.1
    recomputed = False

    def __call__(
        self, velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor, noise: Noise
    ) -> tuple[Tensor, None]:
        steps = len(times) - 1
        sampled = travelled(velocity, x, cond, times)[-1]
        t = times[noise.integers(steps)]
        return recovered(velocity, sampled, x, t, (t - self.span).clamp_min(0), cond), None

    def forwards(self, steps: int) -> tuple[float, int]:
        return steps, 1


@torch.no_grad()
def travelled(velocity: Velocity, x: Tensor, cond: TensorDict, times: Tensor) -> Tensor:
    """The sampler's way: Euler's latents at all times, [T + 1, B, ...]."""
    path = [x]
    for t, t_next in pairwise(times.unsqueeze(1).expand(-1, len(x))):
        path.append(euler_step(velocity(path[-1], t, cond), path[-1], t, t_next))
    return torch.stack(path)


def leap(
    velocity: Velocity, x_k: Tensor, x_j: Tensor, x0: Tensor, k: Tensor, j: Tensor, cond: TensorDict, discount: float
) -> tuple[Tensor, Tensor]:
    """LeapAlign's eq. 4 to 9.

    Args:
        x_k, x_j, x0: the sampler's latents [B, ...] at times k > j [B], and its last.
        discount: alpha.

    Returns:
        x0 with the gradient of two leaps; and how far the leaps landed from x_j and x0, mean |difference|, [2, B].
    """
    to_j = euler_step(velocity(x_k, k, cond), x_k, k, j)
    joined = to_j + (x_j - to_j).detach()
    v = velocity(discount * joined + (1 - discount) * joined.detach(), j, cond)
    to_0 = euler_step(v, joined, j, torch.zeros_like(j))
    far = torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in ((x_j, to_j), (x0, to_0))]).detach()
    return to_0 + (x0 - to_0).detach(), far


def recovered(velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor, t_next: Tensor, cond: TensorDict) -> Tensor:
    """Direct-Align's clean estimate (x_s - s eps) / (1 - s), x_s one step from x_t = (1 - t) x0 + t eps to s = t_next.

    Args:
        x0, eps: [B, ...], without gradient. t, t_next: [B], t_next < 1.
    """
    s, s_next = (u.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1)) for u in (t, t_next))
    x_t = (1 - s) * x0 + s * eps
    return (euler_step(velocity(x_t, t, cond), x_t, t, t_next) - s_next * eps) / (1 - s_next)
