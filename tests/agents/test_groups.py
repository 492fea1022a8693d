import math

import pytest
import torch
from tensordict import TensorDict

from srgym.agents.groups import Combine, GroupFilter, assess, from_config, group_advantage, optimality
from srgym.rewards import make
from srgym.rewards.base import Incompatible

NAN = float("nan")


def rollout(reward, group_size, valid=None, **components):
    reward = torch.tensor(reward)
    data = {
        "reward": reward,
        "group": torch.arange(len(reward) // group_size).repeat_interleave(group_size),
        "components": TensorDict({k: torch.tensor(v) for k, v in components.items()}, batch_size=[len(reward)]),
    }
    if valid is not None:
        data["valid"] = torch.tensor(valid)
    return TensorDict(data, batch_size=[len(reward)])


def test_advantage_is_the_standardised_score_of_each_group():
    # Group 1: mean 2, deviations -1, 0, 1: population std sqrt(2/3). Group 2: mean 20, std 10 sqrt(2/3).
    score = torch.tensor([1.0, 2, 3, 10, 20, 30], dtype=torch.float64)
    first, second = 1 / (math.sqrt(2 / 3) + 1e-4), 10 / (10 * math.sqrt(2 / 3) + 1e-4)
    expected = torch.tensor([-first, 0, first, -second, 0, second], dtype=torch.float64)
    torch.testing.assert_close(group_advantage(score, 3), expected, rtol=1e-12, atol=1e-12)


def test_groups_are_told_apart_by_context_whatever_their_level():
    """An easy and a hard image under one prompt: merged into one group the hard one would have no sample above 0."""
    score = torch.tensor([0.1, 0.2, 0.8, 0.9])
    assert (group_advantage(score, 2) > 0).tolist() == [False, True, False, True]
    assert (group_advantage(score, 4) > 0).tolist() == [False, False, True, True]


def test_batch_std_divides_every_group_by_the_spread_of_all_scores():
    score = torch.tensor([1.0, 3, 10, 14], dtype=torch.float64)
    spread = score.std(correction=0) + 1e-4
    expected = torch.tensor([-1.0, 1, -2, 2], dtype=torch.float64) / spread
    torch.testing.assert_close(group_advantage(score, 2, std="batch"), expected, rtol=1e-12, atol=0)


def test_invalid_scores_leave_mean_and_std_alone():
    score = torch.tensor([1.0, 2, 3, 1e6, NAN], dtype=torch.float64)
    valid = torch.tensor([True, True, True, False, True])
    alone = group_advantage(score[:3], 3)
    torch.testing.assert_close(group_advantage(score, 5, valid), torch.cat([alone, alone.new_zeros(2)]))


def test_equal_scores_have_no_advantage_at_all():
    """In float32 the mean of 24 times 0.1 isn't 0.1; the difference over a spread of 1e-4 would be an advantage."""
    assert (group_advantage(torch.full((24,), 0.1), 24) == 0).all()


@pytest.mark.parametrize("size", [5, 0])
def test_incomplete_groups_are_refused(size):
    with pytest.raises(ValueError, match="whole groups"):
        group_advantage(torch.zeros(8), size)


@pytest.mark.parametrize(
    ("advantage", "clip", "expected"),
    [(0.0, 1.0, 0.5), (0.4, 1.0, 0.7), (3.0, 1.0, 1.0), (-3.0, 1.0, 0.0), (3.0, 5.0, 0.8), (-9.0, 5.0, 0.0)],
)
def test_optimality(advantage, clip, expected):
    assert optimality(torch.tensor(advantage), clip).item() == pytest.approx(expected, abs=1e-7)


def test_oars_optimality_is_half_plus_half_the_clipped_advantage():
    advantage = torch.linspace(-3, 3, 61, dtype=torch.float64)
    torch.testing.assert_close(optimality(advantage), 0.5 + 0.5 * advantage.clamp(-1, 1), rtol=0, atol=1e-15)


# The groups' (mean, std): (.95, .02) high and alike; (.95, .2) high; (.5, .02) alike; (.5, .2) neither.
FILTERED = [0.93, 0.97, 0.75, 1.15, 0.48, 0.52, 0.3, 0.7]


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({}, [True, False, False, False]),
        ({"mode": "or"}, [True, True, True, False]),
        ({"spread": "var"}, [True, True, False, False]),  # .2^2 = .04 is below the limit .05
        ({"limit": 0.01}, [False, False, False, False]),
        ({"mean": 0.4}, [True, False, True, False]),
    ],
)
def test_filter_drops_what_is_high_and_alike(settings, dropped):
    assert GroupFilter(scale=1.0, **settings).drops(torch.tensor(FILTERED), 2).tolist() == dropped


def test_filter_looks_at_the_score_scaled_to_one():
    """On COMPASS's raw 1..5 nearly every mean is above 0.9, and the test of the mean would be vacuous."""
    score = 5 * torch.tensor(FILTERED)
    assert GroupFilter(scale=5.0).drops(score, 2).tolist() == [True, False, False, False]
    assert GroupFilter(scale=1.0, limit=1.0).drops(score, 2)[2]


def test_filter_takes_its_scale_from_the_reward_or_refuses():
    assert GroupFilter().for_reward(make("ssim_y")).scale == 1.0
    assert GroupFilter(scale=3.0).for_reward(make("ssim_y")).scale == 3.0
    unbounded = make(lambda sr: sr.mean((1, 2, 3)))
    with pytest.raises(Incompatible, match=r"filter.scale"):
        GroupFilter().for_reward(unbounded)


def test_filter_rejects_what_it_has_not_got():
    for wrong in ({"mode": "xor"}, {"spread": "iqr"}, {"scale": 0.0}, {"treshold": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "treshold" in wrong else "group filter"):
            from_config(GroupFilter, wrong)


def test_groups_with_too_few_valid_samples_are_dropped_and_counted():
    # Of 4: all valid; 2 valid (half: stays); 1 valid; none. Of the last, nothing is left.
    valid = [True] * 4 + [True, True, False, False] + [True, False, False, False] + [False] * 4
    reward = [NAN if not ok else float(i) for i, ok in enumerate(valid)]
    found = assess(rollout(reward, 4, valid), 4)
    assert found.stats == {"groups": 4, "groups_invalid": 2, "groups_filtered": 0, "samples_invalid": 9}
    assert found.keep.tolist() == [True] * 4 + [True, True, False, False] + [False] * 8
    assert (found.advantage[~found.keep] == 0).all()
    assert found.advantage[4:6].tolist() == pytest.approx([-1, 1], abs=1e-3)


def test_under_half_valid_is_dropped_even_with_two_valid():
    reward = [1.0, 2.0, NAN, NAN, NAN]
    assert assess(rollout(reward, 5), 5).stats["groups_invalid"] == 1


def test_filtered_groups_are_counted_apart_from_invalid_ones():
    found = assess(rollout(FILTERED, 2), 2, filter=GroupFilter(scale=1.0))
    assert found.stats["groups_filtered"] == 1 and found.stats["groups_invalid"] == 0
    assert found.keep.tolist() == [False, False] + [True] * 6


def test_a_dropped_group_is_counted_once():
    """One valid sample of 0.95 has no spread and a high mean, but what it lacks is valid samples."""
    found = assess(rollout([0.95, NAN, 0.1, 0.9], 2), 2, filter=GroupFilter(scale=1.0))
    assert found.stats["groups_invalid"] == 1 and found.stats["groups_filtered"] == 0


def test_the_batchs_spread_is_that_of_all_valid_scores_filtered_groups_too():
    found = assess(rollout(FILTERED, 2), 2, std="batch", filter=GroupFilter(scale=1.0))
    spread = torch.tensor(FILTERED).std(correction=0).item() + 1e-4
    assert found.advantage.tolist() == pytest.approx([0, 0] + [a / spread for a in (-0.2, 0.2, -0.02, 0.02, -0.2, 0.2)])


def test_groups_that_are_not_contiguous_are_refused():
    batch = rollout([1.0, 2, 3, 4], 2)
    batch["group"] = torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="contiguous"):
        assess(batch, 2)


def test_combine_weighs_the_components():
    batch = rollout([0.0, 0.0], 2, sharp=[1.0, 2.0], true=[10.0, 0.0])
    found = assess(batch, 2, combine=Combine({"sharp": 1.0, "true": 0.5}))
    assert found.score.tolist() == [6.0, 2.0]


def test_normalising_keeps_a_hard_component_from_being_drowned():
    """`hard` spreads by 0.01, `easy` by 10, and they disagree: standardised, the heavier weight decides."""
    batch = rollout([0.0] * 2, 2, hard=[0.01, 0.0], easy=[0.0, 10.0])
    raw = assess(batch, 2, combine=Combine({"hard": 2.0, "easy": 1.0}))
    equal = assess(batch, 2, combine=Combine({"hard": 2.0, "easy": 1.0}, normalise="per_component"))
    assert raw.advantage.sign().tolist() == [-1, 1]
    assert equal.advantage.sign().tolist() == [1, -1]
    # Each component standardises to +-1 up to eps / std.
    spread = {name: std / (std + 1e-4) for name, std in (("hard", 0.005), ("easy", 5.0))}
    assert equal.score[0].item() == pytest.approx(2 * spread["hard"] - spread["easy"], rel=1e-4)


def test_a_missing_component_invalidates_its_sample():
    batch = rollout([1.0] * 4, 4, a=[1.0, 2.0, 3.0, 4.0], b=[1.0, 1.0, NAN, 1.0])
    found = assess(batch, 4, combine=Combine({"a": 1.0, "b": 1.0}, normalise="per_component"))
    assert found.keep.tolist() == [True, True, False, True]
    assert torch.isfinite(found.advantage).all()


def test_combine_names_the_component_that_is_not_there():
    with pytest.raises(ValueError, match=r"'sharpness'.*reward gives sharp"):
        assess(rollout([0.0, 1.0], 2, sharp=[1.0, 2.0]), 2, combine=Combine({"sharpness": 1.0}))
    with pytest.raises(ValueError, match="normalise"):
        Combine({"a": 1.0}, normalise="rank")


def test_gdpo_decouples_components_and_then_standardises_over_the_batch():
    """arXiv 2601.05242: A_k inside the group, their weighted sum, (A - mean) / std over all samples of the batch."""
    hard = [0.0, 0.1, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0]
    easy = [5.0, 9.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    rollout = TensorDict(
        {
            "reward": torch.zeros(8), "valid": torch.ones(8, dtype=torch.bool),
            "group": torch.arange(2).repeat_interleave(4),
            "components": TensorDict({"hard": torch.tensor(hard), "easy": torch.tensor(easy)}, [8]),
        },
        [8],
    )  # fmt: skip

    def standard(values, eps=1e-4):
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        return [(v - mean) / (std + eps) for v in values]

    summed = [2 * h + e for h, e in zip(*(standard(x[:4]) + standard(x[4:]) for x in (hard, easy)), strict=True)]
    combine = Combine({"hard": 2.0, "easy": 1.0}, "decoupled")
    found = assess(rollout, 4, combine=combine).advantage
    assert found.tolist() == pytest.approx(standard(summed), abs=1e-5)
    again = assess(rollout, 4, combine=Combine({"hard": 2.0, "easy": 1.0}, "per_component")).advantage
    assert float((found - again).abs().max()) > 0.1
