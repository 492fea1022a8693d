"""A sample's noise belongs to the sample: to (seed, iteration, context, k) and the stream, not to the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srgym.policies.noise import Noise, derive_seeds

INDEX = torch.tensor([3, 3, 7, 7, 7])
K = torch.tensor([0, 1, 0, 1, 2])


def test_the_seed_of_a_sample_does_not_depend_on_its_batch():
    whole = derive_seeds(1, 5, INDEX, K)
    assert torch.equal(derive_seeds(1, 5, INDEX[2:4], K[2:4]), whole[2:4])
    assert torch.equal(derive_seeds(1, torch.tensor(5), INDEX.flip(0), K.flip(0)), whole.flip(0))


@given(st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**20), st.integers(0, 64))
@settings(max_examples=200, deadline=None)
def test_every_part_of_the_key_changes_the_seed(seed, iteration, index, k):
    base = derive_seeds(seed, iteration, index, k).item()
    assert base >= 0
    others = [
        derive_seeds(seed + 1, iteration, index, k),
        derive_seeds(seed, iteration + 1, index, k),
        derive_seeds(seed, iteration, index + 1, k),
        derive_seeds(seed, iteration, index, k + 1),
        derive_seeds(seed, iteration, index, k, stream="timesteps"),
    ]
    assert base not in [other.item() for other in others]


def test_seeds_do_not_collide_over_a_run():
    iteration, index, k = torch.meshgrid(torch.arange(40), torch.arange(50), torch.arange(24), indexing="ij")
    seeds = derive_seeds(0, iteration.flatten(), index.flatten(), k.flatten())
    assert len(seeds.unique()) == len(seeds)


def test_noise_is_the_same_however_the_batch_is_cut():
    seeds = derive_seeds(0, 0, INDEX, K)
    whole, part = Noise(seeds), Noise(seeds[1:3])
    for draw in (
        lambda n: n.normal((2, 3)),
        lambda n: n.uniform(),
        lambda n: n.permutation(6),
        lambda n: n.integers(9),
    ):
        assert torch.equal(draw(whole)[1:3], draw(part))


def test_noise_is_standard_normal_and_continues():
    noise = Noise(derive_seeds(0, 0, torch.arange(200)))
    first, second = noise.normal((50,)), noise.normal((50,))
    assert not torch.equal(first, second)
    # 10,000 draws: the standard error of the mean is 0.01, of the variance 0.014
    assert abs(first.mean()) < 0.05 and abs(first.var() - 1) < 0.07
    assert abs((first * second).mean()) < 0.05


def test_no_samples_is_a_sentence():
    with pytest.raises(ValueError, match="at least one seed"):
        Noise(torch.zeros(0, dtype=torch.int64)).normal((2,))
