"""Faults that anybody would see, put into an image everywhere or in a part of it, at strengths in (0, 1].

At strength 1 a fault is gross, at one half it is plain; the numbers are those of the functions below.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.rewards.specimens import worse

__all__ = ["FAULTS", "SEEN_BESIDE_A_REFERENCE", "faults_of", "spoilt", "spoilt_somehow"]


def _blur(x: Tensor, s: float, seed: int) -> Tensor:
    """A Gaussian of 2 pixels."""
    return worse(x, "blur", 2 * s)


def _noise(x: Tensor, s: float, seed: int) -> Tensor:
    """White noise of 15 grey levels."""
    return worse(x, "noise", 0.06 * s, seed)


def _jpeg(x: Tensor, s: float, seed: int) -> Tensor:
    """JPEG of quality 10; of 30 at one half."""
    return worse(x, "jpeg", round(50 - 40 * s))


def _blocks(x: Tensor, s: float, seed: int) -> Tensor:
    """Squares of 4 pixels; of 2 at one half."""
    return worse(x, "pixels", round(4 * s))


def _ringing(x: Tensor, s: float, seed: int) -> Tensor:
    """All frequencies above a third of the highest cut off at once, so that edges have echoes; above two thirds."""
    height, width = x.shape[-2:]
    radius = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    spectrum = torch.fft.rfft2(x) * (radius <= 0.5 * (1 - 2 / 3 * s)).to(x.dtype)
    ringing: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return ringing


def _oversharpened(x: Tensor, s: float, seed: int) -> Tensor:
    """Three times what a box of 3 x 3 takes away, added."""
    return x + 3 * s * (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1))


def _tint(x: Tensor, s: float, seed: int) -> Tensor:
    """30 grey levels more of red, 15 fewer of green and blue."""
    return x + s * x.new_tensor([0.12, -0.06, -0.06]).view(1, 3, 1, 1)


def _shift(x: Tensor, s: float, seed: int) -> Tensor:
    """3 pixels to the right and down; 2 at one half."""
    pixels = round(3 * s)
    return F.pad(x, (pixels, 0, pixels, 0), mode="replicate")[..., : x.shape[-2], : x.shape[-1]]


def _checkerboard(x: Tensor, s: float, seed: int) -> Tensor:
    """Every other pixel 15 grey levels lighter, the rest darker."""
    rows, columns = (torch.arange(side) for side in x.shape[-2:])
    return x + 0.06 * s * (1 - 2 * ((rows[:, None] + columns) % 2).to(x.dtype))


def _grid(x: Tensor, s: float, seed: int) -> Tensor:
    """Every fourth row and column 31 grey levels darker: the seams of upsampling."""
    rows, columns = (torch.arange(side) % 4 == 0 for side in x.shape[-2:])
    return x - 0.12 * s * (rows[:, None] | columns).to(x.dtype)


def _hatching(x: Tensor, s: float, seed: int) -> Tensor:
    """Diagonal lines, 2 pixels wide, 20 grey levels lighter and darker."""
    rows, columns = (torch.arange(side) for side in x.shape[-2:])
    return x + 0.08 * s * (1 - 2 * ((rows[:, None] + columns) // 2 % 2).to(x.dtype))


def _foreign(x: Tensor, s: float, seed: int) -> Tensor:
    """The image upside down in place of itself: plausible texture that doesn't belong; at one half three quarters."""
    return x.lerp(x.flip(-1, -2), 0.5 + 0.5 * s)


FAULTS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "blur": _blur, "noise": _noise, "jpeg": _jpeg, "ringing": _ringing, "over-sharpening": _oversharpened,
    "tint": _tint, "shift": _shift, "blocks": _blocks, "checkerboard": _checkerboard, "grid": _grid,
    "hatching": _hatching, "foreign texture": _foreign,
}  # fmt: skip

# Who isn't shown what the image should be can't know that it is elsewhere, or another.
SEEN_BESIDE_A_REFERENCE = frozenset({"shift", "foreign texture"})


def spoilt(image: Tensor, kind: str, strength: float, area: float = 1.0, seed: int = 0) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with a fault of `FAULTS`.

    Args:
        strength: in (0, 1].
        area: the share of each image that is spoilt, a rectangle of its proportions; 1: all of it.
        seed: of noise, and of the places.

    Raises:
        ValueError: for an unknown fault, a strength or an area outside (0, 1].
    """
    if kind not in FAULTS or not 0 < strength <= 1 or not 0 < area <= 1:
        raise Refusal(
            f"expected a fault of {', '.join(FAULTS)}, at a strength and on an area in (0, 1], got '{kind}', "
            f"{strength}, {area}"
        )
    bad = FAULTS[kind](image, strength, seed).clamp(0, 1)
    if area == 1:
        return bad
    generator, mixed = torch.Generator().manual_seed(seed), image.clone()
    height, width = (max(1, round(side * area**0.5)) for side in image.shape[-2:])
    for ours, its in zip(mixed, bad):
        top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in (
            image.shape[-2] - height, image.shape[-1] - width))  # fmt: skip
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        ours[place] = its[place]
    return mixed


def spoilt_somehow(
    image: Tensor, kind: str, generator: torch.Generator, *, least: float = 0.2, area: tuple[float, float] = (0.1, 0.4)
) -> Tensor:
    """Images [B, 3, H, W] with a fault of a strength from `least` to 1, everywhere in half of the cases, on a share of
    the area from `area` in the others, all drawn."""
    strength, where, share = torch.rand(3, generator=generator).tolist()
    covered = 1.0 if where < 0.5 else area[0] + (area[1] - area[0]) * share
    return spoilt(image, kind, least + (1 - least) * strength, covered, seed=int(1e6 * share))


def faults_of(image: Tensor, count: int, generator: torch.Generator, *, seen_alone: bool = False) -> Tensor:
    """An image [1, 3, H, W] with faults, each of a kind, strength and place of its own, drawn: [count, 3, H, W].

    With `seen_alone` only of kinds that show without a reference.
    """
    kinds = [kind for kind in FAULTS if not (seen_alone and kind in SEEN_BESIDE_A_REFERENCE)]
    drawn = torch.randint(len(kinds), (count,), generator=generator).tolist()
    return torch.cat([spoilt_somehow(image, kinds[i], generator) for i in drawn])
