"""Blur kernels of the second-order degradation in closed form, and how they are drawn.

Formulas: Real-ESRGAN (arXiv 2107.10833), sec. 3.2; the generalised Gaussian and plateau shapes are those of Liu et al.
(arXiv 2005.03189). A kernel is float64 [size, size], odd size, sums to 1.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import j1

from srgym.errors import Refusal

__all__ = ["SHAPES", "SIZES", "build", "draw_blur", "draw_sinc", "gaussian", "plateau", "round_gaussian", "sinc"]

Array = npt.NDArray[np.float64]

SIZES = tuple(range(7, 22, 2))
SHAPES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
SHAPE_PROBABILITIES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SINC_PROBABILITY = 0.1


def _grid(size: int) -> tuple[Array, Array]:
    """x and y of every cell, the centre at 0."""
    if size < 1 or size % 2 == 0:
        raise Refusal(f"a kernel's size is odd and at least 1, got {size}")
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _distance(size: int, sigma: tuple[float, float], rotation: float) -> Array:
    """Squared Mahalanobis distance from the centre; sigma along the axes turned by `rotation` (radians)."""
    if min(sigma) <= 0:
        raise Refusal(f"a kernel's sigma is above 0, got {sigma}")
    x, y = _grid(size)
    along = (x * math.cos(rotation) + y * math.sin(rotation)) / sigma[0]
    across = (y * math.cos(rotation) - x * math.sin(rotation)) / sigma[1]
    distance: Array = along**2 + across**2
    return distance


def _normalised(kernel: Array) -> Array:
    normalised: Array = kernel / kernel.sum()
    return normalised


def gaussian(size: int, sigma: tuple[float, float], rotation: float = 0.0, beta: float = 1.0) -> Array:
    """exp(-d^beta / 2) with d the squared Mahalanobis distance; beta = 1 is the Gaussian, else the generalised one."""
    kernel = np.exp(-0.5 * _distance(size, sigma, rotation) ** beta)
    return _normalised(kernel)


def plateau(size: int, sigma: tuple[float, float], rotation: float = 0.0, beta: float = 1.0) -> Array:
    """1 / (1 + d^beta): flat at the top, steeper with beta."""
    kernel = 1 / (1 + _distance(size, sigma, rotation) ** beta)
    return _normalised(kernel)


def sinc(size: int, cutoff: float) -> Array:
    """The circular low-pass filter c J1(c r) / (2 pi r), cut off at c radians a pixel; it rings."""
    if not 0 < cutoff <= math.pi:
        raise Refusal(f"a sinc kernel's cut-off is in (0, pi], got {cutoff}")
    x, y = _grid(size)
    radius = np.hypot(x, y)
    centre = radius == 0
    radius[centre] = 1
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[centre] = cutoff**2 / (4 * math.pi)  # the limit at r = 0
    return _normalised(kernel)


def build(blur: dict[str, Any]) -> Array:
    """The kernel of a drawn blur, as `draw_blur` and `draw_sinc` record it."""
    if blur["kernel"] == "sinc":
        return sinc(blur["size"], blur["cutoff"])
    shape = plateau if blur["kernel"].startswith("plateau") else gaussian
    return shape(blur["size"], (blur["sigma_x"], blur["sigma_y"]), blur["rotation"], blur["beta"])


def draw_blur(
    rng: np.random.Generator,
    sigma: tuple[float, float],
    beta_gaussian: tuple[float, float],
    beta_plateau: tuple[float, float],
) -> dict[str, Any]:
    """One blur of a second-order stage: a sinc filter with probability 0.1, else one of the six shapes.

    Args:
        sigma, beta_gaussian, beta_plateau: ranges. Half the betas are drawn below 1 and half above.

    Returns:
        JSON-able: `kernel`, `size`, `sigma` (one number for the strength: the geometric mean of `sigma_x` and
        `sigma_y`), `rotation` in radians and `beta`; for a sinc, `sigma` is None and `cutoff` is given.
    """
    size = int(rng.choice(SIZES))
    if rng.random() < SINC_PROBABILITY:
        # Small windows can't hold the long waves of a low cut-off.
        return _sinc(size, float(rng.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi)))
    kernel = str(rng.choice(SHAPES, p=SHAPE_PROBABILITIES))
    sigma_x = float(rng.uniform(*sigma))
    aniso = kernel.endswith("aniso")
    sigma_y = float(rng.uniform(*sigma)) if aniso else sigma_x
    rotation = float(rng.uniform(-math.pi, math.pi)) if aniso else 0.0
    beta = 1.0
    if not kernel.startswith(("iso", "aniso")):
        low, high = beta_plateau if kernel.startswith("plateau") else beta_gaussian
        beta = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))
    return _shape(kernel, size, sigma_x, sigma_y, rotation, beta)


def draw_sinc(rng: np.random.Generator) -> dict[str, Any]:
    """The final sinc filter: any size, cut-off U(pi/3, pi)."""
    return _sinc(int(rng.choice(SIZES)), float(rng.uniform(math.pi / 3, math.pi)))


def _sinc(size: int, cutoff: float) -> dict[str, Any]:
    return {"kernel": "sinc", "size": size, "sigma": None, "cutoff": cutoff}


def round_gaussian(sigma: float) -> dict[str, Any]:
    """A round Gaussian blur, as `draw_blur` would record it; its window holds three sigmas either side."""
    return _shape("iso", 2 * math.ceil(3 * sigma) + 1, sigma, sigma, 0.0, 1.0)


def _shape(kernel: str, size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "size": size,
        "sigma": math.sqrt(sigma_x * sigma_y),
        "sigma_x": sigma_x,
        "sigma_y": sigma_y,
        "rotation": rotation,
        "beta": beta,
    }
