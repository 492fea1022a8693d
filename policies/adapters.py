"""LoRA adapters through PEFT: added, switched without copying, synchronised, saved, and taken as weight deltas.

A policy carries adapters of one shape: `default` (the learner), `old` (the sampler of the data), `ema` (the evaluation
average), and further snapshots that an agent asks for. Switching touches the active set only: PEFT's own `set_adapter`
flips `requires_grad` between adapters, after which the learner trains nothing.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.sealed import Damaged, check_shapes, read_object, read_tensors, write_tensors
from srgym.settings import Count, Positive, check_arguments

__all__ = [
    "ADAPTERS", "LoraSettings", "add", "add_snapshot", "copy", "deltas", "equal", "inject", "layers", "names",
    "parameters", "peft_config", "read", "use", "write",
]  # fmt: skip

ADAPTERS = ("default", "old", "ema")


@dataclass(frozen=True)
class LoraSettings:
    """What a policy's adapters are: `rank`, `alpha` (the update is scaled by alpha / rank) and the modules they sit on.

    `targets` are names or endings of modules, as in PEFT's `target_modules`; `exclude` those left out of them.
    """

    rank: Count = 32
    alpha: Positive = 64.0
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_arguments(LoraSettings, vars(self), "lora.")


# A large model has thousands of modules, and every switch of an adapter asks for those that carry one.
_LAYERS: "WeakKeyDictionary[nn.Module, dict[str, Any]]" = WeakKeyDictionary()


def layers(model: nn.Module) -> dict[str, Any]:
    """The modules of `model` that carry adapters, by name; looked for until there are some."""
    if model not in _LAYERS:
        from peft.tuners.tuners_utils import BaseTunerLayer

        carrying = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
        if not carrying:
            return {}
        _LAYERS[model] = carrying
    return _LAYERS[model]


def names(model: nn.Module) -> tuple[str, ...]:
    """The adapters that `model` carries: those of `ADAPTERS`, then the further ones in the order they were added."""
    return tuple(next(iter(layers(model).values())).lora_A) if layers(model) else ()


def _check_names(model: nn.Module, *wanted: str) -> None:
    for adapter in wanted:
        if adapter not in names(model):
            raise Refusal(f"no adapter '{adapter}': the model has {', '.join(names(model)) or 'none'}")


def add(model: nn.Module, settings: LoraSettings, generator: torch.Generator) -> None:
    """Put `default`, `old` and `ema` on `model`: Gaussian A, zero B, so that nothing changes until something is learnt.

    Raises:
        ValueError: if the model carries adapters already, or a target matches no module.
    """
    inject(model, settings)
    with torch.no_grad():
        for name, parameter in parameters(model, "default"):
            if ".lora_A." in name:
                drawn = torch.randn(parameter.shape, generator=generator) / settings.rank
                parameter.copy_(drawn.to(parameter))
    for adapter in ("old", "ema"):
        copy(model, "default", adapter)


def inject(model: nn.Module, settings: LoraSettings) -> None:
    """`add` without its own initial values: the layers are there, the learner is active, and it alone trains."""
    if layers(model):
        raise Refusal("adapters can be added once: expected a model without LoRA layers, got one that has them")
    modules = [name for name, _ in model.named_modules()]
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise Refusal(f"LoRA target '{target}' matches no module of {type(model).__name__}")
    for adapter in ADAPTERS:
        _inject(model, settings, adapter)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, parameter in parameters(model, "default"):
        parameter.requires_grad_(True)


def _inject(model: nn.Module, settings: LoraSettings, adapter: str) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(peft_config(settings), model, adapter_name=adapter)
    _LAYERS.pop(model, None)
    for layer in layers(model).values():
        layer._active_adapter = ["default"]
    for _, parameter in parameters(model, adapter):
        # PEFT gives them the base's type: a bf16 LoRA would lose updates below 2^-8 of a weight.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(False)


def add_snapshot(model: nn.Module, settings: LoraSettings, name: str, source: str = "default") -> None:
    """Put another adapter beside those that `model` carries, equal to `source`; the learner stays what trains."""
    _check_names(model, source)
    with parameters(model, source)[0][1].device:  # the meta device too, for estimates
        _inject(model, settings, name)
    for _, parameter in parameters(model, "default"):
        parameter.requires_grad_(True)
    copy(model, source, name)


def peft_config(settings: LoraSettings) -> Any:
    """PEFT's description of the adapters (a `LoraConfig`)."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        exclude_modules=list(settings.exclude) or None,
        init_lora_weights="gaussian",
        lora_dropout=0.0,
    )


def parameters(model: nn.Module, adapter: str) -> list[tuple[str, nn.Parameter]]:
    """The tensors of one adapter, by name, in the model's order."""
    return [
        (f"{name}.{part}.{adapter}.weight", getattr(layer, part)[adapter].weight)
        for name, layer in layers(model).items()
        for part in ("lora_A", "lora_B")
        if adapter in getattr(layer, part)
    ]


def _pair(model: nn.Module, source: str, target: str) -> Iterator[tuple[Tensor, Tensor]]:
    _check_names(model, source, target)
    for layer in layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            yield part[source].weight, part[target].weight


@torch.no_grad()
def copy(model: nn.Module, source: str, target: str, decay: float = 0.0) -> None:
    """target <- decay * target + (1 - decay) * source; an exact copy at decay 0."""
    for a, b in _pair(model, source, target):
        if decay == 0.0:
            b.copy_(a)
        else:
            b.mul_(decay).add_(a.to(b.dtype), alpha=1 - decay)


@torch.no_grad()
def equal(model: nn.Module, adapter: str, other: str) -> bool:
    """Whether two adapters are the same bit for bit."""
    return all(torch.equal(a, b) for a, b in _pair(model, adapter, other))


@contextlib.contextmanager
def use(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Run the model under one adapter, or under none (the base). Nests; leaves `requires_grad` alone."""
    carrying = list(layers(model).values())
    if adapter is not None and carrying:
        _check_names(model, adapter)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in carrying]
    for layer in carrying:
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = [adapter]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(carrying, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


@torch.no_grad()
def deltas(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """What an adapter adds to each weight, in float32, keyed by the name of the weight in the model without adapters.

    Merging in bf16 would cost up to 8e-3 a weight.
    """
    _check_names(model, adapter)
    result = {}
    for name, layer in layers(model).items():
        a, b = layer.lora_A[adapter].weight.float(), layer.lora_B[adapter].weight.float()
        scale = layer.scaling[adapter]
        if a.dim() == 4:
            delta = torch.einsum("or,rihw->oihw", b.flatten(1), a)
        else:
            delta = b @ a
        result[f"{name}.weight"] = (scale * delta).cpu()
    return result


def read_settings(folder: Path) -> tuple[LoraSettings, list[str]]:
    """What `adapters.json` says: the adapters' settings, and their names.

    Raises:
        Damaged: where it says something else.
    """
    path = folder / "adapters.json"
    described = read_object(path, {"rank": int, "alpha": (int, float), "adapters": list})
    strings = {key: described.get(key, []) for key in ("targets", "exclude", "adapters")}
    for key, held in strings.items():
        if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
            raise Damaged(f"{path}: expected a list of names as '{key}', got {held!r:.80}")
    for name in strings["adapters"]:
        if not name.isidentifier():
            raise Damaged(f"{path}: '{name}' is no name of an adapter")
    try:
        settings = LoraSettings(
            described["rank"], described["alpha"], tuple(strings["targets"]), tuple(strings["exclude"])
        )
    except ValueError as error:
        raise Damaged(f"{path}: {error}") from error
    return settings, strings["adapters"]


def write(model: nn.Module, folder: Path, settings: LoraSettings) -> None:
    """Write adapters as `adapter_{name}.safetensors`, with `adapters.json` beside: where alpha is not the rank, LoRA
    tensors without their alpha are silently another model."""
    for adapter in names(model):
        tensors = {name.replace(f".{adapter}.", "."): p for name, p in parameters(model, adapter)}
        write_tensors(folder / f"adapter_{adapter}.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapters.json", {**asdict(settings), "adapters": list(names(model))})


@torch.no_grad()
def read(model: nn.Module, folder: Path, add_with: Any) -> None:
    """Read what `write` wrote; `add_with(settings)` puts fresh adapters on the model first.

    Raises:
        Damaged: naming the first tensor that doesn't fit, or the file that can't be read.
    """
    settings, kept = read_settings(folder)
    add_with(settings)
    for adapter in kept:
        if adapter not in names(model):
            add_snapshot(model, settings, adapter)
        path = folder / f"adapter_{adapter}.safetensors"
        stored = read_tensors(path)
        own = {name.replace(f".{adapter}.", "."): parameter for name, parameter in parameters(model, adapter)}
        check_shapes(path, stored, own)
        for name, parameter in own.items():
            parameter.copy_(stored[name])
    for adapter in ADAPTERS:
        if adapter not in kept:
            copy(model, "default", adapter)
