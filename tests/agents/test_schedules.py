import pytest
import torch
from torch import nn

from srgym.agents.ema import WeightAverage, evaluation_decay, old_decay
from srgym.agents.timesteps import corrupt, draw_times, schedule_steps, shift_times
from srgym.policies.noise import Noise


@pytest.mark.parametrize(
    ("schedule", "updates", "expected"),
    [
        ("on_policy", 0, 0.0), ("on_policy", 10**6, 0.0),
        ("linear", 0, 0.0), ("linear", 7, 0.007), ("linear", 499, 0.499), ("linear", 500, 0.5), ("linear", 9999, 0.5),
        ("delayed", 0, 0.0), ("delayed", 74, 0.0), ("delayed", 75, 0.0), ("delayed", 77, 0.015),
        ("delayed", 75 + 133, 0.9975), ("delayed", 75 + 134, 0.999), ("delayed", 9999, 0.999),
        ("rising", 0, 0.25), ("rising", 10, 0.3), ("rising", 149, 0.995), ("rising", 150, 0.999),
        (0.3, 0, 0.3), (0.3, 500, 0.3), (0, 5, 0.0),
    ],
)  # fmt: skip
def test_old_policy_schedules(schedule, updates, expected):
    assert old_decay(schedule, updates) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", ["cosine", 1.0, -0.1, True])
def test_unknown_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match="old policy"):
        old_decay(wrong, 0)


def test_evaluation_decay_warms_up_to_its_cap():
    assert evaluation_decay(0) == pytest.approx(0.1)
    assert evaluation_decay(10) == pytest.approx(11 / 20)
    assert evaluation_decay(79) == pytest.approx(80 / 89)
    assert evaluation_decay(80) == evaluation_decay(10**6) == 0.9
    assert evaluation_decay(10**6, 0.99) == 0.99
    assert evaluation_decay(3, 0.0) == 0.0


def test_weight_average_follows_and_swaps():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(list(layer.named_parameters()))
    nn.init.constant_(layer.weight, 3.0)
    average.update(0.25)  # 0.25 * 1 + 0.75 * 3
    with average.swapped_in():
        assert layer.weight.item() == pytest.approx(2.5)
    assert layer.weight.item() == 3.0
    assert average.weights["weight"].item() == pytest.approx(2.5)


def test_weight_average_survives_an_error_inside():
    layer = nn.Linear(1, 1, bias=False)
    before = layer.weight.item()
    average = WeightAverage(list(layer.named_parameters()))
    average.weights["weight"].add_(1)
    with pytest.raises(RuntimeError), average.swapped_in():
        raise RuntimeError
    assert layer.weight.item() == before


def test_corruption_mixes_sample_and_noise():
    x0, eps = torch.full((2, 3), 2.0), torch.full((2, 3), -1.0)
    assert corrupt(x0, eps, torch.tensor([0.25, 1.0]))[:, 0].tolist() == [1.25, -1.0]


def test_uniform_times_are_uniform():
    t = draw_times(Noise(torch.arange(2000)))
    assert t.min() >= 0 and t.max() < 1
    counts = torch.histc(t, 10, 0, 1)
    assert ((counts - 200).abs() < 5 * (200 * 0.9) ** 0.5).all()


def test_logit_normal_times_have_a_normal_logit():
    logit = torch.logit(draw_times(Noise(torch.arange(2000)), "logit_normal", mean=0.5, std=2.0).double())
    assert logit.mean().item() == pytest.approx(0.5, abs=5 * 2 / 2000**0.5)
    assert logit.std().item() == pytest.approx(2.0, rel=0.1)


def test_shift_moves_times_towards_noise_and_keeps_the_ends():
    t = torch.tensor([0.0, 0.5, 1.0])
    assert shift_times(t, 3.0).tolist() == [0.0, 0.75, 1.0]
    torch.testing.assert_close(shift_times(t, 1.0), t)


def test_unknown_density_is_refused():
    with pytest.raises(ValueError, match="logit_normal"):
        draw_times(Noise(torch.arange(2)), "beta")


def test_each_sample_gets_its_own_times_of_the_schedule():
    seed = torch.arange(200)
    chosen = schedule_steps(seed, 10, 0.99)
    assert chosen.shape == (200, 9)  # int(0.99 * 10)
    assert all(len(set(row)) == 9 for row in chosen.tolist())
    assert set(chosen.flatten().tolist()) == set(range(10))  # any of them may be the one left out
    assert len({tuple(row) for row in chosen.tolist()}) > 150
    torch.testing.assert_close(schedule_steps(seed[50:60], 10, 0.99), chosen[50:60])


def test_at_least_one_time_is_trained():
    assert schedule_steps(torch.arange(3), 1, 0.99).shape == (3, 1)
    assert schedule_steps(torch.arange(0), 6, 0.99).shape == (0, 5)
