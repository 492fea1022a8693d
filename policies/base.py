"""The interface of every flow policy, and the rollout that is written once for all of them.

x_t = (1 - t) x0 + t eps, velocity v = eps - x0, t in [0, 1] from noise (1) to image (0).
"""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.policies import adapters
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.registry import POLICIES
from srgym.policies.solvers import DPM2M, SOLVERS, STOCHASTIC, Euler, Memory, Stochastic
from srgym.sealed import seal

__all__ = ["FlowPolicy", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How a rollout is drawn.

    Attributes:
        steps: the number T of solver steps.
        solver: "euler" or "dpm2m" (deterministic); "sde", "cps" or "dance" (stochastic, with log-probabilities).
        noise_level: the stochastic solvers' a (sde, cps) or eta (dance).
        window: (start, length) of the steps that are stochastic, Euler elsewhere; None: all of them.
        record: keep the trajectory (`latents`, `t`) and, under a stochastic solver, `log_prob`.
        guidance: the classifier-free guidance scale, for policies that have one; 1 is off.
        grad_last: how many of the last steps, and the decoding, carry a gradient (DRaFT-K).
    """

    steps: int = 6
    solver: str = "euler"
    noise_level: float = 0.0
    window: tuple[int, int] | None = None
    record: bool = False
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

    def solver_at(self, step: int) -> Euler | DPM2M | Stochastic:
        """What takes step number `step` (from 0)."""
        kind = SOLVERS[self.solver]
        if not issubclass(kind, Stochastic):
            return kind()
        start, length = self.window if self.window is not None else (0, self.steps)
        return kind(self.noise_level) if start <= step < start + length else Euler()


class Meter(Protocol):
    """Counts forwards."""

    def count(self, policy: "FlowPolicy", x: Tensor, t: Tensor, cond: TensorDict) -> None:
        """A velocity of these arguments was asked for."""


def _entry(method: Callable[..., Any]) -> Callable[..., Any]:
    """`encode` or `velocity` under the policy's autocast and meter; what they call of themselves counts once."""

    @functools.wraps(method)
    def entered(self: "FlowPolicy", *arguments: Any) -> Any:
        if self._inside:
            return method(self, *arguments)
        self._inside = True
        try:
            half = self.autocast
            with contextlib.nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
                if len(arguments) == 3 and self.meter is not None:
                    self.meter.count(self, *arguments)
                result = method(self, *arguments)
            return result.float() if half is not None and isinstance(result, Tensor) else result
        finally:
            self._inside = False

    return entered


class FlowPolicy(nn.Module, ABC):
    """A flow-matching policy: encode a context once, integrate its velocity, decode an image.

    Subclasses write `encode`, `velocity`, `decode`, `to_latent`, `latent_shape`, `sigmas`, `core` and `lora_targets`.

    Attributes:
        scale: how many times larger than the LR image the SR image is.
        name: what `srgym.policies.make` knows it by.
        gives: what it makes beside images, as arguments of a reward ("text", "intermediate"); see `made`.
        temperature: the standard deviation of the noise that samples begin from. Below 1 they vary less and keep nearer
            to the mean (SRFlow, Lugmayr et al. 2020, samples at 0.8); what is trained on doesn't change.
        autocast: the type that `encode` and `velocity` compute in; None: that of the weights.
        meter: told of every velocity, with its arguments.
        sharded: whether the weights are split between processes, so that all must run the same forwards.
    """

    name: str
    scale: int
    gives: frozenset[str] = frozenset()
    temperature: float = 1.0
    autocast: torch.dtype | None = None
    meter: "Meter | None" = None
    lora_targets: tuple[str, ...]
    lora_exclude: tuple[str, ...] = ()
    _inside = False
    sharded: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.lora: adapters.LoraSettings | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Every `encode` and `velocity` is entered through `_entry`, whoever calls it."""
        super().__init_subclass__(**options)
        for name in ("encode", "velocity"):
            if name in cls.__dict__:
                setattr(cls, name, _entry(cls.__dict__[name]))

    def made(self, rolled: TensorDict) -> dict[str, Any]:
        """What a rollout [N] holds beside images, as arguments of `SRTask.score`: for each of `gives`, one a row."""
        return {}

    @property
    @abstractmethod
    def core(self) -> nn.Module:
        """The network whose velocity is trained, and that carries the adapters."""

    @abstractmethod
    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        """Everything `velocity` and `decode` need of a context: {"lr": [G, 3, h, w], "prompt": ...} to TensorDict [G].

        Runs once a context and under no adapter, so the learner, the sampler and the reference share it.
        """

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

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # Adapters

    @property
    def has_adapters(self) -> bool:
        return self.lora is not None

    def add_adapters(
        self, rank: int = 32, alpha: float = 64.0, targets: tuple[str, ...] | None = None, seed: int = 0
    ) -> None:
        """Put LoRA adapters `default`, `old` and `ema` on the core network and freeze everything else.

        Args:
            rank, alpha: the LoRA's rank and scale (the update is multiplied by alpha / rank).
            targets: names or endings of modules; the policy's own choice when None.
            seed: of the Gaussian initialisation.
        """
        settings = adapters.LoraSettings(rank, alpha, tuple(targets or self.lora_targets), self.lora_exclude)
        self._add_adapters(settings, seed)

    def _add_adapters(self, settings: adapters.LoraSettings, seed: int = 0) -> None:
        self.requires_grad_(False)
        adapters.add(self.core, settings, torch.Generator().manual_seed(seed))
        self.lora = settings

    def add_snapshot(self, name: str, source: str = "default") -> None:
        """Keep another adapter beside `default`, `old` and `ema`, equal to `source` for now; nothing where it is there.

        Raises:
            ValueError: for a policy without adapters, or a source that it hasn't got.
        """
        if self.lora is None:
            raise Refusal(f"policy '{self.name}' has no adapters to keep '{name}' among: call add_adapters() first")
        if name not in adapters.names(self.core):
            adapters.add_snapshot(self.core, self.lora, name, source)

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Run under "default" (the learner), "old" (the sampler), "ema" (the average), a snapshot or None (the base).

        A policy without adapters is its own learner: there every name means its weights.
        """
        if not self.has_adapters:
            yield
            return
        with adapters.use(self.core, name):
            yield

    def sync(self, source: str, target: str, decay: float = 0.0) -> None:
        """target <- decay * target + (1 - decay) * source, over adapters."""
        adapters.copy(self.core, source, target, decay)

    def same_adapters(self, adapter: str, other: str) -> bool:
        """Whether two adapters are equal bit for bit, so that one forward serves both."""
        return not self.has_adapters or adapters.equal(self.core, adapter, other)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The learner's parameters by name: the LoRA `default`, or all weights of a policy without adapters."""
        if self.has_adapters:
            return adapters.parameters(self.core, "default")
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def adapter_deltas(self, name: str = "default") -> dict[str, Tensor]:
        """What an adapter adds to each weight of the core, in float32, keyed by the weight's name without adapters."""
        return adapters.deltas(self.core, name)

    @torch.no_grad()
    def add_deltas(self, deltas: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add weight deltas (of a LoRA learnt on another policy) to this policy's core: OARS's transplant.

        Raises:
            ValueError: naming the first tensor that differs in name or shape.
        """
        own = {name.replace(".base_layer.", "."): p for name, p in self.core.named_parameters()}
        for name, delta in deltas.items():
            if name not in own:
                raise Refusal(f"the LoRA changes '{name}', which {type(self).__name__} hasn't got")
            if own[name].shape != delta.shape:
                raise Refusal(f"'{name}': expected a delta of {tuple(own[name].shape)}, got {tuple(delta.shape)}")
        for name, delta in deltas.items():
            merged = own[name].float() + weight * delta.to(own[name].device).float()
            own[name].copy_(merged.to(own[name].dtype))

    # Rollouts

    def rollout(self, obs: Mapping[str, Any], sampling: Sampling, seeds: Tensor) -> TensorDict:
        """Draw K samples of each of G contexts.

        Args:
            obs: {"lr": [G, 3, h, w] in [0, 1], optionally "prompt": G strings}.
            sampling: the solver and its steps.
            seeds: int64 [N], N = G K, the K samples of a context contiguous (see `derive_seeds`).

        Returns:
            TensorDict [N] with `cond` (each context encoded once and repeated), `x0`, `sr` [N, 3, H, W] in [0, 1] and,
            when recorded, `latents` [N, T+1, ...], `t` [N, T+1] and (stochastic solvers) `log_prob` [N, T].

        Raises:
            ValueError: if the number of seeds isn't a multiple of the number of contexts.
        """
        groups = len(obs["lr"])
        if groups == 0 or len(seeds) % groups:
            raise Refusal(f"a rollout of {groups} contexts needs a multiple of {groups} seeds, got {len(seeds)}")
        with torch.no_grad():
            cond = repeat(self.encode(obs), len(seeds) // groups)
        return self.sample(cond, sampling, seeds)

    def sample(
        self, cond: TensorDict, sampling: Sampling, seeds: Tensor, *, x: Tensor | None = None, start: int = 0
    ) -> TensorDict:
        """`rollout` from conditions that are encoded and repeated already.

        Args:
            cond: [N]. seeds: int64 [N].
            x: the state [N, ...] to begin from; None: noise from the seeds.
            start: the step that takes it on; what is recorded begins there.
        """
        noise = Noise(seeds, self.device)
        x = self.initial_noise(noise, cond) if x is None else x
        times = self.sigmas(sampling.steps, cond).to(self.device)
        path, log_prob = [x], []
        memory: Memory = None
        grad = torch.is_grad_enabled()
        for i in range(start, sampling.steps):
            t, t_next = (u.expand(len(seeds)) for u in (times[i], times[i + 1]))
            with torch.set_grad_enabled(grad and i >= sampling.steps - sampling.grad_last):
                v = self._guided(x, t, cond, sampling.guidance).float()
                solver = sampling.solver_at(i)
                if isinstance(solver, Stochastic):
                    x, score = solver.step(v, x, t, t_next, t_cap=times[1], noise=noise.normal(x.shape[1:]))
                    log_prob.append(score)
                else:
                    x, memory = solver.step(v, x, t, t_next, memory)
                    log_prob.append(torch.zeros(len(seeds), device=x.device))
            if sampling.record:
                path.append(x)
        with torch.set_grad_enabled(grad and sampling.grad_last > 0):
            sr = self.decode(x, cond)
        rolled = TensorDict({"cond": cond, "x0": x, "sr": sr}, batch_size=[len(seeds)])
        if sampling.record:
            rolled["latents"] = torch.stack(path, 1)
            rolled["t"] = times[start:].expand(len(seeds), -1).contiguous()
            if sampling.solver in STOCHASTIC:
                rolled["log_prob"] = torch.stack(log_prob, 1)
        return rolled

    def initial_noise(self, noise: Noise, cond: TensorDict) -> Tensor:
        """What a sample begins from at t = 1: the first numbers of its noise, at the policy's temperature."""
        return self.temperature * noise.normal(self.latent_shape(cond))

    def _guided(self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float) -> Tensor:
        return self.velocity(x, t, cond) if guidance == 1.0 else self.guided_velocity(x, t, cond, guidance)

    def guided_velocity(self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float) -> Tensor:
        """`velocity` under classifier-free guidance, for the policies that have one: two forwards.

        Raises:
            ValueError: for a policy that has none.
        """
        raise Refusal(f"policy '{self.name}' has no classifier-free guidance: expected guidance 1, got {guidance}")

    @torch.no_grad()
    def predict(
        self,
        lr: Tensor,
        steps: int = 6,
        seed: int = 0,
        solver: str = "euler",
        prompt: list[str] | None = None,
        guidance: float = 1.0,
        adapter: str | None = "ema",
    ) -> Tensor:
        """Super-resolve: LR [B, 3, h, w] in [0, 1] to SR [B, 3, H, W] in [0, 1], one sample of each.

        Args:
            adapter: under which a policy with adapters runs: "ema" (the evaluation average), "default" (the learner),
                another snapshot's name, or None for the base.
        """
        seeds = derive_seeds(seed, 0, torch.arange(len(lr)), stream="predict")
        obs = {"lr": lr.to(self.device), "prompt": prompt}
        with self.adapter(adapter):
            sr: Tensor = self.rollout(obs, Sampling(steps=steps, solver=solver, guidance=guidance), seeds)["sr"]
        return sr.to(lr.device)

    # On disk

    @property
    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this policy again, as JSON values."""
        return {}

    def save_base(self, folder: Path) -> None:
        """Write the weights that aren't adapters. A policy over a foundation model names its weights in `config`."""

    def load_base(self, folder: Path) -> None:
        """Read what `save_base` wrote."""

    def save(self, folder: str | Path) -> None:
        """Write the policy, sealed: `policy.json`, its own weights and its adapters (safetensors)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"policy": POLICIES.name_of(type(self)), "config": self.config, "adapters": self.has_adapters}
        write_json(folder / "policy.json", described)
        self.save_base(folder)
        if self.lora is not None:
            adapters.write(self.core, folder, self.lora)
        seal(folder)


def repeat(cond: TensorDict, times: int) -> TensorDict:
    """Each context's condition `times` times in a row: TensorDict [G] to [G * times]."""
    if times == 1:
        return cond
    rows = torch.arange(len(cond)).repeat_interleave(times)
    return cond[rows.to(cond.device)] if cond.device is not None else cond[rows]
