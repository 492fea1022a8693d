"""The encoders of FinPercep-RM: images to features at four scales, one module a scale."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal

__all__ = ["ENCODERS", "CompactEncoder", "Encoder", "RN50Encoder", "load_clip_rn50", "start_for_silu"]


class Encoder(nn.Module):
    """Four levels, each a module of half the previous one's resolution or finer, and their channels.

    Attributes:
        levels: applied one after another; each one's output is a feature map.
        widths: the channels of each level's output.
    """

    levels: nn.ModuleList
    widths: tuple[int, ...]
    mean: Tensor
    std: Tensor

    def _normalised_by(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """An image [B, 3, H, W] in [0, 1] as the first level wants it."""
        return (image - self.mean) / self.std


class CompactEncoder(Encoder):
    """Four pairs of 3 x 3 convolutions, for machines without an accelerator: 0.2 M parameters.

    It sees the picture and, scaled up, what a 5 x 5 binomial filter takes from it: what tells texture from noise and
    blur is faint beside the picture itself.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self._normalised_by((0.5,) * 3, (0.5,) * 3)
        ins = (6, *self.widths[:-1])
        strides = (1, *(2,) * (len(self.widths) - 1))
        self.levels = nn.ModuleList(_convolutions(*sizes) for sizes in zip(ins, self.widths, strides, strict=True))
        self.levels[-1].append(_ChannelNorm(self.widths[-1]))  # type: ignore[operator]

    def normalise(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, 6, H, W]: the picture, and its detail."""
        taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
        smooth = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
        return torch.cat([super().normalise(image), 8 * (image - smooth)], 1)


_SILU_GAIN = 1.68  # 1 / sqrt(E[SiLU(z)^2]), z standard normal
_FAINT = 0.05  # of the variance


def start_for_silu(layer: nn.Conv2d) -> None:
    """Weights of a 3 x 3 convolution that keep the size of what passes through it and SiLU.

    At torch's own initial scale a picture is lost within eight layers: every score would be the same to 1e-7.
    """
    nn.init.normal_(layer.weight, 0.0, _SILU_GAIN / (9 * layer.in_channels) ** 0.5)


def _convolutions(into: int, out: int, stride: int) -> nn.Sequential:
    layers = [nn.Conv2d(into, out, 3, stride=stride, padding=1), nn.Conv2d(out, out, 3, padding=1)]
    for layer in layers:
        start_for_silu(layer)
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU())


class _ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place: what the score's head sees is of one size from the start.

    Without it the head saturates at learning rates that the map learns well at. What varies less than `_FAINT` from
    channel to channel isn't blown up: on flat places that is noise, and the score would follow it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_FAINT)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return normed


class RN50Encoder(Encoder):
    """CLIP's ResNet-50 up to its last feature map: a stem of three convolutions, and pooling in place of strides.

    Its parameters are named as in CLIP's `visual`, so those weights load as they are. Batch normalisation keeps its
    stored statistics in training too: reward batches are small and of one kind.

    Args:
        width: the stem's channels, 64 in CLIP; a test may take fewer.
        depths: bottlenecks of each stage.
    """

    def __init__(self, width: int = 64, depths: tuple[int, int, int, int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self._normalised_by((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        stages, into = [], width
        for i, depth in enumerate(depths):
            inner = width * 2**i
            blocks = [_Bottleneck(into if b == 0 else 4 * inner, inner, 2 if i and b == 0 else 1) for b in range(depth)]
            stages.append(nn.Sequential(*blocks))
            into = 4 * inner
        self.widths = tuple(4 * width * 2**i for i in range(4))
        self.levels = nn.ModuleList([nn.Sequential(_Stem(width), stages[0]), *stages[1:]])

    def train(self, mode: bool = True) -> "RN50Encoder":
        """Training mode for everything but batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        return F.avg_pool2d(x, 2, ceil_mode=True)


class _Bottleneck(nn.Module):
    def __init__(self, into: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(into, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or into != 4 * inner:
            # Numbered as CLIP numbers them: its pooling layer, "-1", has no parameters.
            self.downsample = nn.Sequential(nn.Conv2d(into, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner))

    def forward(self, x: Tensor) -> Tensor:
        kept = self._smaller(x)
        kept = self.downsample(kept) if self.downsample is not None else kept
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(self._smaller(x))) + kept)

    def _smaller(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x


def load_clip_rn50(encoder: RN50Encoder, path: str | Path) -> None:
    """Load CLIP's image tower into the encoder.

    Args:
        path: a safetensors file with the tower's tensors under CLIP's own names, with or without `visual.` before them;
            its attention pool and text tower, if there, aren't used.

    Raises:
        FileNotFoundError: if there's no such file.
        ValueError: naming the first tensor that is missing or of another shape.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise MissingFile(f"expected CLIP's RN50 as a safetensors file at '{path}', found none")
    held = {name.removeprefix("visual."): tensor for name, tensor in load_file(path).items()}
    state = encoder.state_dict()
    for name, own in state.items():
        if name.endswith("num_batches_tracked"):  # counts that nothing reads, and that some files leave out
            continue
        theirs = _clip_name(name)
        if theirs not in held:
            raise Refusal(f"'{path}' has no tensor '{theirs}'; expected CLIP's RN50")
        if held[theirs].shape != own.shape:
            raise Refusal(f"'{theirs}' in '{path}': expected {tuple(own.shape)}, got {tuple(held[theirs].shape)}")
        state[name] = held[theirs].to(own.dtype)
    encoder.load_state_dict(state)


def _clip_name(name: str) -> str:
    """Ours: levels.0.0 is the stem, levels.0.1 is layer1, levels.1 is layer2, ... Theirs: bare, layer1, layer2, ..."""
    _, level, rest = name.split(".", 2)
    if level != "0":
        return f"layer{int(level) + 1}.{rest}"
    part, rest = rest.split(".", 1)
    return rest if part == "0" else f"layer1.{rest}"


ENCODERS = {"compact": CompactEncoder, "rn50": RN50Encoder}
