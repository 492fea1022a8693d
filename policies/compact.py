"""A compact flow policy: trains on a CPU, speaks the same interface as the foundation models.

The low-resolution image is upsampled bicubically to the target size and folded 4 x 4 into channels; an encoder on that
grid runs once a context and predicts the mean of the image, the spread around it, and features. The flow lives on what
is left, normalised by that spread: luma folded 4 x 4 (16 channels) and chroma at an eighth of the resolution
(2 channels). Chroma finer than that is the mean's, in the spirit of 4:2:0 video: an eye hardly sees it, and a sample
can't speckle in it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal
from srgym.policies.flow import FlowPolicy
from srgym.sealed import check_shapes, read_tensors, write_tensors

__all__ = ["CompactPolicy", "ResidualBlock", "bicubic", "fill"]

FOLD = 4
_LATENT = FOLD * FOLD + 2
_LARGEST = 1024
_BASE_WEIGHTS = Path(__file__).parent / "weights" / "compact_base"


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling [B, 3, h, w] -> [B, 3, scale h, scale w], clamped to [0, 1]."""
    if scale == 1:
        return lr.clamp(0, 1)
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def _to_luma_chroma(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """RGB [B, 3, H, W] to BT.601 luma [B, 1, H, W] and the differences (B - Y, R - Y) [B, 2, H, W]."""
    red, green, blue = rgb.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma[:, None], torch.stack([blue - luma, red - luma], 1)


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    blue, red = chroma[:, 0] + luma[:, 0], chroma[:, 1] + luma[:, 0]
    green = (luma[:, 0] - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], 1)


def fill(conv: nn.Conv2d, bias: float) -> None:
    """Start a convolution at a constant: the network then starts from what surrounds it."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


# Quarter turns, and whether the image is mirrored after them.
_SYMMETRIES = tuple((k, flip) for k in range(4) for flip in (False, True))


def _turn(image: Tensor, k: int, flip: bool) -> Tensor:
    turned = image.rot90(k, (-2, -1))
    return turned.flip(-1) if flip else turned


def _turn_back(image: Tensor, k: int, flip: bool) -> Tensor:
    return (image.flip(-1) if flip else image).rot90(-k, (-2, -1))


class ResidualBlock(nn.Module):
    """Two convolutions around a residual; time enters as a scale and a shift of the channels."""

    def __init__(self, width: int, time: int | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(time, 2 * width) if time is not None else None
        fill(self.second, 0.0)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        hidden = self.first(F.silu(x))
        if self.film is not None and time is not None:
            gain, shift = self.film(time)[:, :, None, None].chunk(2, 1)
            hidden = hidden * (1 + gain) + shift
        out: Tensor = x + self.second(F.silu(hidden))
        return out


class _Encoder(nn.Module):
    """The folded image [G, 48, h, w] to features, the mean's residual [G, 48, h, w] and log-spread [G, 18, h, w]."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * FOLD * FOLD, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.mean = nn.Conv2d(width, 3 * FOLD * FOLD, 3, padding=1)
        self.log_spread = nn.Conv2d(width, _LATENT, 3, padding=1)
        fill(self.mean, 0.0)
        fill(self.log_spread, -3.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.enter(x)
        for block in self.blocks:
            hidden = block(hidden)
        out = F.silu(hidden)
        return hidden, self.mean(out), self.log_spread(out)


class _FlowNet(nn.Module):
    """A two-level U-Net over latents and features: (x [N, 18, h, w], t [N], features) to [N, 18, h, w]."""

    def __init__(self, features: int, width: int, middle: int, time: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(100.0), 16)), persistent=False)
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(_LATENT, width, 3, padding=1)
        self.condition = nn.Conv2d(features, width, 1)
        self.down = nn.ModuleList(ResidualBlock(width, time) for _ in range(2))
        self.shrink = nn.Conv2d(width, middle, 2, stride=2)
        self.middle = nn.ModuleList(ResidualBlock(middle, time) for _ in range(2))
        self.grow = nn.Conv2d(middle, 4 * width, 1)
        self.up = nn.ModuleList(ResidualBlock(width, time) for _ in range(2))
        self.leave = nn.Conv2d(width, _LATENT, 3, padding=1)
        fill(self.leave, 0.0)

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        angle = t[:, None] * self.get_buffer("frequencies")
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        hidden = self.enter(x) + self.condition(features)
        for block in self.down:
            hidden = block(hidden, time)
        low = self.shrink(hidden)
        for block in self.middle:
            low = block(low, time)
        hidden = hidden + F.pixel_shuffle(self.grow(low), 2)
        for block in self.up:
            hidden = block(hidden, time)
        out: Tensor = self.leave(F.silu(hidden))
        return out


class CompactPolicy(FlowPolicy):
    """The compact policy, about 0.9 M parameters.

    Args:
        scale: how many times larger the SR image is, 1 to 4. One set of weights serves all: the encoder works at the
            target size.
        weights: "base" for the general restorer that ships with the package, None for random weights, or a folder
            that `save` wrote.
        encoder_width, encoder_depth, width, middle: the networks' channels and blocks.
        seed: of the random weights.
        temperature: see `FlowPolicy`; above 0, at most 1.

    Raises:
        ValueError: for a scale outside 1..4, a temperature outside (0, 1], or a network larger than anyone means.
        FileNotFoundError: for weights that aren't there.
    """

    name = "compact"
    lora_targets = (
        "enter", "condition", "shrink", "grow", "leave",
        *(f"{part}.{i}.{conv}" for part in ("down", "middle", "up") for i in (0, 1) for conv in ("first", "second")),
    )  # fmt: skip

    def __init__(
        self,
        scale: int = 4,
        weights: str | None = "base",
        encoder_width: int = 64,
        encoder_depth: int = 7,
        width: int = 56,
        middle: int = 96,
        seed: int = 0,
        temperature: float = 0.7,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 3, 4):
            raise Refusal(f"the compact policy upsamples by 1, 2, 3 or 4, got {scale}")
        if not 0 < temperature <= 1:
            raise Refusal(f"expected a temperature above 0 and at most 1, got {temperature}")
        self.scale, self.temperature = scale, temperature
        self._shape = {
            "encoder_width": encoder_width, "encoder_depth": encoder_depth, "width": width, "middle": middle,
        }  # fmt: skip
        for name, size in self._shape.items():
            if type(size) is not int or not 1 <= size <= _LARGEST:
                raise Refusal(f"expected {name} as a whole number from 1 to {_LARGEST}, got {size!r:.40}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _Encoder(encoder_width, encoder_depth)
            self.flow = _FlowNet(encoder_width, width, middle)
        if weights is not None:
            self.load_base(_BASE_WEIGHTS if weights == "base" else Path(weights))

    @property
    def core(self) -> nn.Module:
        return self.flow

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        """`features`, `mean` (the predicted image, padded to a multiple of 8), `spread` and `size` (H, W)."""
        image = bicubic(obs["lr"], self.scale)
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % (2 * FOLD), 0, -height % (2 * FOLD)), mode="replicate")
        features, residual, log_spread = self.encoder(F.pixel_unshuffle(padded, FOLD) - 0.5)
        mean = padded + F.pixel_shuffle(residual, FOLD).float()
        size = torch.tensor([height, width], device=image.device).expand(len(image), 2)
        cond = {"features": features, "mean": mean, "spread": log_spread.float().clamp(-6, 0).exp(), "size": size}
        return TensorDict(cond, batch_size=[len(image)])

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        """Preconditioned for data of unit variance: v = (2t - 1)/d x + net(x/sqrt d)/sqrt d, d = t^2 + (1 - t)^2.

        The first term is the best linear prediction, the network has the rest, in and out at unit scale.
        """
        s = t.to(x.dtype).reshape(-1, 1, 1, 1)
        d = s.square() + (1 - s).square()
        correction: Tensor = self.flow(x / d.sqrt(), t.to(x.dtype), cond["features"])
        return (2 * s - 1) / d * x + correction.to(x.dtype) / d.sqrt()

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        latent: Tensor = x0 * cond["spread"]
        luma = F.pixel_shuffle(latent[:, : FOLD * FOLD], FOLD)
        coarse = F.avg_pool2d(latent[:, FOLD * FOLD :], 2)
        chroma = F.interpolate(coarse, scale_factor=2 * FOLD, mode="bilinear", align_corners=False)
        return self._crop(cond["mean"] + _to_rgb(luma, chroma), cond)

    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        """What of the image the mean doesn't have. Chroma finer than 8 pixels is left out, so `decode` gives back luma
        exactly and chroma at an eighth of the resolution."""
        spread: Tensor = cond["spread"]
        return self._residual(image, cond) / spread.detach()

    def _residual(self, image: Tensor, cond: TensorDict) -> Tensor:
        mean = cond["mean"].detach()
        pad = (0, mean.shape[-1] - image.shape[-1], 0, mean.shape[-2] - image.shape[-2])
        luma, chroma = _to_luma_chroma(F.pad(image, pad, mode="replicate") - mean)
        coarse = F.interpolate(F.avg_pool2d(chroma, 2 * FOLD), scale_factor=2.0)
        return torch.cat([F.pixel_unshuffle(luma, FOLD), coarse], 1)

    def _crop(self, image: Tensor, cond: TensorDict) -> Tensor:
        height, width = cond["size"][0].tolist()
        return image[..., :height, :width].clamp(0, 1)

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        return tuple(cond["spread"].shape[1:])

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        return torch.linspace(1.0, 0.0, steps + 1)

    @torch.no_grad()
    def predict_mean(self, lr: Tensor) -> Tensor:
        """The predicted mean image: the most accurate in PSNR, and too smooth. LR [B, 3, h, w] to [B, 3, H, W].

        It is averaged over the eight symmetries of the square (the self-ensemble of EDSR, Lim et al. 2017), for eight
        times the encoder's cost: turning the input turns the output, and what is the network's own in one
        orientation cancels.
        """
        turned = [self._encoded_mean(_turn(lr.to(self.device), k, flip)) for k, flip in _SYMMETRIES]
        images = [_turn_back(image, k, flip) for image, (k, flip) in zip(turned, _SYMMETRIES, strict=True)]
        return torch.stack(images).mean(0).to(lr.device)

    def _encoded_mean(self, lr: Tensor) -> Tensor:
        cond = self.encode({"lr": lr})
        return self._crop(cond["mean"], cond)

    def auxiliary_loss(self, image: Tensor, cond: TensorDict) -> TensorDict:
        """The encoder's own losses in cold start: squared error of the mean, Gaussian likelihood of the spread.

        Args:
            image: ground truth [N, 3, H, W].
            cond: what `encode` returned for its contexts, with gradient.
        """
        height, width = image.shape[-2:]
        error = cond["mean"][..., :height, :width] - image
        spread = cond["spread"]
        residual = self._residual(image, cond)
        likelihood = 0.5 * (residual / spread).square() + spread.log()
        return TensorDict({"loss_mean": 100 * error.square().mean(), "loss_spread": 0.1 * likelihood.mean()})

    @property
    def config(self) -> dict[str, Any]:
        return {"scale": self.scale, "weights": None, "temperature": self.temperature, **self._shape}

    def save_base(self, folder: Path) -> None:
        tensors = {
            name.replace(".base_layer.", "."): p for name, p in self.state_dict().items() if ".lora_" not in name
        }
        write_tensors(folder / "model.safetensors", tensors)

    def load_base(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        if not path.is_file():
            raise MissingFile(f"expected the compact policy's weights at {path}, found no such file")
        stored = read_tensors(path)
        check_shapes(path, stored, self.state_dict())
        self.load_state_dict(stored)
