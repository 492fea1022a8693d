"""Policies by name, and policies as saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srgym.errors import MissingFile
from srgym.registry import Registry, Spec, class_of, named_by
from srgym.sealed import Damaged, read_object, verify_if_sealed

if TYPE_CHECKING:
    from srgym.policies.base import Policy

__all__ = ["POLICIES", "available", "load", "make", "policy_class", "policy_folder", "read_description"]

POLICIES: "Registry[type[Policy]]" = Registry(
    "policy",
    "a subclass of srgym.policies.Policy",
    class_of("srgym.policies.base:Policy"),
    "srgym.policies",
    {
        "compact": "srgym.policies.compact:CompactPolicy",
        "compact_vlcot": "srgym.policies.vlcot.compact:CompactVLCoT",
        "flux_controlnet": "srgym.policies.flux_controlnet:FluxControlNetPolicy",
        "lumina_vlcot": "srgym.policies.vlcot.lumina:LuminaVLCoT",
        "flux_kontext": "srgym.policies.flux_kontext:FluxKontextPolicy",
        "flux2_klein": "srgym.policies.flux2_klein:Flux2KleinPolicy",
        "qwen_image_edit": "srgym.policies.qwen_image_edit:QwenImageEditPolicy",
        "sd3": "srgym.policies.sd3:SD3Policy",
    },
)

available = POLICIES.names
policy_class = POLICIES.find


def make(name: Spec, **options: Any) -> "Policy":
    """A policy by its name (see `available`), `module:Class` or `{"name": ..., **options}`.

    Raises:
        ValueError: for an unknown policy, or an option that it hasn't got, with the nearest right one.
    """
    policy: Policy = POLICIES.make(name, **options)
    return policy


def read_description(folder: str | Path) -> dict[str, Any]:
    """What `policy.json` says of a saved policy: its name, `config`, and whether it has `adapters`.

    Raises:
        FileNotFoundError: if the folder holds none.
        Damaged: if it isn't what was written.
    """
    path = Path(folder) / "policy.json"
    if not path.is_file():
        raise MissingFile(f"expected a saved policy in {folder}, which has no policy.json")
    return read_object(path, {"policy": str, "config": dict, "adapters": bool})


def load(folder: str | Path, *, trust: bool = False) -> "Policy":
    """Bring back a policy that `Policy.save` wrote, with its adapters.

    Args:
        folder: the policy's, or that of a run, whose final policy is taken.
        trust: whether a class that the folder names by its path is imported (see `srgym.registry.named_by`).

    Raises:
        FileNotFoundError: if the folder holds neither.
        Damaged: naming the first file that isn't what was written.
        Untrusted: for a class of somebody's that isn't imported yet.
    """
    from srgym.policies import adapters

    folder = policy_folder(folder)
    verify_if_sealed(folder)
    described = read_description(folder)
    with named_by(folder / "policy.json", trust):
        policy = make(described["policy"], **described["config"])
    policy.load_base(folder)
    if described["adapters"]:
        adapters.read(policy.core, folder, policy._add_adapters)
    return policy


def policy_folder(folder: str | Path) -> Path:
    """Where a policy lies: in the folder itself, under `policy/`, or where the run in the folder says."""
    place = Path(folder)
    if (place / "run.json").is_file():
        named = Path(read_object(place / "run.json", {"policy": str})["policy"])
        if named.is_absolute() or ".." in named.parts:
            raise Damaged(f"{place / 'run.json'} names a policy outside of its folder: {named}")
        place = place / named
    return place / "policy" if (place / "policy" / "policy.json").is_file() else place
