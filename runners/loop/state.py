"""What a run is at a moment, as tensors and JSON values, and back again: for checkpoints."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.runners.loop.distributed import like

__all__ = [
    "generator_state", "load_generator_state", "load_optimizer_state", "load_policy_state", "optimizer_state",
    "policy_state", "split",
]  # fmt: skip


def policy_state(policy: Policy) -> dict[str, Tensor]:
    """Everything of a policy that a run may change: what is trained, and every adapter (snapshots too)."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad or ".lora_" in name}


@torch.no_grad()
def load_policy_state(policy: Policy, stored: Mapping[str, Tensor]) -> None:
    """Put `policy_state` back.

    Raises:
        ValueError: naming the first tensor that the policy hasn't got, lacks, or has in another shape.
    """
    own = policy_state(policy)
    strange = sorted(set(own) ^ set(stored))
    if strange:
        side = "lacks" if strange[0] in own else "has besides"
        raise Refusal(f"the checkpoint {side} '{strange[0]}': it belongs to a policy or adapter of other settings")
    for name, parameter in own.items():
        if parameter.shape != stored[name].shape:
            raise Refusal(f"'{name}': expected {tuple(parameter.shape)}, got {tuple(stored[name].shape)}")
        parameter.copy_(like(stored[name], parameter))


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """An optimiser's tensors, keyed `parameter/entry` (AdamW: step, exp_avg, exp_avg_sq)."""
    return {
        f"{names[parameter]}/{entry}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], stored: Mapping[str, Tensor]
) -> None:
    """Put `optimizer_state` back; the entry `step` stays on the CPU, as torch keeps it."""
    by_name = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for key, tensor in stored.items():
        name, _, entry = key.rpartition("/")
        parameter = by_name[name]
        value = tensor.clone() if entry == "step" else like(tensor.clone(), parameter)
        optimizer.state[parameter][entry] = value


def generator_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every global generator: torch's as tensors, numpy's and Python's as JSON values.

    The library's own randomness comes from seeds and doesn't need them; a user's reward may.
    """
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - a user's code may draw
    version, internal, gauss = random.getstate()
    values = {
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }
    return tensors, values


def load_generator_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put `generator_state` back."""
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
    kind, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An agent's state in two: its tensors, and its numbers."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
