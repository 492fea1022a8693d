"""Weighted sums of rewards."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from srgym import rewards
from srgym.rewards.composite import standardise


def bright(sr: Tensor) -> Tensor:
    return sr.mean((1, 2, 3))


def parts(sr: Tensor, lr: Tensor) -> dict[str, Tensor]:
    return {"total": 100 * sr.mean((1, 2, 3)), "red": sr[:, 0].mean((1, 2))}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("composite_parts")
    module.bright, module.parts = bright, parts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "composite_parts", module)


def test_weighted_sum_with_options_and_prefixed_components() -> None:
    spec = {
        "sum": {
            "composite_parts:bright": 2.0,
            "second": {"name": "composite_parts:parts", "weight": -0.5},
            "random": {"weight": 3, "seed": 4},
        }
    }
    reward = rewards.make(spec)
    sr, lr = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 2, 2)
    output = reward(sr, lr=lr)
    noise = rewards.make("random", seed=4)(sr).total
    mean = sr.mean((1, 2, 3))
    assert torch.allclose(output.total, 2 * mean - 50 * mean + 3 * noise, atol=1e-4)
    assert sorted(output.components) == ["composite_parts:bright", "random", "second", "second/red"]
    assert torch.equal(output.components["random"], noise)
    assert reward.needs == {"lr"} and not reward.group and not reward.differentiable


def test_declares_what_its_parts_declare() -> None:
    reward = rewards.make({"sum": {"psnr_y": 0.1, "ssim_y": -2.0}})
    assert reward.range == (-2.0, 12.0)
    assert reward.differentiable and reward.needs == {"hr"}
    assert "0.1 psnr_y + -2 ssim_y" in reward.doc


def test_nested_and_from_yaml() -> None:
    config = OmegaConf.create("sum: {psnr_y: 1, both: {weight: 2, sum: {ssim_y: 1, psnr_y: 0.5}}}")
    sr, hr = torch.rand(2, 2, 3, 16, 16)
    p, s = (rewards.make(name)(sr, hr=hr).total for name in ("psnr_y", "ssim_y"))
    output = rewards.make(config)(sr, hr=hr)
    assert torch.allclose(output.total, p + 2 * (s + 0.5 * p), atol=1e-4)
    assert "both/ssim_y" in output.components


def test_invalid_where_one_part_is() -> None:
    def sometimes(sr: Tensor) -> Tensor:
        return torch.tensor([1.0, torch.nan])

    import sys

    sys.modules["composite_parts"].sometimes = sometimes  # type: ignore[attr-defined]
    output = rewards.make({"sum": {"random": 1, "composite_parts:sometimes": 1}})(torch.rand(2, 3, 8, 8))
    assert output.valid.tolist() == [True, False]
    assert torch.isfinite(output.components["random"]).all()


def test_per_component_gives_every_part_the_same_spread() -> None:
    spec = {"sum": {"composite_parts:bright": 1.0, "composite_parts:parts": 1.0}, "normalise": "per_component"}
    reward = rewards.make(spec)
    assert reward.group and not reward.differentiable
    generator = torch.Generator().manual_seed(0)
    sr, lr = torch.rand(6, 3, 8, 8, generator=generator), torch.rand(6, 3, 2, 2, generator=generator)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    total = reward(sr, lr=lr, group=group).total.view(2, 3)
    mean = sr.mean((1, 2, 3)).view(2, 3)
    z = (mean - mean.mean(1, keepdim=True)) / mean.std(1, correction=0, keepdim=True)
    # Both parts are the same up to a factor of 100, so each contributes z; the slack is eps beside their spread.
    assert torch.allclose(total, 2 * z, atol=0.1)
    assert total.mean(1).abs().max() < 1e-4


def test_standardise_by_hand() -> None:
    score = torch.tensor([1.0, 3.0, 99.0, 5.0, 7.0])
    valid = torch.tensor([True, True, False, True, True])
    group = torch.tensor([0, 0, 0, 1, 2])
    found = standardise(score, valid, group, eps=0.0 + 1e-9)
    assert found[:2].tolist() == pytest.approx([-1, 1])
    assert found[2].isnan()
    assert found[3:].tolist() == [0, 0]  # a group of one
    # Large scores of small spread keep it.
    far = standardise(torch.tensor([5000.0, 5000.5]), torch.tensor([True, True]), torch.tensor([0, 0]))
    assert far.tolist() == pytest.approx([-1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"sum": {}}, "at least one reward"),
        ({"sum": {"psnr_y": "much"}}, "weight of 'psnr_y' as a finite number, got 'much'"),
        ({"sum": {"psnr_y": 1}, "normalise": "batch"}, "normalise as one of none, per_component, got 'batch'"),
        ({"sum": {"psnr_y": 1}, "normalize": "none"}, "takes 'sum', 'normalise' and 'name', got also normalize"),
        ({"sum": {"psnr": 1}}, "unknown reward 'psnr': did you mean 'psnr_y'"),
    ],
)
def test_refused(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.make(spec)
