"""structure_texture: what lowers it, what it forgives, and that its gradient leads uphill."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srgym import rewards
from srgym.rewards import RewardOutput
from srgym.rewards.specimens import WORSE, photographs, worse
from srgym.rewards.structure_texture import features


@pytest.fixture(scope="module")
def hr() -> Tensor:
    return photographs(128)


def score(sr: Tensor, hr: Tensor) -> RewardOutput:
    return rewards.make("structure_texture")(sr.clamp(0, 1), hr=hr)


def bicubic(hr: Tensor) -> Tensor:
    small = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=4, mode="bicubic")


def test_copy_is_perfect(hr: Tensor) -> None:
    output = score(hr, hr)
    assert torch.allclose(output.total, torch.ones(4), atol=1e-6)
    assert sorted(output.components) == ["structure", "texture"]
    parts = output.components
    assert torch.allclose(output.total, 2 / 3 * parts["texture"] + 1 / 3 * parts["structure"])


@pytest.mark.parametrize("kind", ["blur", "noise", "jpeg"])
@pytest.mark.parametrize("part", ["texture", "structure"])
def test_every_step_of_damage_lowers_both_terms_of_every_picture(hr: Tensor, kind: str, part: str) -> None:
    steps = [score(worse(hr, kind, step), hr).components[part] for step in WORSE[kind]]
    assert all((later < earlier).all() for earlier, later in pairwise(steps))


def test_texture_tells_blur_from_sharpness(hr: Tensor) -> None:
    smooth = bicubic(hr)
    detail = hr - smooth
    terms = [score(smooth + gain * detail, hr).components["texture"] for gain in (0.0, 0.3, 0.6, 1.0)]
    assert all((sharper > softer).all() for softer, sharper in pairwise(terms))
    over = score(smooth + 2 * detail, hr).components["texture"]
    assert (over < terms[-1]).all()


def test_detail_a_little_out_of_place_beats_none(hr: Tensor) -> None:
    smooth = bicubic(hr)
    moved = smooth + (hr - smooth).roll((1, 1), (2, 3))
    assert (score(moved, hr).total > score(smooth, hr).total).all()
    # By mean squared error it is the other way round, which is why this reward exists.
    assert ((moved - hr).square().mean((1, 2, 3)) > (smooth - hr).square().mean((1, 2, 3))).all()


def test_speckle_on_a_plain_area_doesnt_pay_for_detail_missing_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    grain = 0.1 * torch.randn(1, 3, 64, 64, generator=generator)
    left = torch.zeros(64)
    left[:32] = 1
    textured_left = (0.5 + grain * left).clamp(0, 1)
    textured_right = (0.5 + grain.flip(3) * left.flip(0)).clamp(0, 1)
    swapped = score(textured_right, textured_left)
    right_kind = score(0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=generator) * left, textured_left)
    # As a whole both pictures have the truth's energy; only windows tell where it went.
    assert swapped.components["texture"].item() < right_kind.components["texture"].item() - 0.2


@pytest.mark.parametrize("pattern", ["checkerboard", "chroma"])
def test_sees_period_two_and_chroma_artefacts(hr: Tensor, pattern: str) -> None:
    if pattern == "checkerboard":
        sign = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 2.0 - 1
        artefact = sign * 6 / 255
    else:
        artefact = 16 / 255 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
        artefact = artefact - artefact.mean(1, keepdim=True)
    assert (score(hr + artefact, hr).total < score(hr, hr).total - 0.01).all()


def test_gradient_leads_uphill(hr: Tensor) -> None:
    sr = worse(hr, "blur", 1.5)
    before = score(sr, hr).total
    for _ in range(3):
        sr = sr.detach().requires_grad_()
        score(sr, hr).total.sum().backward()
        assert sr.grad is not None and torch.isfinite(sr.grad).all()
        sr = sr + 0.002 * sr.grad.sign()
    assert (score(sr.detach(), hr).total > before + 0.005).all()


def test_gradient_is_finite_on_flat_pictures() -> None:
    sr = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    rewards.make("structure_texture")(sr, hr=torch.full((1, 3, 32, 32), 0.25)).total.sum().backward()
    assert sr.grad is not None and torch.isfinite(sr.grad).all()


@pytest.mark.parametrize("side", [(16, 16), (17, 45), (31, 64)])
def test_every_pixel_counts_at_any_size(side: tuple[int, int]) -> None:
    sr = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    hr = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(1))
    rewards.make("structure_texture")(sr, hr=hr).total.sum().backward()
    assert sr.grad is not None and (sr.grad.abs().amax(1) > 0).all()


def test_too_small() -> None:
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(15, 20\)"):
        score(torch.rand(1, 3, 15, 20), torch.rand(1, 3, 15, 20))


def test_filters_answer_no_constant_and_each_its_own_orientation() -> None:
    flat = features(torch.full((1, 3, 64, 64), 0.3))
    assert max(stage.maps.max().item() for stage in flat[2:]) < 1e-3
    across = torch.arange(64.0)
    waves = {
        0: torch.cos(across).expand(64, 64),
        2: torch.cos(across)[:, None].expand(64, 64),
        1: torch.cos((across[:, None] + across) / 2**0.5),
        3: torch.cos((across - across[:, None]) / 2**0.5),
    }
    for orientation, wave in waves.items():
        image = (0.5 + 0.25 * wave).expand(1, 3, 64, 64)
        maps = features(image)[2].maps[0, 2:, 16:48, 16:48].mean((1, 2))
        assert maps.argmax().item() == orientation
        # Each is normalised to answer its own sinusoid with the amplitude, and quadrature holds roughly.
        assert maps[orientation].item() == pytest.approx(0.25, rel=0.15)
