"""What training has beside the photographs: dead leaves, enlarged crops, new colours; and never elsewhere."""

import pytest
import torch

from srgym.envs import sources
from srgym.envs.crops import enlarge, random_zoom
from srgym.envs.leaves import dead_leaves


def test_a_picture_is_the_same_each_time_and_another_for_another_number():
    first = dead_leaves(0, side=64)
    assert first.dtype == torch.uint8 and first.shape == (3, 64, 64)
    dead_leaves.cache_clear()
    assert torch.equal(dead_leaves(0, side=64), first)
    assert not torch.equal(dead_leaves(1, side=64), first)


def test_leaves_have_plain_surfaces_and_sharp_edges():
    """What they are for: most neighbours differ by a few grey levels, and a few by very many."""
    luma = dead_leaves(0, side=128).float().mean(0)
    step = (luma[:, 1:] - luma[:, :-1]).abs()
    assert step.median() < 6 and step.quantile(0.98) > 40


def test_training_has_them_and_held_out_splits_do_not():
    plain = sources.make("photographs", split="train", size=32, crops=4)
    more = sources.make("photographs", split="train", size=32, crops=4, leaves=2)
    assert len(more) == len(plain) + 8
    assert more[len(plain)].id == "leaves_0/0"
    held_out = sources.make("photographs", split="test", size=32, crops=2, leaves=2)
    assert not any("leaves" in held_out[i].id for i in range(len(held_out)))
    with pytest.raises(ValueError, match="leaves is at least 0, got -1"):
        sources.make("photographs", leaves=-1)


def test_half_of_the_crops_are_enlarged_by_up_to_two():
    zooms = torch.tensor([random_zoom(0, f"a/{i}") for i in range(2000)])
    # 2,000 fair coins: the standard error of the share is 0.011
    assert abs((zooms == 1).float().mean() - 0.5) < 0.05
    assert zooms.min() >= 1 and zooms.max() <= 2


def test_enlarging_makes_softer_and_keeps_the_size_asked_for():
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    soft = enlarge(image, 32)
    assert soft.shape == (3, 32, 32) and soft.min() >= 0 and soft.max() <= 1
    assert soft.diff(dim=-1).abs().mean() < image.diff(dim=-1).abs().mean()


def test_augmented_crops_have_the_size_asked_for():
    source = sources.make("photographs", split="train", size=32, crops=6, augment=True)
    assert all(source[i].hr.shape == (3, 32, 32) and source[i].lr.shape == (3, 8, 8) for i in range(0, len(source), 5))
