"""The interface of every flow policy, and the rollout that is written once for all of them.

x_t = (1 - t) x0 + t eps, velocity v = eps - x0, t in [0, 1] from noise (1) to image (0).
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.solvers import DPM2M, SOLVERS, STOCHASTIC, Euler, Memory, Stochastic, euler_step

__all__ = ["FlowPolicy", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How a rollout is drawn.

    Attributes:
        steps: the number T of solver steps.
        solver: "euler" or "dpm2m" (deterministic); "sde", "cps" or "dance" (stochastic, with log-probabilities).
        noise_level: the stochastic solvers' a (sde, cps) or eta (dance).
        window: (start, length) of the steps that are stochastic, Euler elsewhere; None: all of them.
        starts: of how many steps, from the window's start on, a window begins at one: drawn for each group.
        group: how many neighbouring samples are a group, which shares its window and what `spread` leaves of its start.
        spread: how far the samples of a group begin from one another: at sqrt(1 - spread^2) times noise of the group's
            plus spread times their own. 1: each anywhere; 0: all at one place.
        record: keep the trajectory (`latents`, `t`) and, under a stochastic solver, `log_prob` and `begin`.
        means: keep `means`, too.
        guidance: the classifier-free guidance scale, for policies that have one; 1 is off.
        grad_last: how many of the last steps, and the decoding, carry a gradient (DRaFT-K).
    """

    steps: int = 6
    solver: str = "euler"
    noise_level: float = 0.0
    window: tuple[int, int] | None = None
    starts: int = 1
    group: int = 1
    spread: float = 1.0
    record: bool = False
    means: bool = False
    guidance: float = 1.0
    grad_last: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Refusal(f"sampling needs at least 1 step, got {self.steps}")
        if self.solver not in SOLVERS:
            raise Refusal(f"unknown solver '{self.solver}': expected one of {', '.join(SOLVERS)}")
        if (self.solver in STOCHASTIC) != (self.noise_level > 0):
            raise Refusal(
                f"a noise level above 0 belongs to the solvers {', '.join(STOCHASTIC)} and to no other: "
                f"got solver '{self.solver}' with noise level {self.noise_level}"
            )
        if not 0 <= self.grad_last <= self.steps:
            raise Refusal(f"grad_last is between 0 and the {self.steps} steps, got {self.grad_last}")
        if self.starts < 1 or self.group < 1 or not 0 <= self.spread <= 1:
            raise Refusal(
                "expected starts and group of at least 1 and spread in [0, 1], got "
                f"{self.starts}, {self.group} and {self.spread}"
            )

    @property
    def _window(self) -> tuple[int, int]:
        return self.window if self.window is not None else (0, self.steps)

    def solver_at(self, step: int) -> Euler | DPM2M | Stochastic:
        """What takes step number `step` (from 0), where a window may be there."""
        kind = SOLVERS[self.solver]
        if not issubclass(kind, Stochastic):
            return kind()
        start, length = self._window
        return kind(self.noise_level) if start <= step < start + self.starts - 1 + length else Euler()

    def of_groups(self, seeds: Tensor, stream: str) -> Tensor:
        """A seed [N] that the samples of each group share.

        Raises:
            ValueError: for samples [N] that aren't whole groups.
        """
        if len(seeds) % self.group:
            raise Refusal(
                f"samples that share a start or a window are drawn by whole groups of {self.group}, and {len(seeds)} "
                "came: make runner.rollout_batch a multiple of agent.group_size, or null"
            )
        first = torch.arange(len(seeds)) // self.group * self.group
        return derive_seeds(0, 0, seeds[first], stream=stream)

    def begins(self, seeds: Tensor) -> Tensor:
        """Where each sample's window begins: int64 [N]."""
        start = torch.full((len(seeds),), self._window[0])
        if self.starts == 1:
            return start
        return start + Noise(self.of_groups(seeds, "window")).integers(self.starts)


class FlowPolicy(Policy):
    """A flow-matching policy: encode a context once, integrate its velocity, decode an image.

    Subclasses write `encode`, `velocity`, `decode`, `to_latent`, `latent_shape`, `sigmas`, `core` and `lora_targets`.

    Attributes:
        temperature: the standard deviation of the noise that samples begin from. Below 1 they vary less and keep nearer
            to the mean (SRFlow, Lugmayr et al. 2020, samples at 0.8); what is trained on doesn't change.
    """

    temperature: float = 1.0
    entries: ClassVar[Mapping[str, bool]] = {"encode": False, "velocity": True}

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        """The predicted v = eps - x0 at x [N, ...] and t [N] in [0, 1], under the active adapter: [N, ...]."""

    @abstractmethod
    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        """Latents [N, ...] to images [N, 3, H, W] in [0, 1], differentiably."""

    @abstractmethod
    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] (ground truth, or preferred ones) to latents [N, ...]."""

    @abstractmethod
    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        """The shape of one sample's latent."""

    @abstractmethod
    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        """The policy's schedule of times, float32 [steps + 1], falling from 1 to 0."""

    def sampling(self, steps: int = 6, solver: str = "euler", guidance: float = 1.0) -> Sampling:
        return Sampling(steps=steps, solver=solver, guidance=guidance)

    def sample(
        self, cond: TensorDict, sampling: Sampling, seeds: Tensor, *, x: Tensor | None = None, start: int = 0
    ) -> TensorDict:
        """`rollout` from conditions that are encoded and repeated already.

        Args:
            cond: [N]. seeds: int64 [N].
            sampling: the solver and its steps.
            x: the state [N, ...] to begin from; None: noise from the seeds.
            start: the step that takes it on; what is recorded begins there.

        Returns:
            TensorDict [N] with `cond`, `x0`, `sr` and, when recorded, `latents` [N, T+1, ...], `t` [N, T+1] and
            (stochastic solvers) `log_prob` [N, T], 0 where a step adds no noise, `begin` int64 [N], the first that
            does, and `means` [N, T, ...], the mean of each step's next state.
        """
        noise = Noise(seeds, self.device)
        x = self._beginning(noise, cond, sampling, seeds) if x is None else x
        times = self.sigmas(sampling.steps, cond).to(self.device)
        begin = sampling.begins(seeds).to(self.device)
        path, log_prob, means = [x], [], []
        memory: Memory = None
        grad = torch.is_grad_enabled()
        for i in range(start, sampling.steps):
            t, t_next = (u.expand(len(seeds)) for u in (times[i], times[i + 1]))
            with torch.set_grad_enabled(grad and i >= sampling.steps - sampling.grad_last):
                v = self._guided(x, t, cond, sampling.guidance).float()
                solver = sampling.solver_at(i)
                score = torch.zeros(len(seeds), device=x.device)
                if isinstance(solver, Stochastic):
                    step = solver.transition(v, x, t, t_next, times[1])
                    after, mean = step.sample(noise.normal(x.shape[1:])), step.mean
                    score = solver.score(step, after)
                    if sampling.starts > 1:
                        here = (begin <= i) & (i < begin + sampling._window[1])
                        after, mean = (
                            torch.where(_like(here, x), u, euler_step(v, x, t, t_next)) for u in (after, mean)
                        )
                        score = torch.where(here, score, 0.0)
                    x = after
                else:
                    x, memory = solver.step(v, x, t, t_next, memory)
                    mean = x
                log_prob.append(score)
            if sampling.record:
                path.append(x)
                if sampling.means:
                    means.append(mean)
        with torch.set_grad_enabled(grad and sampling.grad_last > 0):
            sr = self.decode(x, cond)
        rolled = TensorDict({"cond": cond, "x0": x, "sr": sr}, batch_size=[len(seeds)])
        if sampling.record:
            rolled["latents"] = torch.stack(path, 1)
            rolled["t"] = times[start:].expand(len(seeds), -1).contiguous()
            if sampling.means:
                rolled["means"] = torch.stack(means, 1)
            if sampling.solver in STOCHASTIC:
                rolled["log_prob"], rolled["begin"] = torch.stack(log_prob, 1), begin
        return rolled

    def _beginning(self, noise: Noise, cond: TensorDict, sampling: Sampling, seeds: Tensor) -> Tensor:
        own = self.initial_noise(noise, cond)
        if sampling.spread == 1.0:
            return own
        shared = self.initial_noise(Noise(sampling.of_groups(seeds, "start"), self.device), cond)
        return math.sqrt(1 - sampling.spread**2) * shared + sampling.spread * own

    def initial_noise(self, noise: Noise, cond: TensorDict) -> Tensor:
        """What a sample begins from at t = 1: the first numbers of its noise, at the policy's temperature."""
        return self.temperature * noise.normal(self.latent_shape(cond))

    def _guided(self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float) -> Tensor:
        return self.velocity(x, t, cond) if guidance == 1.0 else self.guided_velocity(x, t, cond, guidance)

    def guided_velocity(
        self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float, *, detached: bool = False
    ) -> Tensor:
        """`velocity` under classifier-free guidance, for the policies that have one: two forwards.

        Args:
            detached: whether the velocity away from which is guided carries no gradient.

        Raises:
            ValueError: for a policy that has none.
        """
        raise Refusal(f"policy '{self.name}' has no classifier-free guidance: expected guidance 1, got {guidance}")


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """[N] shaped to select among [N, ...]."""
    return rows.reshape(-1, *[1] * (x.dim() - 1))
