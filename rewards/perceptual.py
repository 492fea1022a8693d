"""Learned full-reference similarities, by torchmetrics' implementations on a backbone that the user supplies."""

import math
from pathlib import Path
from unittest.mock import patch

from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.rewards.backbones import backbone
from srgym.rewards.registry import register_reward

__all__ = ["DISTS", "LPIPS"]

_NETS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@register_reward(
    "dists",
    differentiable=True,
    range=(-1.0, 1.0),
    licence="Apache-2.0 (code), MIT (alpha, beta)",
    weights="VGG16 of torchvision (vgg16-397923af.pth); alpha and beta come with torchmetrics",
    variant="torchmetrics",
    purpose="perceptual",
    kin=("KADID-10k",),
)
class DISTS(nn.Module):
    """1 - DISTS (Ding et al. 2020): deep image structure and texture similarity.

    The component `distance` is DISTS itself. float32, no resizing.

    Args:
        weights: a file with VGG16's weights; None looks where `backbones.weight_folders` says; "random" draws
            them, which is for tests and means nothing.
        seed: of random weights.

    Raises:
        FileNotFoundError: without weights, naming the file and the command that brings it.
    """

    def __init__(self, weights: str | Path | None = None, seed: int = 0) -> None:
        super().__init__()
        from torchmetrics.functional.image import dists

        class Features:
            features = backbone("dists", "vgg16", weights, seed=seed)

        # The constructor builds a VGG16 from the network; it is handed ours.
        with patch.object(dists, "vgg16", lambda **_: Features):
            self.network = dists.DISTSNetwork()

    def forward(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] to `total` and `distance`, [B] each."""
        distance = self.network(sr, hr, require_grad=True).reshape(len(sr))
        # Of an image with itself the distance can be -1e-7 by rounding.
        return {"total": (1 - distance).clamp_max(1.0), "distance": distance}


@register_reward(
    "lpips",
    differentiable=True,
    range=(-math.inf, 1.0),
    licence="Apache-2.0 (code), BSD-2-Clause (heads)",
    weights="AlexNet of torchvision (alexnet-owt-7be5be79.pth), or VGG16, SqueezeNet; heads come with torchmetrics",
    variant="torchmetrics, version 0.1, alex",
    purpose="perceptual",
    kin=("BAPPS",),
)
class LPIPS(nn.Module):
    """1 - LPIPS (Zhang et al. 2018): learned perceptual image patch similarity.

    The component `distance` is LPIPS itself.

    Args:
        net: "alex" (the evaluation standard), "vgg" or "squeeze".
        weights: a file with the backbone's weights; None looks where `backbones.weight_folders` says; "random"
            draws them, which is for tests and means nothing.
        seed: of random weights.

    Raises:
        FileNotFoundError: without weights, naming the file and the command that brings it.
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None, seed: int = 0) -> None:
        super().__init__()
        if net not in _NETS:
            raise Refusal(f"lpips: expected a net of {', '.join(_NETS)}, got '{net}'")
        from torchmetrics.functional.image import lpips

        self.variant = f"torchmetrics, version 0.1, {net}"
        features = backbone("lpips", _NETS[net], weights, seed=seed)
        # As for DISTS; `pnet_rand` only keeps it from asking for pretrained weights.
        with patch.object(lpips, "_get_tv_model_features", lambda *_, **__: features):
            self.network = lpips._NoTrainLpips(net=net, pnet_rand=True)

    def forward(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] to `total` and `distance`, [B] each."""
        distance: Tensor = self.network(sr, hr, normalize=True).reshape(len(sr))
        return {"total": 1 - distance, "distance": distance}
