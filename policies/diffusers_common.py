"""What the foundation-model policies share: packing, sizes, tiled decoding, the cache of encoded conditions."""

import contextlib
import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from srgym.errors import Refusal
from srgym.sealed import write_tensors

__all__ = [
    "PLACEMENTS", "ConditionCache", "OnDemand", "decode_tiled", "digest", "fingerprint", "pack", "pad_to",
    "reference_size", "resize", "set_shifted_sigmas", "unpack",
]  # fmt: skip

PLACEMENTS = ("keep", "offload", "drop")


# Latents


def pack(latent: Tensor) -> Tensor:
    """Latents [N, C, h, w] to the transformer's tokens [N, h w / 4, 4 C]: patches of 2 x 2, channels outermost."""
    n, c, h, w = latent.shape
    patches = latent.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: tokens [N, h w / 4, 4 C] to latents [N, C, height, width]."""
    n, _, c = tokens.shape
    patches = tokens.reshape(n, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, c // 4, height, width)


def set_shifted_sigmas(scheduler: Any, steps: int, tokens: int, start: Sequence[float] | None = None) -> Tensor:
    """A scheduler's own times for `steps`, float32 [steps + 1] from 1 to 0.

    Under dynamic shifting the shift mu is linear in the number of packed tokens of the target image.

    Args:
        scheduler: diffusers' `FlowMatchEulerDiscreteScheduler`.
        steps: solver steps.
        tokens: packed tokens of the target (not of the reference).
        start: the times before the shift; the scheduler's own where None.
    """
    if steps == 1:
        return torch.tensor([1.0, 0.0])  # under shift_terminal diffusers divides zero by zero here
    config = scheduler.config
    extra: dict[str, Any] = {}
    if start is not None:
        extra["sigmas"] = list(start)
    if config.use_dynamic_shifting:
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        extra["mu"] = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(num_inference_steps=None if start is not None else steps, **extra)
    times: Tensor = scheduler.sigmas.float().cpu().clone()
    return times


# Sizes


def reference_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of about side^2 pixels in the same aspect, multiples of 32: the stock pipelines' rule."""
    ratio = width / height
    wide = math.sqrt(side * side * ratio)
    return max(32, round(wide / ratio / 32) * 32), max(32, round(wide / 32) * 32)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, antialiased where it shrinks: [B, 3, h, w] to [B, 3, height, width] in [0, 1]."""
    if image.shape[-2:] == (height, width):
        return image
    shrinks = height < image.shape[-2] or width < image.shape[-1]
    resized = F.interpolate(image, (height, width), mode="bicubic", align_corners=False, antialias=shrinks)
    return resized.clamp(0, 1)


def pad_to(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of `multiple`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")


# Decoding


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Where tiles begin: every `step`, the last one flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, step), length - tile]


def _ramp(length: int, overlap: int, first: bool, last: bool, like: Tensor) -> Tensor:
    """Weights along one side of a tile: rising over the overlap with the tile before, falling over that after."""
    rise = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / max(overlap, 1)
    weight = torch.ones_like(rise)
    if not first:
        weight = torch.minimum(weight, rise)
    if not last:
        weight = torch.minimum(weight, rise.flip(0))
    return weight


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latent: Tensor, factor: int, tile: int | None, *, checkpointed: bool
) -> Tensor:
    """Decode latents [N, C, h, w] to images [N, 3, factor h, factor w], differentiably, one tile at a time.

    Tiles overlap by a quarter and are blended linearly, so seams are smooth; a decoder whose attention or normalisation
    sees the whole image gives slightly other values than in one piece. With `checkpointed` nothing inside the decoder
    is kept for the backward pass: it runs again, tile by tile, and the peak is one tile's.

    Args:
        decode: latents to images, at any size.
        latent: what to decode.
        factor: pixels a latent cell spans.
        tile: a tile's side in latent cells; None: the whole image at once.
        checkpointed: recompute in the backward pass.
    """
    height, width = latent.shape[-2:]

    def run(part: Tensor) -> Tensor:
        if checkpointed and torch.is_grad_enabled() and part.requires_grad:
            out: Tensor = checkpoint(decode, part, use_reentrant=False)
            return out
        return decode(part)

    if tile is None or (height <= tile and width <= tile):
        return run(latent)
    overlap = tile // 4
    image: Tensor | None = None
    total: Tensor | None = None
    for top in _starts(height, tile, tile - overlap):
        for left in _starts(width, tile, tile - overlap):
            part = run(latent[..., top : top + tile, left : left + tile])
            if image is None or total is None:
                image = part.new_zeros(*part.shape[:-2], factor * height, factor * width)
                total = part.new_zeros(factor * height, factor * width)
            rows = _ramp(part.shape[-2], factor * overlap, top == 0, top + tile >= height, part)
            columns = _ramp(part.shape[-1], factor * overlap, left == 0, left + tile >= width, part)
            weight = rows[:, None] * columns
            y, x = factor * top, factor * left
            image[..., y : y + part.shape[-2], x : x + part.shape[-1]] += weight * part
            total[y : y + part.shape[-2], x : x + part.shape[-1]] += weight.detach()
    assert image is not None and total is not None
    return image / total


# Encoders and what they gave


def digest(*parts: str | bytes | Tensor) -> str:
    """SHA-256 of texts, bytes and tensors, hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            raw = f"{tuple(part.shape)}{part.dtype}".encode() + part.detach().cpu().contiguous().numpy().tobytes()
        else:
            raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return whole.hexdigest()


@torch.no_grad()
def fingerprint(modules: Sequence[nn.Module]) -> str:
    """A hash that tells models apart: every tensor's name, shape, type and first 16 values."""
    parts: list[str | bytes | Tensor] = []
    for module in modules:
        parts.append(type(module).__name__)
        for name, tensor in module.state_dict().items():
            parts.append(f"{name}{tuple(tensor.shape)}{tensor.dtype}")
            parts.append(tensor.flatten()[:16].double().cpu())
    return digest(*parts)


class ConditionCache:
    """Encoded conditions by key: the newest in memory, and on disk where a folder is given (safetensors, a file each).

    Args:
        size: entries kept in memory.
        folder: where entries are kept for other runs; None: memory only.
    """

    def __init__(self, size: int, folder: Path | None = None) -> None:
        if size < 1:
            raise Refusal(f"the cache of conditions keeps at least 1, got {size}")
        self._size, self._folder = size, folder
        self._entries: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def get(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The entry of `key` on the CPU; `make` is called, once, where there is none."""
        from safetensors.torch import load_file

        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        path = self._folder / f"{key}.safetensors" if self._folder is not None else None
        if path is not None and path.is_file():
            entry: dict[str, Tensor] = load_file(path)
        else:
            entry = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
            if path is not None:
                self._write(path, entry)
        self._entries[key] = entry
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return entry

    @staticmethod
    def _write(path: Path, entry: Mapping[str, Tensor]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.{os.getpid()}")  # several ranks may write the same entry
        write_tensors(draft, entry)
        draft.replace(path)


class OnDemand:
    """Encoders that only encoding needs: kept on the device, offloaded to the CPU between uses, or dropped after one.

    Args:
        what: what they are called in messages.
        modules: the encoders; those that are None are left out.
        placement: one of `PLACEMENTS`.
        drop: forgets the modules, so that their memory is given back.
    """

    def __init__(
        self, what: str, modules: Sequence[nn.Module | None], placement: str, drop: Callable[[], None]
    ) -> None:
        if placement not in PLACEMENTS:
            raise Refusal(f"{what}: expected one of {', '.join(PLACEMENTS)}, got '{placement}'")
        self.what, self.placement = what, placement
        self._modules = [module for module in modules if module is not None]
        self._drop = drop
        self._fingerprint: str | None = None
        if placement == "offload":
            self._move("cpu")

    @property
    def dropped(self) -> bool:
        return not self._modules

    @property
    def fingerprint(self) -> str:
        """Which encoders these are, also once they are dropped."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._modules)
        return self._fingerprint

    def _move(self, device: torch.device | str) -> None:
        for module in self._modules:
            module.to(device)

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Run with the encoders on `device`.

        Raises:
            ValueError: once they are dropped.
        """
        if self.dropped:
            raise Refusal(
                f"the {self.what} was dropped and this condition isn't in the cache: expected a context that was "
                f"encoded before, or a policy with {self.what.replace(' ', '_')}='offload'"
            )
        self._move(device)
        yield
        if self.placement == "offload":
            self._move("cpu")

    def settle(self) -> None:
        """After a batch of contexts: drop what was to be dropped after its first use."""
        if self.placement == "drop":
            self.drop()

    def drop(self) -> None:
        """Forget the encoders; what is in the cache stays usable."""
        self._fingerprint = self.fingerprint
        self._modules = []
        self._drop()
