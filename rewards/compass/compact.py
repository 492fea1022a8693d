"""A compact COMPASS model: (LR, SR) to fidelity F in [0, 1] and qualities Q_LR, Q_SR in [1, 5], without ground truth.

One network looks at an image beside the bicubically upsampled LR, another, a FinPercep-RM that learnt to find faults in
images alone and stays as it is, at the image; two heads say how good and how faithful it is. Both are asked twice, for
the upsampled LR and for the SR, so both qualities are on one scale. They see band-pass residuals beside the pictures,
since what tells texture from noise and ringing lives there.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json
from srgym.rewards.finpercep.encoders import start_for_silu
from srgym.rewards.finpercep.model import FinPercepRM
from srgym.sealed import check_shapes, read_object, read_tensors, seal, verify_if_sealed, write_tensors

__all__ = ["CompactCompass", "load"]

_LARGEST = 1024
_WEIGHTS = Path(__file__).parents[1] / "weights" / "compass_compact"


def _detail(image: Tensor) -> Tensor:
    """The picture and what a 5 x 5 Gaussian takes from it, scaled up: [B, 3, ...] to [B, 6, ...]."""
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
    smooth = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    return torch.cat([image - 0.5, 8 * (image - smooth)], 1)


class _Trunk(nn.Module):
    """Convolutional stages on the picture folded 2 x 2, each described by its channels' mean and log-spread."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages = []
        channels = 4 * channels
        for i, width in enumerate(widths):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, 3, stride=1 if i == 0 else 2, padding=1),
                    nn.SiLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.SiLU(),
                )
            )
            channels = width
        self.stages = nn.ModuleList(stages)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                start_for_silu(layer)
        self.features = 2 * sum(widths)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        x = F.pixel_unshuffle(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate"), 2)
        for stage in self.stages:
            x = stage(x)
            whole = x.float()
            pooled += [whole.mean((2, 3)), 0.5 * torch.log(whole.var((2, 3), unbiased=False) + 1e-5)]
        return torch.cat(pooled, 1)


class CompactCompass(nn.Module):
    """The compact scorer, 0.2 M parameters and the 0.2 M of the FinPercep-RM that it looks with.

    Args:
        widths: channels of the stages.
        hidden: width of the heads.

    Input images are [B, 3, H, W] in [0, 1], SR at least 16 pixels a side; LR is upsampled bicubically to SR's size.
    """

    def __init__(self, widths: tuple[int, ...] = (40, 56, 72), hidden: int = 64) -> None:
        super().__init__()
        sizes = [len(widths), *widths, hidden]
        if not all(type(size) is int and 1 <= size <= _LARGEST for size in sizes):
            raise Refusal(f"expected widths and hidden as whole numbers from 1 to {_LARGEST}, got {sizes[1:]!r:.80}")
        self._shape = {"widths": list(widths), "hidden": hidden}
        self.trunk, self.finder = _Trunk(15, tuple(widths)), FinPercepRM("compact", 1)
        self.finder.eval().requires_grad_(False)
        features = self.trunk.features + self.finder.encoder.widths[-1]
        self.quality_head, self.fidelity_head = (self._head(features, hidden) for _ in range(2))
        self.from_score = nn.Parameter(torch.tensor([1.0, 0.5]))  # what the finder's score adds to quality and fidelity

    @staticmethod
    def _head(features: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(features), nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.finder.eval()
        return self

    def rate(self, lr_up: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] beside LR upsampled to their size: quality [B] in [1, 5], fidelity [B] in [0, 1]."""
        seen = torch.cat([_detail(image), _detail(lr_up), 4 * (image - lr_up)], 1)
        trunk = self.trunk(seen)
        with torch.autocast(seen.device.type, enabled=False):  # half precision would round away what samples differ by
            score, found = self.finder.look(image)
            features = torch.cat([trunk, found], 1)
            heads = (self.quality_head, self.fidelity_head)
            quality, fidelity = (
                head(features).squeeze(1) + share * score for head, share in zip(heads, self.from_score, strict=True)
            )
        return 1 + 4 * torch.sigmoid(quality), torch.sigmoid(fidelity)

    def forward(self, lr: Tensor, sr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(F [B], Q_LR [B], Q_SR [B], valid [B]), differentiable in SR."""
        # A group's samples share their LR image, which is rated once.
        different, which = torch.unique_consecutive(lr.detach(), return_inverse=True, dim=0)
        lr_up = F.interpolate(different, size=sr.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        q_sr, fidelity = self.rate(lr_up[which], sr)
        return fidelity, self.rate(lr_up, lr_up)[0][which], q_sr, torch.isfinite(q_sr)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `model.json`, sealed."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "model.json", self._shape)
        seal(folder)


def load(weights: str | Path | None = None) -> CompactCompass:
    """The scorer that ships with the package, or one from a folder, frozen.

    Raises:
        FileNotFoundError: if the folder has no `model.safetensors`.
        Damaged: naming the first file that isn't what was written.
    """
    folder = _WEIGHTS if weights is None else Path(weights)
    if not (folder / "model.safetensors").is_file():
        advice = "install srgym again, or train" if weights is None else "train"
        raise MissingFile(
            f"expected the compact COMPASS scorer in {folder}, which has no model.safetensors; {advice} one with\n"
            "  srgym train experiment=compass_compact"
        )
    verify_if_sealed(folder)
    shape, path = read_object(folder / "model.json", {"widths": list, "hidden": int}), folder / "model.safetensors"
    stored = read_tensors(path)
    model = CompactCompass(tuple(shape["widths"]), shape["hidden"])
    check_shapes(path, stored, model.state_dict())
    model.load_state_dict(stored)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half again as fast on a CPU
    return model.eval().requires_grad_(False)
