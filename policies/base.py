"""What every policy is to agents and runners: contexts in, samples out, adapters, and itself on disk."""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.policies import adapters
from srgym.policies.noise import derive_seeds
from srgym.policies.registry import POLICIES
from srgym.sealed import seal

__all__ = ["Policy", "repeat"]


class Meter(Protocol):
    """Counts forwards."""

    def count(self, policy: "Policy", rows: int, once: Callable[[], Any]) -> None:
        """So many samples go through the network; `once` does what one of them costs."""


def _entry(method: Callable[..., Any], counted: bool) -> Callable[..., Any]:
    """A method under the policy's autocast and meter; what it calls of the policy's own entries counts once."""

    @functools.wraps(method)
    def entered(self: "Policy", *arguments: Any, **options: Any) -> Any:
        if self._inside:
            return method(self, *arguments, **options)
        self._inside = True
        try:
            half = self.autocast
            with contextlib.nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
                if counted and self.meter is not None:
                    first = [value[:1] if isinstance(value, Tensor | TensorDict) else value for value in arguments]
                    self.meter.count(self, len(arguments[0]), lambda: method(self, *first, **options))
                result = method(self, *arguments, **options)
            return result.float() if half is not None and isinstance(result, Tensor) else result
        finally:
            self._inside = False

    return entered


class Policy(nn.Module, ABC):
    """Makes super-resolutions: encode a context once, draw samples of it under one of its adapters.

    `FlowPolicy` adds velocities, `AutoregressivePolicy` tokens and their likelihoods; a policy is one of the two.

    Attributes:
        scale: how many times larger than the LR image the SR image is.
        name: what `srgym.policies.make` knows it by.
        gives: what it makes beside images, as arguments of a reward ("text", "intermediate"); see `made`.
        window: (h, w) of the only LR images that it takes, larger ones being cut into tiles; None: any.
        entries: the methods through which the network is used, and whether a meter counts them.
        autocast: the type that they compute in; None: that of the weights.
        meter: told of every forward.
        sharded: whether the weights are split between processes, so that all must run the same forwards.
    """

    name: str
    scale: int
    gives: frozenset[str] = frozenset()
    window: tuple[int, int] | None = None
    autocast: torch.dtype | None = None
    meter: Meter | None = None
    lora_targets: tuple[str, ...]
    lora_exclude: tuple[str, ...] = ()
    sharded: bool = False
    entries: ClassVar[Mapping[str, bool]] = {}
    _inside = False

    def __init__(self) -> None:
        super().__init__()
        self.lora: adapters.LoraSettings | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Every one of the `entries` is entered through `_entry`, whoever calls it."""
        super().__init_subclass__(**options)
        for name, counted in cls.entries.items():
            method = cls.__dict__.get(name)
            if method is not None and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, _entry(method, counted))

    def made(self, rolled: TensorDict) -> dict[str, Any]:
        """What a rollout [N] holds beside images, as arguments of `SRTask.score`: for each of `gives`, one a row."""
        return {}

    @property
    @abstractmethod
    def core(self) -> nn.Module:
        """The network that is trained, and that carries the adapters."""

    @abstractmethod
    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        """What the network needs of a context: {"lr": [G, 3, h, w], "prompt": ...} to TensorDict [G].

        Runs once a context and under no adapter, so the learner, the sampler and the reference share it.
        """

    @abstractmethod
    def sampling(self, steps: int = 6, solver: str = "euler", guidance: float = 1.0) -> Any:
        """How samples are drawn that are looked at: what `sample` takes. Arguments that mean nothing to it are
        passed over."""

    @abstractmethod
    def sample(self, cond: TensorDict, sampling: Any, seeds: Tensor) -> TensorDict:
        """`rollout` from conditions [N] that are encoded and repeated already."""

    def rollout(self, obs: Mapping[str, Any], sampling: Any, seeds: Tensor) -> TensorDict:
        """Draw K samples of each of G contexts.

        Args:
            obs: {"lr": [G, 3, h, w] in [0, 1], optionally "prompt": G strings}.
            sampling: how, as `sampling` or an agent says.
            seeds: int64 [N], N = G K, the K samples of a context contiguous (see `derive_seeds`).

        Returns:
            TensorDict [N] with `cond` (each context encoded once and repeated), `sr` [N, 3, H, W] in [0, 1], and what
            the policy's `sample` has besides.

        Raises:
            ValueError: if the number of seeds isn't a multiple of the number of contexts.
        """
        groups = len(obs["lr"])
        if groups == 0 or len(seeds) % groups:
            raise Refusal(f"a rollout of {groups} contexts needs a multiple of {groups} seeds, got {len(seeds)}")
        with torch.no_grad():
            cond = repeat(self.encode(obs), len(seeds) // groups)
        return self.sample(cond, sampling, seeds)

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
            sr: Tensor = self.rollout(obs, self.sampling(steps, solver, guidance), seeds)["sr"]
        return sr.to(lr.device)

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
