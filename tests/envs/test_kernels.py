"""Blur kernels against formulas written out here, cell by cell."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from srgym.envs import kernels

sizes = st.sampled_from(kernels.SIZES)
sigmas = st.floats(0.2, 3.0)
angles = st.floats(-math.pi, math.pi)
betas = st.floats(0.5, 4.0)


def written_out(size, sigma_x, sigma_y, angle, profile):
    """profile(x^T S^-1 x) on a grid, S = R diag(sigma^2) R^T, by loops."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    half = size // 2
    rows = [
        [profile(float(np.array([x, y]) @ inverse @ np.array([x, y]))) for x in range(-half, half + 1)]
        for y in range(-half, half + 1)
    ]
    return np.array(rows) / np.sum(rows)


@given(sizes, sigmas, sigmas, angles, betas)
@settings(max_examples=25, deadline=None)
def test_shapes_are_the_closed_forms(size, sigma_x, sigma_y, angle, beta):
    sigma = (sigma_x, sigma_y)
    for kernel, profile in (
        (kernels.gaussian(size, sigma, angle), lambda d: math.exp(-d / 2)),
        (kernels.gaussian(size, sigma, angle, beta), lambda d: math.exp(-(max(d, 0) ** beta) / 2)),
        (kernels.plateau(size, sigma, angle, beta), lambda d: 1 / (max(d, 0) ** beta + 1)),
    ):
        # Inverting the covariance costs some digits when one sigma is fifteen times the other.
        np.testing.assert_allclose(kernel, written_out(size, sigma_x, sigma_y, angle, profile), atol=1e-12)


@given(sizes, st.floats(math.pi / 5, math.pi))
@settings(max_examples=20, deadline=None)
def test_the_sinc_is_the_inverse_transform_of_a_disc(size, cutoff):
    # (1 / 2 pi) * integral of r J0(r |x|) over the disc, with J0 as its own integral over angles.
    def at(radius):
        return quad(lambda u: u * np.mean(np.cos(u * radius * np.sin(np.arange(64) * math.pi / 64))), 0, cutoff)[0]

    half = size // 2
    centre = kernels.sinc(size, cutoff)[half, half]
    for x, y in ((1, 0), (2, 1), (half, half)):
        expected = at(math.hypot(x, y)) / (cutoff**2 / 2)
        assert kernels.sinc(size, cutoff)[half + y, half + x] / centre == pytest.approx(expected, abs=1e-9)


@given(sizes, sigmas, sigmas, angles, betas, st.floats(math.pi / 5, math.pi))
@settings(max_examples=40, deadline=None)
def test_kernels_sum_to_one_and_are_symmetric_about_their_centre(size, sigma_x, sigma_y, angle, beta, cutoff):
    sigma = (sigma_x, sigma_y)
    made = [kernels.gaussian(size, sigma, angle, beta), kernels.plateau(size, sigma, angle, beta)]
    for kernel in (*made, kernels.sinc(size, cutoff)):
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-14)
    for round_one in (kernels.gaussian(size, (sigma_x, sigma_x), 0.0, beta), kernels.sinc(size, cutoff)):
        np.testing.assert_allclose(round_one, round_one.T, atol=1e-14)
        np.testing.assert_allclose(round_one, round_one[::-1], atol=1e-14)
    assert min(kernel.min() for kernel in made) >= 0


def test_a_wide_gaussian_has_the_variance_of_its_sigma():
    kernel = kernels.gaussian(61, (3.0, 2.0))
    place = np.arange(61) - 30
    assert (kernel.sum(0) * place**2).sum() == pytest.approx(9.0, rel=1e-6)
    assert (kernel.sum(1) * place**2).sum() == pytest.approx(4.0, rel=1e-6)


def test_drawn_blurs_have_the_published_frequencies_and_ranges():
    rng = np.random.default_rng(0)
    drawn = [kernels.draw_blur(rng, (0.2, 3.0), (0.5, 4.0), (1.0, 2.0)) for _ in range(6000)]
    share = {kind: sum(d["kernel"] == kind for d in drawn) / len(drawn) for kind in (*kernels.SHAPES, "sinc")}
    expected = dict(zip(kernels.SHAPES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)))
    for kind, probability in {**{k: 0.9 * p for k, p in expected.items()}, "sinc": 0.1}.items():
        # Four standard errors of a binomial share.
        assert abs(share[kind] - probability) < 4 * math.sqrt(probability * (1 - probability) / len(drawn)), kind
    assert {d["size"] for d in drawn} == {7, 9, 11, 13, 15, 17, 19, 21}
    for blur in drawn:
        if blur["kernel"] == "sinc":
            assert (math.pi / 3 if blur["size"] < 13 else math.pi / 5) <= blur["cutoff"] <= math.pi
            continue
        assert (
            0.2 <= min(blur["sigma_x"], blur["sigma_y"]) <= blur["sigma"] <= max(blur["sigma_x"], blur["sigma_y"]) <= 3
        )
        assert ("aniso" in blur["kernel"]) or (blur["sigma_x"] == blur["sigma_y"] and blur["rotation"] == 0)
        low, high = {"g": (0.5, 4.0), "p": (1.0, 2.0)}.get(blur["kernel"][0], (1.0, 1.0))
        assert low <= blur["beta"] <= high
    generalized = [d["beta"] for d in drawn if d["kernel"].startswith("generalized")]
    below = np.mean([beta < 1 for beta in generalized])
    assert abs(below - 0.5) < 4 * 0.5 / math.sqrt(len(generalized))


def test_a_drawn_blur_is_plain_json_and_builds_the_same_kernel():
    rng = np.random.default_rng(1)
    for _ in range(50):
        blur = kernels.draw_blur(rng, (0.2, 3.0), (0.5, 4.0), (1.0, 2.0))
        kernel = kernels.build(json.loads(json.dumps(blur)))
        np.testing.assert_array_equal(kernel, kernels.build(blur))
        assert kernel.shape == (blur["size"], blur["size"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.gaussian(8, (1.0, 1.0)), "size is odd .* got 8"),
        (lambda: kernels.gaussian(7, (0.0, 1.0)), "sigma is above 0, got"),
        (lambda: kernels.sinc(7, 4.0), r"cut-off is in \(0, pi\], got 4.0"),
    ],
)
def test_what_is_no_kernel_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
