"""The battery of faults: each is a fault, does what it says, and stays where it is put."""

import pytest
import torch
from torch import Tensor

from srgym.envs import sources
from srgym.errors import Refusal
from srgym.rewards.audit.faults import FAULTS, spoilt


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    sample = sources.make("photographs", split="test", size=96)[0]
    assert sample.hr is not None
    return sample.hr[None]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_full_strength_is_gross_and_at_half_is_less(kind: str, photograph: Tensor) -> None:
    whole, half = (spoilt(photograph, kind, strength) for strength in (1.0, 0.5))
    assert whole.shape == photograph.shape and whole.min() >= 0 and whole.max() <= 1
    gross, plain = (float((image - photograph).square().mean().sqrt()) * 255 for image in (whole, half))
    assert gross > 2 and gross > plain > 0


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("area", [0.02, 0.15, 0.5])
def test_a_fault_on_a_part_leaves_the_rest_alone(kind: str, area: float, photograph: Tensor) -> None:
    changed = (spoilt(photograph, kind, 1.0, area, seed=3) != photograph).any(1)[0]
    assert 0 < changed.float().mean() <= 1.1 * area
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    inside = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert inside <= 1.1 * area * changed.numel()


def test_the_place_follows_the_seed(photograph: Tensor) -> None:
    again = [spoilt(photograph, "tint", 1.0, 0.1, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


@pytest.mark.parametrize("kind, strength, area", [("sparkle", 1.0, 1.0), ("blur", 0.0, 1.0), ("blur", 1.0, 1.5)])
def test_what_is_no_fault_is_refused(kind: str, strength: float, area: float, photograph: Tensor) -> None:
    with pytest.raises(Refusal, match="expected a fault of blur, .*, at a strength and on an area"):
        spoilt(photograph, kind, strength, area)
