"""COMPASS-20K's labels: win rates over both orders, ranks, and the least-squares calibration with its two failures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srgym.rewards.compass.labels import (
    calibrate,
    median_slope,
    min_max,
    outcomes_from_scores,
    win_rates,
)

scores = st.lists(st.integers(0, 50), min_size=2, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(scores)
@settings(max_examples=200, deadline=None)
def test_exhaustive_ranking_by_a_score_is_the_order_of_the_score(score):
    rate = win_rates(outcomes_from_scores(score))
    for i in range(len(score)):
        # the definition: the share of the others that it beats, a draw counting half
        others = [j for j in range(len(score)) if j != i]
        expected = np.mean([1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0 for j in others])
        assert abs(rate[i].item() - expected) < 1e-12


def test_a_judge_that_always_prefers_the_first_decides_nothing():
    assert torch.equal(win_rates(torch.ones(4, 4, dtype=torch.float64)), torch.full((4,), 0.5, dtype=torch.float64))


def test_a_margin_makes_draws():
    outcome = outcomes_from_scores(torch.tensor([0.0, 0.05, 1.0]), margin=0.1)
    assert outcome[0, 1] == 0.5 and outcome[2, 1] == 1 and outcome[1, 2] == 0


def test_min_max_spans_the_unit_interval_and_ties_are_half():
    assert min_max(torch.tensor([0.2, 0.6, 0.4])).tolist() == pytest.approx([0, 1, 0.5])
    assert min_max(torch.tensor([0.3, 0.3])).tolist() == [0.5, 0.5]


@given(st.integers(3, 12), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_calibration_is_the_least_squares_line(n, seed):
    generator = np.random.default_rng(seed)
    r = generator.permutation(n) / (n - 1)
    anchor = np.clip(2 + 2 * r + 0.1 * generator.standard_normal(n), 1, 5)
    slope, offset = np.polyfit(r, anchor, 1)
    made = calibrate(torch.from_numpy(r), torch.from_numpy(anchor))
    assert made.flag == ""
    np.testing.assert_allclose(made.score.numpy(), np.clip(slope * r + offset, 1, 5), atol=1e-9)


def test_groups_that_cannot_be_fitted_are_flagged():
    tied = calibrate(torch.tensor([0.5, 0.5]), torch.tensor([2.0, 4.0]))
    assert tied.flag == "tied" and tied.score.tolist() == [3.0, 3.0]
    alone = calibrate(torch.tensor([0.5]), torch.tensor([2.0]))
    assert alone.flag == "tied" and alone.score.tolist() == [2.0]


def test_an_inverted_fit_takes_the_median_positive_slope_and_keeps_the_ranking():
    r, wrong = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([4.0, 3.0, 2.0])
    fallback = median_slope([(r, torch.tensor([1.0, 2.0, 3.0])), (r, torch.tensor([2.0, 2.5, 3.0])), (r, wrong)])
    assert fallback in (pytest.approx(2.0), pytest.approx(1.0))
    made = calibrate(r, wrong, fallback)
    assert made.flag == "inverted" and made.score[0] < made.score[1] < made.score[2]
    assert made.score.mean() == pytest.approx(3.0)
    assert median_slope([(r, wrong)]) is None
    assert calibrate(r, wrong, None).score.tolist() == [3.0, 3.0, 3.0]


def test_wrong_shapes_are_sentences():
    with pytest.raises(ValueError, match=r"\[N, N\] matrix, got \(2, 3\)"):
        win_rates(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="both"):
        calibrate(torch.zeros(2), torch.zeros(3))
