"""How LR images are made of HR images: presets, what is drawn for a sample, and its replay.

A sample's parameters are drawn into a record first and applied after, so the record alone gives the same LR again.
Presets:

- `realesrgan`: the second-order pipeline of Real-ESRGAN (arXiv 2107.10833, sec. 3) with its own numbers, which SeeSR's
  paired data and OSEDiff share.
- `stablesr`: the same with the gentler numbers behind StableSR's DIV2K-val (arXiv 2305.07015).
- `bicubic`: the classical one, antialiased bicubic downsampling alone.
- `mild`: a good camera's image, scaled down and saved well; what the default experiment uses.
- `mixture`: for training a general restorer, from almost nothing to heavy losses.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgym.envs import kernels
from srgym.envs.operations import convolve, gaussian_noise, jpeg, poisson_noise, quantise, resize
from srgym.errors import Refusal

__all__ = ["PRESETS", "STEPS", "apply", "degrade", "draw", "mix_seed"]

Record = dict[str, Any]
Range = tuple[float, float]

STEPS = ("blur1", "resize1", "noise1", "jpeg1", "blur2", "resize2", "noise2", "jpeg2", "final")
_RESIZES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Stage:
    """One of the two passes. Ranges are drawn from uniformly; Gaussian noise is in grey levels of 255.

    Attributes:
        blur: probability of a blur; sigma: its range in pixels.
        resize: probabilities of up, down and keep; factor: what the resize is drawn from, up above 1, down below.
        gaussian, poisson: strengths of the noise. jpeg: quality.
    """

    blur: float
    sigma: Range
    resize: tuple[float, float, float]
    factor: Range
    gaussian: Range
    poisson: Range
    jpeg: tuple[int, int]


@dataclass(frozen=True)
class SecondOrder:
    """A second-order preset: two stages, the ranges of the kernels' shapes, and probabilities that both share."""

    first: Stage
    second: Stage
    beta_gaussian: Range
    beta_plateau: Range
    gaussian_noise: float = 0.5
    grey_noise: float = 0.4
    final_sinc: float = 0.8


_FIRST, _SECOND = (0.2, 0.7, 0.1), (0.3, 0.4, 0.3)
_REALESRGAN = SecondOrder(
    Stage(1.0, (0.2, 3.0), _FIRST, (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
    Stage(0.8, (0.2, 1.5), _SECOND, (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
    beta_gaussian=(0.5, 4.0),
    beta_plateau=(1.0, 2.0),
)
_STABLESR = SecondOrder(
    Stage(1.0, (0.2, 1.5), _FIRST, (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
    Stage(0.5, (0.2, 1.0), _SECOND, (0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100)),
    beta_gaussian=(0.5, 2.0),
    beta_plateau=(1.0, 1.5),
)


def degrade(
    hr: Tensor, preset: str = "realesrgan", *, seed: int | Sequence[int], scale: int = 4
) -> tuple[Tensor, list[Record]]:
    """Make LR images.

    Args:
        hr: float [B, 3, H, W] in [0, 1], H and W multiples of `scale`; any device; no gradient passes.
        preset: a name of `PRESETS`.
        seed: one a sample, so that a sample's LR doesn't depend on its batch; or one for all, which gives sample i the
            seed `mix_seed(seed, i)`.
        scale: how many times smaller LR is, at least 1.

    Returns:
        lr: float32 [B, 3, H / scale, W / scale] in [0, 1] on 256 levels, where `hr` was; and one record a sample: a
        plain dict for JSON with `preset`, `scale`, `seed` and every step of `STEPS`, None for one that isn't taken.
        `blur1`, `blur2`: as `kernels.draw_blur` says. `resize1`, `resize2`: `factor` (of the side of HR, and of that
        of LR) and `mode`. `noise1`, `noise2`: `kind` ("gaussian", "poisson"), `strength`, `grey`. `jpeg1`, `jpeg2`:
        `quality`. `final`, the way back to the size of LR: `order`, `mode` and `sinc`.

    Raises:
        ValueError: for images of another form, an unknown preset, a scale below 1, or seeds that aren't B.
    """
    _check(hr, scale)
    seeds = [mix_seed(seed, i) for i in range(len(hr))] if isinstance(seed, int) else [int(s) for s in seed]
    if len(seeds) != len(hr):
        raise Refusal(f"expected one seed, or one for each of {len(hr)} images, got {len(seeds)}")
    records = [draw(preset, seed=s, scale=scale) for s in seeds]
    images = hr.detach().float().cpu().clamp(0, 1)
    lr = torch.stack([apply(image, record) for image, record in zip(images, records, strict=True)])
    return lr.to(hr.device), records


def draw(preset: str, *, seed: int, scale: int = 4) -> Record:
    """The record of one sample: all that is random but the noise itself, which `apply` draws from the same seed."""
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Refusal(f"a degradation preset is one of {', '.join(PRESETS)}, got '{preset}'{hint}")
    record: Record = {"preset": preset, "scale": scale, "seed": seed, **dict.fromkeys(STEPS)}
    return record | PRESETS[preset](np.random.default_rng([0, seed]), scale)


def apply(hr: Tensor, record: Record) -> Tensor:
    """LR [3, H / scale, W / scale] of one HR image [3, H, W] by its record; the same by a record read from JSON."""
    rng = np.random.default_rng([1, record["seed"]])
    height, width, scale = hr.shape[-2], hr.shape[-1], record["scale"]
    image = _blur(hr, record["blur1"])
    image = _resize(image, record["resize1"], height, width)
    image = _noise(image, record["noise1"], rng)
    image = _jpeg(image, record["jpeg1"])
    image = _blur(image, record["blur2"])
    image = _resize(image, record["resize2"], height / scale, width / scale)
    image = _noise(image, record["noise2"], rng)
    final = record["final"]
    if final is None:
        return quantise(_jpeg(image, record["jpeg2"]))
    if final["order"] == "jpeg_first":
        image = _jpeg(image, record["jpeg2"])
    image = resize(image, height // scale, width // scale, final["mode"])
    image = _blur(image, final["sinc"])
    if final["order"] == "jpeg_last":
        image = _jpeg(image, record["jpeg2"])
    return quantise(image)


def mix_seed(seed: int, key: int | str) -> int:
    """A seed in [0, 2^63) of (seed, image id); two keys give unrelated ones."""
    digest = hashlib.blake2b(f"{int(seed)}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _check(hr: Tensor, scale: int) -> None:
    if hr.ndim != 4 or hr.shape[1] != 3 or not hr.is_floating_point():
        raise Refusal(f"expected hr as float [B, 3, H, W], got {hr.dtype} {tuple(hr.shape)}")
    if not isinstance(scale, int) or scale < 1:
        raise Refusal(f"a scale is a whole number of at least 1, got {scale!r}")
    if hr.shape[2] % scale or hr.shape[3] % scale or not hr.numel():
        raise Refusal(f"expected sides of hr that are multiples of the scale {scale}, got {tuple(hr.shape)}")
    low, high = float(hr.min()), float(hr.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise Refusal(f"expected hr in [0, 1], got values from {low:.4g} to {high:.4g}")


# The steps, each skipped where its record is None


def _blur(image: Tensor, blur: Record | None) -> Tensor:
    return image if blur is None else convolve(image, kernels.build(blur))


def _resize(image: Tensor, step: Record | None, height: float, width: float) -> Tensor:
    if step is None:
        return image
    # The small term keeps 129 * (1 / 3) from falling to 42.
    tall, wide = (int(side * step["factor"] + 1e-6) for side in (height, width))
    return resize(image, tall, wide, step["mode"])


def _noise(image: Tensor, step: Record | None, rng: np.random.Generator) -> Tensor:
    if step is None:
        return image
    add = gaussian_noise if step["kind"] == "gaussian" else poisson_noise
    return add(image, rng, step["strength"], step["grey"])


def _jpeg(image: Tensor, step: Record | None) -> Tensor:
    return image if step is None else jpeg(image, step["quality"])


# What the presets draw


def _second_order(preset: SecondOrder) -> Callable[[np.random.Generator, int], Record]:
    def draw_all(rng: np.random.Generator, scale: int) -> Record:
        return {
            **_draw_stage(rng, preset, preset.first, 1),
            **_draw_stage(rng, preset, preset.second, 2),
            "final": {
                "order": str(rng.choice(["jpeg_first", "jpeg_last"])),
                "mode": str(rng.choice(_RESIZES)),
                "sinc": kernels.draw_sinc(rng) if rng.random() < preset.final_sinc else None,
            },
        }

    return draw_all


def _draw_stage(rng: np.random.Generator, preset: SecondOrder, stage: Stage, order: int) -> Record:
    blur = kernels.draw_blur(rng, stage.sigma, preset.beta_gaussian, preset.beta_plateau)
    blurred = rng.random() < stage.blur
    low, high = stage.factor
    way = rng.choice(3, p=stage.resize)
    factor = (float(rng.uniform(1, high)), float(rng.uniform(low, 1)), 1.0)[way]
    gaussian = rng.random() < preset.gaussian_noise
    strength = float(rng.uniform(*(stage.gaussian if gaussian else stage.poisson)))
    grey = bool(rng.random() < preset.grey_noise)
    return {
        f"blur{order}": blur if blurred else None,
        f"resize{order}": {"factor": factor, "mode": str(rng.choice(_RESIZES))},
        f"noise{order}": {"kind": "gaussian" if gaussian else "poisson", "strength": strength, "grey": grey},
        f"jpeg{order}": {"quality": int(rng.integers(stage.jpeg[0], stage.jpeg[1] + 1))},
    }


def _draw_bicubic(rng: np.random.Generator, scale: int) -> Record:
    return {"resize1": {"factor": 1 / scale, "mode": "bicubic_antialias"}}


def _draw_mild(rng: np.random.Generator, scale: int) -> Record:
    """Weak blur, area or antialiased bicubic downsampling, weak noise, good JPEG.

    Blur sigma U(.3, .9) HR pixels, noise sigma U(1, 5) / 255, quality 80-95: bicubic upsampling of it comes 1-2 dB
    below bicubic upsampling of a clean LR (tests/envs/test_photographs.py prints and bounds it).
    """
    return {
        "blur1": kernels.round_gaussian(float(rng.uniform(0.3, 0.9))),
        "resize1": {"factor": 1 / scale, "mode": str(rng.choice(["area", "bicubic_antialias"]))},
        "noise1": _gaussian_noise(float(rng.uniform(1, 5))),
        "jpeg1": {"quality": int(rng.integers(80, 96))},
    }


def _draw_mixture(rng: np.random.Generator, scale: int) -> Record:
    """Four losses, each there or not: one sample in 62 has none but the scale, half have three or more.

    - Blur (probability .6): sigma U(.1, 2) HR pixels.
    - Resolution (.75): lost beyond the scale by a factor of min(U(1, 5), 4) / scale, at most 1.5 where the scale is 4;
      LR is enlarged again, for its size is that of the scale. At scale 1 this is denoising to x4 super-resolution.
    - Noise (.6): Gaussian of sigma 30 u^2 / 255, or in a third Poisson of strength 3 u^2, u uniform, so that weak noise
      is as common as it is in photographs.
    - JPEG (.6): quality 30-100.

    Where resolution is lost, noise and JPEG come before LR is enlarged in two of three, as those of a camera's small
    image that is shown large: grain and blocks are then soft, and as wide as the loss.
    """
    blur, noise, quality = float(rng.uniform(0.1, 2.0)), float(rng.random()) ** 2, int(rng.integers(30, 101))
    limit = max(4 / scale, 1.5)
    loss = min(float(rng.uniform(1, 1.25 * limit)), limit)
    blurred, lost, noisy, saved = (rng.random(4) < (0.6, 0.75, 0.6, 0.6)).tolist()
    shrink = str(rng.choice(["area", "bicubic_antialias"]))
    enlarge = str(rng.choice(["bilinear", "bicubic"]))
    counted, small = (rng.random(2) < (1 / 3, 2 / 3)).tolist()
    grain = {"kind": "poisson", "strength": 3 * noise, "grey": False} if counted else _gaussian_noise(30 * noise)
    order = 1 if small and lost else 2
    return {
        "blur1": kernels.round_gaussian(blur) if blurred else None,
        "resize1": {"factor": 1 / (scale * loss) if lost else 1 / scale, "mode": shrink},
        "resize2": {"factor": 1.0, "mode": enlarge} if lost else None,
        f"noise{order}": grain if noisy else None,
        f"jpeg{order}": {"quality": quality} if saved else None,
    }


def _gaussian_noise(sigma: float) -> Record:
    return {"kind": "gaussian", "strength": sigma, "grey": False}


PRESETS: dict[str, Callable[[np.random.Generator, int], Record]] = {
    "realesrgan": _second_order(_REALESRGAN),
    "stablesr": _second_order(_STABLESR),
    "bicubic": _draw_bicubic,
    "mild": _draw_mild,
    "mixture": _draw_mixture,
}
