"""Policies by name, and policies as saved."""

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from srgym.policies import adapters
from srgym.policies.base import FlowPolicy

__all__ = ["POLICIES", "available", "load", "make", "policy_folder", "read_description"]

# Imported when asked for: a foundation model's classes take seconds to import.
POLICIES = {
    "compact": "srgym.policies.compact:CompactPolicy",
    "flux_controlnet": "srgym.policies.flux_controlnet:FluxControlNetPolicy",
    "flux_kontext": "srgym.policies.flux_kontext:FluxKontextPolicy",
    "qwen_image_edit": "srgym.policies.qwen_image_edit:QwenImageEditPolicy",
    "sd3": "srgym.policies.sd3:SD3Policy",
}


def available() -> list[str]:
    """The names that `make` knows."""
    return sorted(POLICIES)


def policy_class(name: str) -> type[FlowPolicy]:
    """The class of a policy by name, or by `module:Class`.

    Raises:
        ValueError: for a name that isn't one, with the nearest that is; for a path to something else than a policy.
    """
    path = POLICIES.get(name, name)
    if ":" not in path:
        from difflib import get_close_matches

        near = get_close_matches(name, POLICIES, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown policy '{name}': expected one of {', '.join(available())} or module:Class{hint}")
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected a subclass of srgym.policies.FlowPolicy at '{path}', got none: {error}") from error
    if not (isinstance(found, type) and issubclass(found, FlowPolicy)):
        raise ValueError(f"expected a subclass of srgym.policies.FlowPolicy at '{path}', got {found!r}")
    return found


def make(name: str, **kwargs: Any) -> FlowPolicy:
    """Build a policy by its name (see `available`) or by `module:Class`, with its own keyword arguments."""
    return policy_class(name)(**kwargs)


def read_description(folder: str | Path) -> dict[str, Any]:
    """What `policy.json` says of a saved policy: its name, `config`, and whether it has `adapters`.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    path = Path(folder) / "policy.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved policy in {folder}, which has no policy.json")
    described: dict[str, Any] = json.loads(path.read_text())
    return described


def load(folder: str | Path) -> FlowPolicy:
    """Bring back a policy that `FlowPolicy.save` wrote, with its adapters.

    Args:
        folder: the policy's, or that of a run, whose final policy is taken.

    Raises:
        FileNotFoundError: if the folder holds neither.
    """
    folder = policy_folder(folder)
    described = read_description(folder)
    policy = make(described["policy"], **described["config"])
    policy.load_base(folder)
    if described["adapters"]:
        adapters.read(policy.core, folder, policy._add_adapters)
    return policy


def policy_folder(folder: str | Path) -> Path:
    """Where a policy lies: in the folder itself, under `policy/`, or where the run in the folder says."""
    place = Path(folder)
    if (place / "run.json").is_file():
        place = place / json.loads((place / "run.json").read_text())["policy"]
    return place / "policy" if (place / "policy" / "policy.json").is_file() else place
