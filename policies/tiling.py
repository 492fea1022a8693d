"""Large images by tiles: the same noise field under all of them, overlapping, blended smoothly."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.policies.flow import FlowPolicy
from srgym.policies.noise import Noise, derive_seeds

__all__ = ["tile_spans", "upscale", "upscale_bands"]

_STEP = 16  # tiles start at multiples of this in LR pixels, so that their latents lie on one grid


def tile_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles start and end along a side: they cover 0..length, and neighbours share at least `overlap` pixels.

    Raises:
        ValueError: for a tile that isn't larger than twice its overlap, or sizes that aren't multiples of 16.
    """
    if tile <= 2 * overlap or overlap < 0:
        raise Refusal(f"a tile is larger than twice its overlap, got tile {tile} and overlap {overlap}")
    if tile % _STEP or overlap % _STEP:
        raise Refusal(f"tile and overlap are multiples of {_STEP} pixels, got {tile} and {overlap}")
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [min(i * (tile - overlap), length) for i in range(count)]
    return [(start, min(start + tile, length)) for start in starts]


def _whole_spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Spans of `tile` each, of a side that is at least as long; neighbours share a quarter or more."""
    step = tile - tile // 4
    starts = [*range(0, length - tile, step), length - tile]
    return [(start, start + tile) for start in starts]


def upscale(policy: Policy, lr: Tensor, **how: Any) -> Tensor:
    """Super-resolve one image of any size: `upscale_bands` put together, SR [3, H, W] in [0, 1], on the CPU."""
    return torch.cat(list(upscale_bands(policy, lr, **how)), 1)


@torch.no_grad()
def upscale_bands(
    policy: Policy,
    lr: Tensor,
    *,
    steps: int = 6,
    seed: int = 0,
    solver: str = "euler",
    prompt: str | None = None,
    tile: int = 192,
    overlap: int = 32,
    mean: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Tensor]:
    """Super-resolve one image of any size, a row of tiles at a time: the memory is that of one row.

    Args:
        policy: under the adapter that is active.
        lr: [3, h, w] in [0, 1].
        steps, solver, seed: of the sampling. The noise is one field over the whole image, so that tiles agree where
            they overlap.
        prompt: for policies that read one.
        tile, overlap: in LR pixels, multiples of 16; an image of at most `tile` is one tile. A policy that takes images
            of one size alone (`Policy.window`) has tiles of that size.
        mean: take the policy's predicted mean in place of a sample: more accurate, less texture.
        progress: called with the share done.

    Yields:
        Lines of SR, [3, n, W] in [0, 1] on the CPU, from the top.

    Raises:
        ValueError: for the mean of a policy that predicts none; for tiles that can't be.
    """
    if mean and not hasattr(policy, "predict_mean"):
        raise Refusal(f"policy '{policy.name}' predicts no mean: take a sample")
    height, width, scale = *lr.shape[-2:], policy.scale
    if policy.window is None:
        rows, columns = (tile_spans(side, tile, overlap) for side in (height, width))
    else:
        below, beside = (max(need - side, 0) for need, side in zip(policy.window, (height, width), strict=True))
        lr = F.pad(lr[None], (0, beside, 0, below), mode="replicate")[0]
        rows, columns = (_whole_spans(*pair) for pair in zip(lr.shape[-2:], policy.window, strict=True))
    sampling = policy.sampling(steps, solver)
    seeds = derive_seeds(seed, 0, torch.tensor([0]), stream="predict")
    field = _NoiseField(policy, seeds, lr, prompt) if isinstance(policy, FlowPolicy) and not mean else None
    total, weight = (torch.zeros(channels, 0, lr.shape[-1] * scale) for channels in (3, 1))
    for number, (top, bottom) in enumerate(rows):
        missing = (bottom - top) * scale - total.shape[1]
        total, weight = (F.pad(lines, (0, 0, 0, missing)) for lines in (total, weight))
        parts = [lr[None, :, top:bottom, left:right].to(policy.device) for left, right in columns]
        written = None
        if policy.window is not None and not mean:  # small tiles: those of a row at once
            cond = policy.encode(_observation(torch.cat(parts), prompt))
            own = derive_seeds(seed, number, torch.arange(len(parts)), stream="predict")
            written = policy.sample(cond, sampling, own)["sr"].float().cpu()
        for other, ((left, right), part) in enumerate(zip(columns, parts, strict=True)):
            if written is not None:
                sr = written[other]
            elif isinstance(policy, FlowPolicy) and field is not None:
                cond = policy.encode(_observation(part, prompt))
                x = field.tile(policy.latent_shape(cond), (top, left))
                sr = policy.sample(cond, sampling, seeds, x=x)["sr"][0].float().cpu()
            else:
                sr = policy.predict_mean(part)[0].float().cpu()  # type: ignore[operator]
            window = _window(rows, number, overlap, scale)[:, None] * _window(columns, other, overlap, scale)[None, :]
            total[..., left * scale : right * scale] += sr * window
            weight[..., left * scale : right * scale] += window
            if progress is not None:
                progress((number * len(columns) + other + 1) / (len(rows) * len(columns)))
        done = (rows[number + 1][0] - top) * scale if number + 1 < len(rows) else total.shape[1]
        band = total[:, :done] / weight[:, :done]
        begun = rows[number][0] * scale
        yield band[:, : max(height * scale - begun, 0), : width * scale]
        total, weight = total[:, done:], weight[:, done:]


def _window(spans: list[tuple[int, int]], number: int, overlap: int, scale: int) -> Tensor:
    """A tile's weights along a side: 1 in the middle, a raised cosine over the overlap with a neighbour."""
    start, end = spans[number]
    window = torch.ones((end - start) * scale)
    if number > 0:
        shared = (spans[number - 1][1] - start) * scale
        window[:shared] = _ramp(shared)
    if number < len(spans) - 1:
        shared = (end - spans[number + 1][0]) * scale
        window[len(window) - shared :] *= _ramp(shared).flip(0)
    return window


def _ramp(length: int) -> Tensor:
    """From nearly 0 to nearly 1, so that two neighbours' weights add up to 1."""
    return 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(length) + 0.5) / length)


class _NoiseField:
    """The initial noise of a whole image, the same that an untiled rollout draws, cut into tiles."""

    def __init__(self, policy: FlowPolicy, seeds: Tensor, lr: Tensor, prompt: str | None) -> None:
        def latent(strip: Tensor) -> tuple[int, ...]:
            return policy.latent_shape(policy.encode(_observation(strip[None].to(policy.device), prompt)))

        # A side of the latents depends on that side of the image alone; strips tell both without the memory of a whole.
        channels, rows, _ = latent(lr[:, :, :_STEP])
        columns = latent(lr[:, :_STEP])[2]
        self._field = policy.temperature * Noise(seeds).normal((channels, rows, columns))
        self._density = latent(lr.new_zeros(3, _STEP, _STEP))[1] / _STEP
        self._device = policy.device

    def tile(self, shape: tuple[int, ...], corner: tuple[int, int]) -> Tensor:
        """Noise [1, channels, rows, columns] of the tile whose LR corner is (top, left)."""
        top, left = (round(place * self._density) for place in corner)
        return self._field[:, :, top : top + shape[1], left : left + shape[2]].to(self._device)


def _observation(part: Tensor, prompt: str | None) -> dict[str, Any]:
    return {"lr": part, "prompt": None if prompt is None else [prompt] * len(part)}
