"""PSNR, SSIM and MS-SSIM on luma, against closed forms and other libraries."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from srgym import rewards
from srgym.rewards.fidelity import luma
from srgym.rewards.specimens import photographs, worse


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    hr = photographs(192)
    return worse(worse(hr, "blur", 1.0), "noise", 0.03), hr


def luma64(image: Tensor) -> np.ndarray:
    red, green, blue = image.double().numpy().transpose(1, 0, 2, 3)
    return (65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255


def test_psnr_of_an_offset_has_a_closed_form() -> None:
    hr = torch.rand(2, 3, 24, 24) * 0.5
    offset = torch.tensor([0.1, 0.25])
    # The weights of Y sum to 219 of 255.
    expected = -20 * torch.log10(offset * 219 / 255)
    scored = rewards.make("psnr_y")(hr + offset[:, None, None, None], hr=hr).total
    assert torch.allclose(scored, expected, atol=1e-5)


def test_psnr_is_the_definition_in_double_precision(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    expected = -10 * np.log10(((luma64(sr) - luma64(hr)) ** 2).mean((1, 2)))
    assert np.abs(rewards.make("psnr_y")(sr, hr=hr).total.numpy() - expected).max() < 1e-5


def test_copy_has_the_best_score_and_not_infinity(pair: tuple[Tensor, Tensor]) -> None:
    for name, best in (("psnr_y", 100.0), ("ssim_y", 1.0), ("ms_ssim", 1.0)):
        output = rewards.make(name)(pair[1], hr=pair[1])
        assert output.valid.all()
        assert torch.allclose(output.total, torch.full((4,), best), atol=1e-6)


def test_ssim_is_skimages(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural_similarity(a, b, **settings) for a, b in zip(luma64(sr), luma64(hr))]
    assert np.abs(rewards.make("ssim_y")(sr, hr=hr).total.numpy() - expected).max() < 1e-5


def reference_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2003, eq. 7, in double precision with scipy's Gaussian."""

    def smooth(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), 1):
        mx, my = smooth(x), smooth(y)
        variance, covariance = smooth(x * x) - mx**2 + smooth(y * y) - my**2, smooth(x * y) - mx * my
        terms = (2 * covariance + 0.03**2) / (variance + 0.03**2)
        if scale == 5:
            terms *= (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        product *= terms.mean() ** weight
        x, y = (z.reshape(len(z) // 2, 2, z.shape[1] // 2, 2).mean((1, 3)) for z in (x, y))
    return product


def test_ms_ssim_is_its_definition(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    scored = rewards.make("ms_ssim")(sr, hr=hr).total
    expected = [reference_ms_ssim(a, b) for a, b in zip(luma64(sr), luma64(hr))]
    assert np.abs(scored.numpy() - expected).max() < 1e-5
    # torchmetrics lets the coarsest scale's windows hang over the border, which moves the fourth decimal.
    theirs = multiscale_structural_similarity_index_measure(
        luma(sr), luma(hr), reduction="none", data_range=1.0, kernel_size=11, sigma=1.5
    )
    assert torch.allclose(scored, theirs, atol=5e-4)


def test_ms_ssim_of_fewer_scales_renormalises(pair: tuple[Tensor, Tensor]) -> None:
    sr, hr = pair
    one = rewards.make("ms_ssim", scales=1)(sr, hr=hr).total
    assert torch.allclose(one, rewards.make("ssim_y")(sr, hr=hr).total, atol=1e-6)


def test_ms_ssim_of_anticorrelated_pictures_is_zero_with_a_finite_gradient(pair: tuple[Tensor, Tensor]) -> None:
    hr = pair[1]
    sr = (1 - hr).requires_grad_()
    output = rewards.make("ms_ssim")(sr, hr=hr)
    assert output.valid.all() and (output.total < 0.5).all()
    output.total.sum().backward()
    assert sr.grad is not None and torch.isfinite(sr.grad).all()


@pytest.mark.parametrize(
    ("spec", "side", "message"),
    [
        ("ssim_y", 10, r"ssim_y: expected images of at least 11 .* got \(10, 10\)"),
        ("ms_ssim", 128, "5 scales need images of at least 176 .* fewer scales"),
        ({"name": "ms_ssim", "scales": 6}, 192, "between 1 and 5 scales, got 6"),
    ],
)
def test_too_small(spec: object, side: int, message: str) -> None:
    image = torch.rand(1, 3, side, side)
    with pytest.raises(ValueError, match=message):
        rewards.make(spec)(image, hr=image)  # type: ignore[arg-type]
