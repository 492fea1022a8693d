"""The single steps that degradations are made of, on one image: float32 [3, H, W], CPU, not differentiable.

Each gives the same bits with any number of threads.
"""

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import Refusal

__all__ = ["MODES", "convolve", "gaussian_noise", "jpeg", "poisson_noise", "quantise", "resize"]

MODES = ("area", "bilinear", "bicubic", "bicubic_antialias")
_GREY = torch.tensor([0.2989, 0.587, 0.114])


def convolve(image: Tensor, kernel: npt.NDArray[np.float64]) -> Tensor:
    """Correlation with a kernel [k, k], k odd, reflected at the border; through the Fourier domain.

    Padding the kernel with zeros to 21, as batched implementations do, changes nothing here. Unlike torch's padding,
    an image may be smaller than the kernel: it is then reflected more than once.
    """
    half = kernel.shape[0] // 2
    height, width = image.shape[-2:]
    if half < min(height, width):
        padded = F.pad(image[None], (half,) * 4, mode="reflect")[0]
    else:
        padded = image[:, _reflected(height, half)][:, :, _reflected(width, half)]
    flipped = torch.from_numpy(np.ascontiguousarray(kernel[::-1, ::-1])).float()
    # Lengths without large prime factors are transformed two to three times faster.
    size = [next_fast_len(side, real=True) for side in padded.shape[-2:]]
    # NumPy's product: torch's rounds as its work is cut among threads.
    product = torch.fft.rfft2(padded, s=size).numpy() * torch.fft.rfft2(flipped, s=size).numpy()
    # A circular convolution is right from cell k - 1 on, and what lies there is exactly the image.
    filtered: Tensor = torch.fft.irfft2(torch.from_numpy(product), s=size)
    return filtered[:, 2 * half : 2 * half + height, 2 * half : 2 * half + width].contiguous()


def _reflected(length: int, margin: int) -> Tensor:
    """Where each of length + 2 margin cells is read from."""
    if length == 1:
        return torch.zeros(1 + 2 * margin, dtype=torch.int64)
    place = torch.arange(-margin, length + margin) % (2 * (length - 1))
    return torch.where(place < length, place, 2 * (length - 1) - place)


def resize(image: Tensor, height: int, width: int, mode: str) -> Tensor:
    """To a size in pixels, at least 1 x 1; modes of `MODES`, of which only "bicubic_antialias" filters before it."""
    if mode not in MODES:
        raise Refusal(f"a resize mode is one of {', '.join(MODES)}, got '{mode}'")
    size = (max(1, height), max(1, width))
    if size == tuple(image.shape[-2:]):
        return image
    if mode == "area":
        return F.interpolate(image[None], size=size, mode="area")[0]
    if mode == "bilinear":
        return _between(_between(image, 1, size[0]), 2, size[1])
    antialias = mode == "bicubic_antialias"
    return F.interpolate(image[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[0]


def _between(image: Tensor, axis: int, size: int) -> Tensor:
    """Linear interpolation along an axis, by sums and products alone.

    The bilinear mode of torch rounds as its work is cut among threads.
    """
    length = image.shape[axis]
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5).clamp(0, length - 1)
    low = place.long()
    share = (place - low).float().view([-1 if i == axis else 1 for i in range(3)])
    first, second = (image.index_select(axis, cell) for cell in (low, (low + 1).clamp(max=length - 1)))
    return first + (second - first) * share


def gaussian_noise(image: Tensor, rng: np.random.Generator, sigma: float, grey: bool) -> Tensor:
    """Add normal noise of standard deviation sigma / 255, one value a pixel where `grey`; clamped to [0, 1]."""
    shape = (1 if grey else 3, *image.shape[-2:])
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return (image + noise * (sigma / 255)).clamp(0, 1)


def poisson_noise(image: Tensor, rng: np.random.Generator, strength: float, grey: bool) -> Tensor:
    """Add `strength` times the shot noise of a sensor with as many levels as the image has; clamped to [0, 1].

    The levels are the image's count of 8-bit values, rounded up to a power of two; grey noise comes of the luma.
    """
    clean = quantise((image * _GREY[:, None, None]).sum(0, keepdim=True) if grey else image)
    values = np.count_nonzero(np.bincount((clean * 255).round().to(torch.uint8).flatten().numpy()))
    levels = 2.0 ** np.ceil(np.log2(values))
    shot = torch.from_numpy(rng.poisson(clean.double().numpy() * levels) / levels).float()
    return (image + (shot - clean) * strength).clamp(0, 1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Through Pillow's JPEG at 4:2:0, quality 1-100."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    decoded = np.asarray(Image.open(buffer))
    return torch.from_numpy(decoded.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def quantise(image: Tensor) -> Tensor:
    """To the nearest of 256 levels in [0, 1]."""
    return (image.clamp(0, 1) * 255).round() / 255
