"""The single steps of a degradation."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from srgym.envs import kernels, operations


def picture(height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


@pytest.mark.parametrize("size", [3, 7, 21])
@pytest.mark.parametrize("shape", [(40, 56), (5, 9), (1, 30)])
def test_convolve_is_correlation_with_a_mirrored_border(size, shape):
    # An asymmetric kernel tells correlation from convolution; scipy's "mirror" is torch's "reflect".
    kernel = np.random.default_rng(0).random((size, size))
    kernel /= kernel.sum()
    image = picture(*shape)
    expected = [ndimage.correlate(channel.double().numpy(), kernel, mode="mirror") for channel in image]
    np.testing.assert_allclose(operations.convolve(image, kernel).numpy(), np.stack(expected), atol=2e-6)


def test_a_blur_keeps_a_flat_image_flat():
    flat = torch.full((3, 20, 20), 0.3)
    torch.testing.assert_close(operations.convolve(flat, kernels.gaussian(21, (2.0, 1.0), 0.4)), flat)


def test_only_the_antialiased_mode_filters_before_it_samples():
    stripes = torch.zeros(3, 32, 32)
    stripes[:, :, ::2] = 1  # the finest detail there is; a filtered quarter of it is grey
    assert operations.resize(stripes, 8, 8, "bicubic_antialias")[:, 2:-2, 2:-2].std() < 0.02
    assert operations.resize(stripes, 8, 8, "area").std() < 1e-6
    wide = torch.arange(32.0).expand(3, 32, 32) / 32
    for mode in operations.MODES:  # phase: a ramp stays where it is
        small = operations.resize(wide, 8, 8, mode)
        torch.testing.assert_close(
            small[:, :, 2:-2], operations.resize(wide, 8, 8, "area")[:, :, 2:-2], atol=1e-3, rtol=0
        )


def test_resize_names_its_modes_and_never_vanishes():
    assert operations.resize(picture(), 0, 0, "area").shape == (3, 1, 1)
    with pytest.raises(ValueError, match=r"one of area, bilinear, bicubic, bicubic_antialias, got 'lanczos'"):
        operations.resize(picture(), 8, 8, "lanczos")


@pytest.mark.parametrize("grey", [True, False])
def test_gaussian_noise_has_its_strength_in_grey_levels(grey):
    flat = torch.full((3, 128, 128), 0.5)
    noise = operations.gaussian_noise(flat, np.random.default_rng(0), 10, grey) - flat
    assert noise.std().item() * 255 == pytest.approx(10, rel=0.03)
    assert torch.equal(noise[0], noise[1]) == grey


@pytest.mark.parametrize("grey", [True, False])
def test_poisson_noise_has_the_variance_of_counting(grey):
    # Levels 64 and 128 and a second value: two values need 2 levels, so the count of value v is Poisson(2 v).
    image = torch.full((3, 200, 200), 128 / 255)
    image[:, :, 100:] = 64 / 255
    noise = operations.poisson_noise(image, np.random.default_rng(0), 0.1, grey) - image
    for part, value in ((noise[:, :, :100], 128 / 255), (noise[:, :, 100:], 64 / 255)):
        # 0.1 * (Poisson(2 v) / 2 - v) has the deviation 0.1 sqrt(v / 2); clamping cuts next to nothing at 0.1.
        assert part.std().item() == pytest.approx(0.1 * (value / 2) ** 0.5, rel=0.03)
        assert abs(part.mean().item()) < 4 * 0.1 * (value / 2) ** 0.5 / 100
    assert torch.equal(noise[0], noise[2]) == grey


def test_jpeg_is_pillows_at_half_chroma_resolution(tmp_path):
    image = picture(64, 64)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=60, subsampling=2)
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_array_equal((operations.jpeg(image, 60) * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_jpeg_loses_more_at_lower_quality():
    image = (picture(64, 64) + 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    lost = [(operations.jpeg(image, quality) - image).square().mean().item() for quality in (95, 70, 30)]
    assert lost == sorted(lost)


def test_quantised_images_are_on_256_levels():
    levels = operations.quantise(torch.linspace(-0.2, 1.2, 999)) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert levels.min() == 0 and levels.max() == 255


@pytest.mark.parametrize("side", [1, 2, 33, 129, 700])
def test_bilinear_is_torchs_to_rounding(side):
    image = torch.rand(3, side, side + 1, generator=torch.Generator().manual_seed(0))
    for height, width in ((1, 1), (side, 2 * side + 3), (3 * side // 4 + 1, side + 7), (2 * side, side // 3 + 1)):
        theirs = F.interpolate(image[None], size=(height, width), mode="bilinear")[0]
        torch.testing.assert_close(
            operations.resize(image, height, width, "bilinear"), theirs, rtol=0, atol=1e-4
        )  # torch places in float32
