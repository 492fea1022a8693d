"""OARS's transplant on disk (section 4): a LoRA learnt on the base, added to the weights of a fine-tuned model.

The weights are read, changed and written shard by shard: a model of 20 billion parameters needs no GPU and no more
memory than its largest shard. Every changed tensor is checked: the merged one must do to a random vector what the
fine-tuned one and the LoRA do one after the other.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json
from srgym.policies import adapters
from srgym.policies.base import Policy
from srgym.policies.registry import make, read_description
from srgym.registry import named_by
from srgym.sealed import drafted, read_object, read_tensors, seal, verify_if_sealed, write_tensors

__all__ = ["LoraFile", "MergeReport", "merge", "merge_policies", "read_lora", "run"]

_SHARD = "diffusion_pytorch_model.safetensors"
_EXPORTED = "pytorch_lora_weights.safetensors"
_TOLERANCE = 1e-5
_IN_MEMORY = ("compact", "sd3")  # policies whose weights aren't on disk as they are used: SD3's are widened on loading


@dataclass(frozen=True)
class LoraFile:
    """A LoRA without its model: (A [r, in, ...], B [out, r, ...]) by module, the scale of B A, the base's folder."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    base: Path | None = None

    def delta(self, module: str) -> Tensor:
        """What the LoRA adds to a module's weight, float32, in the weight's shape."""
        a, b = self.pairs[module]
        return self.scale * (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])

    def deltas(self) -> dict[str, Tensor]:
        """What the LoRA adds to each weight, by the weight's name."""
        return {f"{module}.weight": self.delta(module) for module in self.pairs}

    def shape(self, module: str) -> tuple[int, ...]:
        a, b = self.pairs[module]
        return (b.shape[0], *a.shape[1:])


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the merged model's folder.
        changed: tensors that changed.
        worst: the largest difference, relative to the output, between the merged weight and weight plus LoRA applied
            to a random vector, in float32; None where a policy did the sum itself.
        rounding: the largest difference that storing in the model's type made to a weight; None likewise.
    """

    out: Path
    changed: int
    worst: float | None = None
    rounding: float | None = None

    def __str__(self) -> str:
        text = f"{self.out}: {self.changed} tensors changed"
        if self.worst is None:
            return text
        return (
            f"{text}; merged and unmerged differ by {self.worst:.1e} of the output in float32, and by "
            f"{self.rounding:.1e} a weight as stored"
        )


def run(config: Mapping[str, Any]) -> MergeReport:
    """`srgym merge`: keys lora, into, out, and optionally adapter ("ema") and weight (1).

    Raises:
        ValueError: for a missing or unknown key, or models that don't fit.
        FileNotFoundError: for folders that aren't there.
    """
    required, optional = ("lora", "into", "out"), ("adapter", "weight")
    for key in required:
        if not config.get(key):
            raise Refusal(f"merge expects lora=FOLDER into=FOLDER out=FOLDER: {key} is missing")
    unknown = [key for key in config if key not in (*required, *optional)]
    if unknown:
        raise Refusal(f"merge knows {', '.join((*required, *optional))}; got '{unknown[0]}'")
    lora, into, out = (Path(config[key]).expanduser() for key in required)
    return merge(lora, into, out, adapter=config.get("adapter", "ema"), weight=float(config.get("weight", 1.0)))


def merge(lora: Path, into: Path, out: Path, *, adapter: str = "ema", weight: float = 1.0) -> MergeReport:
    """Add a LoRA to the weights of a model of the same architecture.

    Args:
        lora: a saved policy with adapters, or an exported LoRA (its folder or file).
        into: the fine-tuned model: a diffusers pipeline, a transformer's folder, or a saved policy, whose own LoRA
            (its average) is folded in first.
        out: where the merged model goes; as `into`, with all else copied. Must not exist, or be empty.
        adapter: which adapter of a saved policy: "default", "old" or "ema".
        weight: what the LoRA is multiplied by.

    Raises:
        ValueError: naming the first tensor in which the architectures differ; or if `out` holds something.
        FileNotFoundError: for folders that aren't what they should be.
    """
    if out.is_dir() and any(out.iterdir()):
        raise Refusal(f"expected an empty folder for the merged model, got {out}, which holds something")
    described = into / "policy.json"
    for folder in (lora, into):
        if (folder / "policy.json").is_file():
            verify_if_sealed(folder)
    if described.is_file() and read_description(into)["policy"] in _IN_MEMORY:
        merged = merge_policies(into, lora, adapter, weight)
        with drafted(out) as draft:
            merged.save(draft)
        return MergeReport(out, len(read_lora(lora, adapter).pairs))
    learnt = read_lora(lora, adapter)
    weights = _weights_folder(into)
    folded = [read_lora(into, "ema")] if (into / "adapters.json").is_file() else []
    _check(learnt, weights)
    with drafted(out) as draft:
        target = _copy_rest(into, weights, draft)
        report = _merge_shards([(addition, 1.0) for addition in folded] + [(learnt, weight)], weights, target, out)
        if (draft / "policy.json").is_file():
            seal(draft)
    return report


# What is read


def read_lora(path: Path, adapter: str = "ema") -> LoraFile:
    """A LoRA from a saved policy's folder or from an exported file, the model left alone.

    Raises:
        FileNotFoundError: if there is none. ValueError: for a saved policy without one.
    """
    settings = path / "adapters.json"
    if settings.is_file():
        lora, held = adapters.read_settings(path)
        file = path / f"adapter_{adapter}.safetensors"
        if not file.is_file():
            raise MissingFile(f"expected adapter '{adapter}' in {path}, which has {held}")
        config = read_description(path)["config"] if (path / "policy.json").is_file() else {}
        base = Path(config["path"]) if config.get("path") else None
        return LoraFile(_pairs(file, ""), lora.alpha / lora.rank, base)
    if (path / "policy.json").is_file():
        raise Refusal(f"expected a policy with a LoRA in {path}, got one without: there is nothing to merge")
    file = path / _EXPORTED if path.is_dir() else path
    if not file.is_file():
        raise MissingFile(f"expected a saved policy with adapters or a LoRA file at {path}, found neither")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        described = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    pairs = _pairs(file, "transformer.")
    rank = next(iter(pairs.values()))[0].shape[0]
    return LoraFile(pairs, float(described.get("transformer.lora_alpha", rank)) / rank)


def _pairs(file: Path, prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = {name.removeprefix(prefix): tensor.float() for name, tensor in read_tensors(file).items()}
    modules = dict.fromkeys(name.split(".lora_")[0] for name in tensors)
    try:
        return {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in modules}
    except KeyError as missing:
        raise Refusal(f"expected pairs of LoRA tensors in {file}, which lacks {missing}") from missing


def _weights_folder(model: Path) -> Path:
    """Where a model's transformer lies: in the folder, under it, or at the base that a saved policy names."""
    if (model / "policy.json").is_file() and not (model / "transformer").is_dir():
        model = Path(read_description(model)["config"]["path"])
    for folder in (model / "transformer", model):
        if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
            return folder
    raise MissingFile(
        f"expected a diffusers pipeline, a transformer's folder or a saved policy at {model}, found no config.json "
        "beside safetensors"
    )


def _shards(folder: Path) -> list[Path]:
    """The files of a transformer's weights: those of its index, or the one there is."""
    index = folder / f"{_SHARD}.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_object(index, {"weight_map": dict})["weight_map"].values()))]
    if not (folder / _SHARD).is_file():
        raise MissingFile(f"expected {_SHARD} or its index in {folder}, found neither")
    return [folder / _SHARD]


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer's tensors, from the files' headers alone."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in _shards(folder):
        with safe_open(path, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _check(learnt: LoraFile, weights: Path) -> None:
    """Refuse a model that isn't the architecture that the LoRA was learnt on, by the first tensor that differs."""
    own = _shapes(weights)
    expected: dict[str, tuple[int, ...]] = {}
    if learnt.base is not None and learnt.base.is_dir():
        expected = _shapes(_weights_folder(learnt.base))
    changed = {f"{module}.weight": learnt.shape(module) for module in learnt.pairs}
    complete = bool(expected)
    expected |= changed  # an SD3 policy widens its first convolution: what the LoRA was learnt on counts
    for name in sorted(expected.keys() | (own.keys() if complete else ())):
        if own.get(name) != expected.get(name):
            came = own.get(name, "no such tensor")
            raise Refusal(
                f"the LoRA's base and {weights} are different architectures: the first tensor that differs is "
                f"'{name}', expected {expected.get(name, 'no such tensor')}, got {came}"
            )


# What is written


def _copy_rest(into: Path, weights: Path, out: Path) -> Path:
    """Copy all of a model but its transformer's weights and its own LoRA; returns where the weights go."""
    skipped = {path.resolve() for path in weights.glob("*.safetensors*")}

    def ignore(where: str, names: list[str]) -> list[str]:
        here = Path(where)
        own = [name for name in names if here == into and (name.startswith("adapter") or name == "manifest.json")]
        return own + [name for name in names if (here / name).resolve() in skipped]

    shutil.copytree(into, out, ignore=ignore, dirs_exist_ok=True)
    described = out / "policy.json"
    if described.is_file():
        write_json(described, {**read_description(out), "adapters": False})
    target = out if weights == into else out / "transformer"
    target.mkdir(exist_ok=True)
    for path in weights.glob("*.json"):
        shutil.copyfile(path, target / path.name)
    return target


def _merge_shards(loras: Sequence[tuple[LoraFile, float]], weights: Path, target: Path, out: Path) -> MergeReport:
    generator = torch.Generator().manual_seed(0)
    changed, worst, rounding = 0, 0.0, 0.0
    for path in _shards(weights):
        tensors = read_tensors(path)
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            deltas = [(lora, share) for lora, share in loras if module in lora.pairs and name.endswith(".weight")]
            if not deltas:
                continue
            merged = tensor.float()
            for lora, share in deltas:
                merged = merged + share * lora.delta(module)
            worst = max(worst, _probe(tensor, merged, module, deltas, generator))
            tensors[name] = merged.to(tensor.dtype)
            rounding = max(rounding, float((tensors[name].float() - merged).abs().max()))
            changed += 1
        if worst > _TOLERANCE:
            raise Refusal(f"merging {path} went wrong: outputs differ by {worst:.1e}, expected at most {_TOLERANCE}")
        write_tensors(target / path.name, tensors, {"format": "pt"})
    return MergeReport(out, changed, worst, rounding)


def _probe(
    weight: Tensor, merged: Tensor, module: str, deltas: Sequence[tuple[LoraFile, float]], generator: torch.Generator
) -> float:
    """The relative difference between the merged weight's output on a random vector and weight's plus LoRA's."""
    x = torch.randn(weight[0].numel(), generator=generator)
    expected = weight.float().flatten(1) @ x
    for lora, share in deltas:
        a, b = lora.pairs[module]
        expected = expected + share * lora.scale * (b.flatten(1) @ (a.flatten(1) @ x))
    difference = (merged.flatten(1) @ x - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(1e-12))


# In memory


def merge_policies(into: Path, lora: Path, adapter: str = "ema", weight: float = 1.0) -> Policy:
    """A saved policy with the LoRA of another, learnt on the base, added to its weights.

    Args:
        into: the policy whose weights receive it; a LoRA of its own (its average) is folded in first.
        lora: the policy whose LoRA is taken. adapter: which of its adapters.
        weight: what the LoRA is multiplied by.

    Raises:
        FileNotFoundError: if there is no such policy or LoRA.
        ValueError: naming the first tensor in which the two differ.
    """
    learnt = read_lora(lora, adapter)
    described = read_description(into)
    with named_by(into / "policy.json"):
        policy = make(described["policy"], **described["config"])
    policy.load_base(into)
    if described["adapters"]:
        policy.add_deltas(read_lora(into, "ema").deltas())
    policy.add_deltas(learnt.deltas(), weight)
    return policy
