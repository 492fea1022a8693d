"""Tiles: they cover an image, and a policy that looks only nearby gives the same picture with and without them."""

from itertools import pairwise

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from srgym.policies.colour import fix_colour
from srgym.policies.compact import CompactPolicy
from srgym.policies.flow import FlowPolicy
from srgym.policies.tiling import tile_spans, upscale, upscale_bands


@pytest.mark.parametrize("length", [1, 8, 63, 64, 65, 100, 129, 500])
@pytest.mark.parametrize("tile, overlap", [(64, 16), (48, 16), (64, 0)])
def test_spans_cover_and_overlap(length: int, tile: int, overlap: int) -> None:
    spans = tile_spans(length, tile, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    for (_, end), (start, _) in pairwise(spans):
        assert end - start == overlap
        assert start % 16 == 0
    assert all(0 < end - start <= tile for start, end in spans)


@pytest.mark.parametrize("tile, overlap", [(32, 16), (60, 16), (64, 12)])
def test_spans_refuse(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        tile_spans(100, tile, overlap)


class Pointwise(FlowPolicy):
    """v = x / 2 + t - lr at scale 1: every pixel on its own."""

    name = "pointwise"
    scale = 1
    lora_targets = ()

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    @property
    def core(self):
        return self

    def encode(self, obs):
        return TensorDict({"lr": obs["lr"]}, batch_size=[len(obs["lr"])])

    def velocity(self, x, t, cond):
        return self.gain * x + t.reshape(-1, 1, 1, 1) - cond["lr"]

    def decode(self, x0, cond):
        return x0.sigmoid()

    def to_latent(self, image, cond):
        return image.logit()

    def latent_shape(self, cond):
        return tuple(cond["lr"].shape[1:])

    def sigmas(self, steps, cond):
        return torch.linspace(1, 0, steps + 1)


def _photo(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_one_tile_is_the_policy_itself(tiny_policy: CompactPolicy) -> None:
    lr = _photo(20, 27)
    torch.testing.assert_close(upscale(tiny_policy, lr, steps=3, seed=4), tiny_policy.predict(lr[None], 3, 4)[0])


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("side", [1, 3, 7, 15, 16, 17])
def test_thin_strips_are_cut_like_any_image(tiny_policy: CompactPolicy, side: int, mean: bool) -> None:
    for height, width in ((side, 53), (53, side)):
        sr = upscale(tiny_policy, _photo(height, width), steps=1, tile=48, overlap=16, mean=mean)
        assert sr.shape == (3, 4 * height, 4 * width) and sr.isfinite().all()


def test_a_pointwise_policy_is_the_same_in_tiles() -> None:
    policy, lr = Pointwise(), _photo(45, 83)
    tiled = upscale(policy, lr, steps=3, tile=48, overlap=16)
    # weights add up to 1 within rounding
    torch.testing.assert_close(tiled, upscale(policy, lr, steps=3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mean", [False, True])
def test_lines_come_a_row_of_tiles_at_a_time(tiny_policy: CompactPolicy, mean: bool) -> None:
    """No more is held than one row of tiles, and what is put together is what comes whole."""
    lr = _photo(100, 40)
    how = {"steps": 1, "tile": 48, "overlap": 16, "mean": mean}
    bands = list(upscale_bands(tiny_policy, lr, **how))
    assert [band.shape for band in bands] == [(3, 4 * lines, 160) for lines in (32, 32, 36)]
    assert torch.equal(torch.cat(bands, 1), upscale(tiny_policy, lr, **how))


def test_a_local_policy_agrees_away_from_seams(tiny_policy: CompactPolicy) -> None:
    lr = _photo(37, 150)
    whole = upscale(tiny_policy, lr, steps=1)
    tiled = upscale(tiny_policy, lr, steps=1, tile=96, overlap=32)  # the seam lies at LR columns 64 to 96
    same = (whole - tiled).abs().amax((0, 1)) < 1e-5
    # The tiny network sees less than 24 LR pixels around.
    assert same[: 4 * 40].all()
    assert same[4 * 120 :].all()
    assert not same.all()
    assert float((whole - tiled).abs().max()) < 0.2  # and at the seam the two are blended, not torn


def test_adain_takes_the_reference_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.4 + 0.1 * torch.rand(2, 3, 16, 16, generator=generator)
    reference = 0.3 + 0.2 * torch.rand(2, 3, 16, 16, generator=generator)
    fixed = fix_colour(image, reference, "adain")
    torch.testing.assert_close(fixed.mean((2, 3)), reference.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((2, 3)), reference.std((2, 3)), rtol=0, atol=1e-5)


def test_wavelet_moves_colour_and_keeps_detail() -> None:
    detail = 0.02 * (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    fixed = fix_colour(0.5 + detail, torch.full((1, 3, 64, 64), 0.3) + detail, "wavelet")
    torch.testing.assert_close(fixed, 0.3 + detail, rtol=0, atol=1e-5)


def test_no_fix_and_refusals() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert fix_colour(image, image * 0, "none") is image
    with pytest.raises(ValueError, match="colour is one of none, adain, wavelet, got 'lab'"):
        fix_colour(image, image, "lab")
    with pytest.raises(ValueError, match="one shape"):
        fix_colour(image, image[..., :4], "adain")


def test_flat_images_stay_finite() -> None:
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert torch.isfinite(fix_colour(flat, torch.rand(1, 3, 8, 8), "adain")).all()


def test_progress_reaches_one(tiny_policy: CompactPolicy) -> None:
    seen: list[float] = []
    upscale(tiny_policy, _photo(16, 100), steps=1, tile=64, overlap=16, progress=seen.append)
    assert seen == [0.5, 1.0]
