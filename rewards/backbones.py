"""Weights and packages that the user brings: where they are looked for, and what is said when they aren't there."""

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srgym.errors import MissingFile, Refusal
from srgym.rewards.base import Incompatible

__all__ = ["BACKBONES", "backbone", "find_weights", "read_tensors", "require_package", "weight_folders"]

# The ImageNet classifiers of torchvision by the name of its class of weights, and the file that it saves them as.
BACKBONES = {
    "vgg16": ("VGG16_Weights", "vgg16-397923af.pth"),
    "alexnet": ("AlexNet_Weights", "alexnet-owt-7be5be79.pth"),
    "squeezenet1_1": ("SqueezeNet1_1_Weights", "squeezenet1_1-b8a52dc0.pth"),
}


def weight_folders() -> list[Path]:
    """Where weights are looked for, in this order: $SRGYM_WEIGHTS, ~/.cache/srgym, torch's own cache."""
    named = os.environ.get("SRGYM_WEIGHTS")
    folders = [Path(named)] if named else []
    return [*folders, Path.home() / ".cache" / "srgym", Path(torch.hub.get_dir()) / "checkpoints"]


def find_weights(reward: str, file: str, bring: str, named: str | Path | None = None) -> Path:
    """The file that holds a reward's weights.

    Args:
        reward: whose weights, for the message.
        file: the file's name; `given` overrides it with a path.
        bring: the command that brings the file.

    Raises:
        FileNotFoundError: naming the file, the places and the command.
    """
    if named is not None:
        if not Path(named).is_file():
            raise MissingFile(f"reward '{reward}': there is no file {named}, which was named as its weights")
        return Path(named)
    places = weight_folders()
    for place in places:
        if (place / file).is_file():
            return place / file
    looked = ", ".join(str(place) for place in places)
    raise MissingFile(
        f"reward '{reward}' needs the file {file}, looked for in {looked}; bring it with\n  {bring}\n"
        f"or put it into a folder that SRGYM_WEIGHTS names, or name its path"
    )


def require_package(reward: str, package: str, extra: str, note: str = "") -> Any:
    """The module of an optional package.

    Args:
        reward: who needs it, and `extra`: of ours that brings it, for the message; `note` ends it.

    Raises:
        Incompatible: where it isn't installed, with the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise Incompatible(
            f"reward '{reward}' needs the package {package}, which isn't installed; bring it with\n"
            f'  pip install "srgym[{extra}]"{note}'
        )
    return importlib.import_module(package)


def read_tensors(path: Path, sha256: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a weights file, onto the CPU: `.safetensors`, or a file of torch's own kind.

    Of the latter tensors alone are unpickled (`weights_only`), and nothing that runs; no other place reads such files.

    Raises:
        ValueError: if the file isn't the one that has the digest `sha256`.
    """
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise Refusal(f"{path} isn't the file that was expected, whose SHA-256 is {sha256}: install or fetch it anew")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        held: Mapping[str, Tensor] = load_file(path)
        return held
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def backbone(reward: str, net: str, weights: str | Path | None, *, seed: int = 0) -> nn.Sequential:
    """The feature layers of an ImageNet classifier.

    Args:
        reward: who asks, for messages.
        net: a key of `BACKBONES`.
        weights: a state dict of the classifier or of its features (`.safetensors`, or a file of torch's own kind, of
            which tensors alone are read); None looks for torchvision's file; "random" draws weights, for tests.
        seed: of the random weights.

    Raises:
        FileNotFoundError: when the weights aren't there. ValueError: when they belong to another network.
    """
    import torchvision

    settings = {"init_weights": False} if net == "vgg16" else {}
    with torch.device("meta"):  # the classifier's head is nine tenths of it, and isn't wanted
        features: nn.Sequential = getattr(torchvision.models, net)(weights=None, **settings).features
    features.to_empty(device="cpu")
    if weights == "random":
        _randomise(features, seed)
        return features
    kind, file = BACKBONES[net]
    bring = f'python -c "from torchvision.models import {kind} as w; w.DEFAULT.get_state_dict(check_hash=True)"'
    path = find_weights(reward, file, bring, weights)
    state = {
        name.removeprefix("features."): v
        for name, v in read_tensors(path).items()
        if not name.startswith("classifier.")
    }
    try:
        features.load_state_dict(state)
    except RuntimeError as error:
        raise Refusal(f"reward '{reward}': {path} doesn't hold the weights of torchvision's {net}: {error}") from error
    return features


def _randomise(features: nn.Sequential, seed: int) -> None:
    """He initialisation, which keeps activations of one size through the depth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in features.parameters():
            spread = (2.0 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.0
            parameter.normal_(0.0, spread, generator=generator) if spread else parameter.zero_()
