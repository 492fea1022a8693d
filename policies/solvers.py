"""Solvers: one step of each as a pure function of (velocity, x, t, t_next), and as an object that a sampler holds.

Conventions: x_t = (1 - t) x0 + t eps, the velocity is v = eps - x0, time runs from 1 (noise) to 0 (image), so
dt = t_next - t < 0 and the clean estimate is x0 = x - t v. x and v are [B, ...], t and t_next [B]. Stochastic steps
return the next state and the log-probability [B] of that state: handed a state (`x_next`) they return the
log-probability of that one, so the function that sampled is the function that scores.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from srgym.errors import Refusal

__all__ = [
    "CPS", "DPM2M", "SDE", "SOLVERS", "STOCHASTIC", "Dance", "Euler", "Stochastic", "Transition", "cps_step",
    "cps_transition", "dance_step", "dance_transition", "dpm2m_step", "euler_step", "sde_step", "sde_transition",
]  # fmt: skip

Memory = tuple[Tensor, Tensor] | None


def _per_sample(t: Tensor | float, like: Tensor) -> Tensor:
    """t [B] (or a number) shaped to multiply `like` [B, ...]."""
    if not isinstance(t, Tensor):
        return torch.as_tensor(t, dtype=like.dtype, device=like.device)
    return t.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1)) if t.dim() else t.to(like.dtype)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Log-probabilities are computed in float32 at least, whatever the model computes in."""
    return tuple(x if x.dtype == torch.float64 else x.float() for x in tensors)


def euler_step(v: Tensor, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The explicit Euler step of dx = v dt (order 1)."""
    return x + (_per_sample(t_next, x) - _per_sample(t, x)) * v


def dpm2m_step(
    v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, previous: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """DPM-Solver++(2M) in data prediction (Lu et al. 2022, arXiv 2211.01095, algorithm 2; order 2 multistep).

    Args:
        previous: what the step before returned, (clean estimate, its t), or None at the start. The first step, the
            last (t_next = 0) and a step after t = 1 (where log-SNR is infinite) are of order 1.

    Returns:
        The next state, and what the next step needs.
    """
    s, s_next = _per_sample(t, x), _per_sample(t_next, x)
    x0 = x - s * v
    estimate = x0
    if previous is not None:
        x0_before, t_before = previous
        lam, lam_next, lam_before = (_log_snr(_per_sample(u, x)) for u in (t, t_next, t_before))
        r = (lam - lam_before) / (lam_next - lam)
        weight = torch.where(torch.isfinite(r) & (r > 0), 0.5 / r, torch.zeros_like(r))
        estimate = x0 + weight * (x0 - x0_before)
    decay = torch.where(s > 0, s_next / s, torch.zeros_like(s))
    return decay * x + ((1 - s_next) - decay * (1 - s)) * estimate, (x0, t)


def _log_snr(t: Tensor) -> Tensor:
    return torch.log((1 - t) / t)


@dataclass(frozen=True)
class Transition:
    """A Gaussian step: x_next ~ N(mean [B, ...], std^2), std broadcastable to mean."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise.to(self.mean.dtype)

    def log_prob(self, x_next: Tensor) -> Tensor:
        """The mean over elements of the Gaussian log-density: [B]. The mean and not the sum, as in Flow-GRPO's code."""
        z = (x_next.to(self.mean.dtype) - self.mean) / self.std
        return _mean(-0.5 * z.square() - torch.log(self.std) - 0.5 * math.log(2 * math.pi))


def sde_transition(
    v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, noise_level: float, t_cap: Tensor | float | None = None
) -> Transition:
    """Flow-GRPO's stochastic step with the marginals of the ODE (arXiv 2505.05470, eq. 9).

    s_t = a sqrt(t / (1 - t~)) with t~ = t, but `t_cap` where t = 1 (the second time of the schedule in the
    reference code); the step's noise is s_t sqrt(-dt).

    Raises:
        ValueError: at t = 1 without `t_cap`, where s_t would be infinite.
    """
    v, x = _float(v, x)
    s, s_next = _per_sample(t, x), _per_sample(t_next, x)
    capped = s
    if bool((s >= 1).any()):
        if t_cap is None:
            raise Refusal("the stochastic step at t = 1 needs t_cap (the schedule's second time), got None")
        capped = torch.where(s >= 1, _per_sample(t_cap, x).expand_as(s), s)
    dt = s_next - s
    variance = noise_level**2 * s / (1 - capped)
    mean = x * (1 + variance * dt / (2 * s)) + v * (1 + variance * (1 - s) / (2 * s)) * dt
    return Transition(mean, torch.sqrt(variance * -dt))


def cps_transition(v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, noise_level: float) -> Transition:
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952): s = t' sin(a pi / 2)."""
    v, x = _float(v, x)
    s, s_next = _per_sample(t, x), _per_sample(t_next, x)
    std = s_next * math.sin(noise_level * math.pi / 2)
    mean = (1 - s_next) * (x - s * v) + torch.sqrt((s_next.square() - std.square()).clamp_min(0)) * (x + (1 - s) * v)
    return Transition(mean, std)


def dance_transition(v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, noise_level: float) -> Transition:
    """DanceGRPO's stochastic step (arXiv 2505.07818) with a constant noise level eta."""
    v, x = _float(v, x)
    s, s_next = _per_sample(t, x), _per_sample(t_next, x)
    dt = s_next - s
    x0 = x - s * v
    mean = x + (v + noise_level**2 * (x - (1 - s) * x0) / (2 * s.square())) * dt
    return Transition(mean, noise_level * torch.sqrt(-dt))


# As objects


@dataclass(frozen=True)
class Euler:
    """Order 1."""

    stochastic: ClassVar[bool] = False

    def step(self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, memory: Memory = None) -> tuple[Tensor, Memory]:
        """The next state, and what the next step needs: nothing."""
        return euler_step(v, x, t, t_next), None


@dataclass(frozen=True)
class DPM2M:
    """Order 2, from the step before."""

    stochastic: ClassVar[bool] = False

    def step(self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, memory: Memory = None) -> tuple[Tensor, Memory]:
        """The next state, and what the next step needs."""
        return dpm2m_step(v, x, t, t_next, memory)


@dataclass(frozen=True)
class Stochastic(ABC):
    """A solver whose step is Gaussian.

    Attributes:
        noise_level: how much noise a step adds.
        usual_level: the level that the method's paper uses.
        gaussian: whether `score` is the density of the step.
    """

    noise_level: float
    stochastic: ClassVar[bool] = True
    usual_level: ClassVar[float] = 0.7
    gaussian: ClassVar[bool] = True

    @abstractmethod
    def transition(
        self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, t_cap: Tensor | float | None = None
    ) -> Transition:
        """The distribution of the next state."""

    def score(self, transition: Transition, x_next: Tensor) -> Tensor:
        """What the method takes for the log-probability of a next state, [B]."""
        return transition.log_prob(x_next)

    def level(self, transition: Transition, t: Tensor, t_next: Tensor) -> Tensor:
        """s_t [B], the noise of a unit of time."""
        return transition.std.flatten() / torch.sqrt(t - t_next)

    def step(
        self,
        v: Tensor,
        x: Tensor,
        t: Tensor,
        t_next: Tensor,
        *,
        x_next: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        t_cap: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A next state, and its score [B]: `x_next` where there is one, else drawn from `noise` or the generator."""
        transition = self.transition(v, x, t, t_next, t_cap)
        if x_next is None:
            if noise is None:
                mean = transition.mean
                noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            x_next = transition.sample(noise)
        return x_next, self.score(transition, x_next)


@dataclass(frozen=True)
class SDE(Stochastic):
    """Flow-GRPO."""

    def transition(
        self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, t_cap: Tensor | float | None = None
    ) -> Transition:
        return sde_transition(v, x, t, t_next, self.noise_level, t_cap)


@dataclass(frozen=True)
class CPS(Stochastic):
    """Flow-CPS, which scores by -mean (x' - mu)^2 in place of a density."""

    gaussian = False

    def transition(
        self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, t_cap: Tensor | float | None = None
    ) -> Transition:
        return cps_transition(v, x, t, t_next, self.noise_level)

    def score(self, transition: Transition, x_next: Tensor) -> Tensor:
        return -_mean((x_next.to(transition.mean.dtype) - transition.mean).square())

    def level(self, transition: Transition, t: Tensor, t_next: Tensor) -> Tensor:
        return transition.std.flatten()


@dataclass(frozen=True)
class Dance(Stochastic):
    """DanceGRPO."""

    usual_level = 0.3

    def transition(
        self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, t_cap: Tensor | float | None = None
    ) -> Transition:
        return dance_transition(v, x, t, t_next, self.noise_level)


SOLVERS: dict[str, type[Euler] | type[DPM2M] | type[Stochastic]] = {
    "euler": Euler, "dpm2m": DPM2M, "sde": SDE, "cps": CPS, "dance": Dance,
}  # fmt: skip
STOCHASTIC = tuple(name for name, solver in SOLVERS.items() if solver.stochastic)


def sde_step(
    v: Tensor,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    noise_level: float,
    *,
    x_next: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    t_cap: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Flow-GRPO's step: (next state, its log-probability [B], float32). See `sde_transition` and `Stochastic.step`."""
    return SDE(noise_level).step(v, x, t, t_next, x_next=x_next, noise=noise, generator=generator, t_cap=t_cap)


def cps_step(
    v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, noise_level: float, *, x_next: Tensor | None = None,
    noise: Tensor | None = None, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Flow-CPS: (next state, -mean (x' - mu)^2 [B], which the method uses in place of a log-probability)."""
    return CPS(noise_level).step(v, x, t, t_next, x_next=x_next, noise=noise, generator=generator)


def dance_step(
    v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, noise_level: float, *, x_next: Tensor | None = None,
    noise: Tensor | None = None, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """DanceGRPO: (next state, its log-probability [B])."""
    return Dance(noise_level).step(v, x, t, t_next, x_next=x_next, noise=noise, generator=generator)
