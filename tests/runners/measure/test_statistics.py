"""Intervals against closed forms, against simulated coverage, and against rliable where it is installed."""

import numpy as np
import pytest
from scipy import stats

from srgym.runners.measure.statistics import (
    cost_to_reach,
    curve_band,
    gain_over_start,
    iqm,
    nested_bootstrap,
    nested_interval,
    paired_interval,
    performance_profile,
    probability_of_improvement,
    ratio_interval,
    stratified_bootstrap,
    stratified_interval,
)


def nested_sample(photographs: int, crops: int, between: float, within: float, seed: int):
    generator = np.random.default_rng(seed)
    values = generator.normal(0, between, (photographs, 1)) + generator.normal(0, within, (photographs, crops))
    return values, np.repeat(np.arange(photographs), crops)


def test_the_nested_bootstraps_variance_is_the_two_stage_formula():
    # Drawing n photographs and then m crops of each: Var = [Var_p(photograph means) + mean(Var_p(crops) / m)] / n.
    values, cluster = nested_sample(6, 5, 1.0, 2.0, seed=1)
    expected = (values.mean(1).var() + (values.var(axis=1) / 5).mean()) / 6
    draws = nested_bootstrap(values.ravel(), list(cluster), resamples=60_000)
    # The variance of a variance over B draws: relative standard error sqrt(2 / B) = 0.6%.
    assert draws.var() == pytest.approx(expected, rel=0.025)
    assert draws.mean() == pytest.approx(values.mean(), abs=4 * np.sqrt(expected / 60_000))


def test_photographs_of_unequal_crops_count_the_same():
    values, cluster = [1.0, 1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "a", "b"]
    assert nested_interval(values, cluster).value == 3.0
    draws = nested_bootstrap(values, cluster)
    assert set(np.round(draws, 9)) == {1.0, 3.0, 5.0}
    assert np.mean(draws == 3.0) == pytest.approx(0.5, abs=0.03)


def test_one_crop_a_photograph_is_the_plain_bootstrap():
    values = np.random.default_rng(3).normal(size=40)
    ours = nested_interval(values, list(range(40)), small_sample=False)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


@pytest.mark.parametrize("photographs", [3, 5])
def test_the_interval_of_a_few_photographs_holds_what_it_promises(photographs: int):
    trials, held, plain = 250, 0, 0
    for trial in range(trials):
        values, cluster = nested_sample(photographs, 6, 0.5, 0.7, seed=trial)
        wide = nested_interval(values.ravel(), list(cluster), resamples=600)
        narrow = nested_interval(values.ravel(), list(cluster), resamples=600, small_sample=False)
        held += wide.low <= 0 <= wide.high
        plain += narrow.low <= 0 <= narrow.high
    # 250 trials: standard error 1.9% at 90%.
    assert held / trials > 0.91
    assert plain < held


def test_pairing_takes_out_what_the_crops_share():
    values, cluster = nested_sample(4, 8, 3.0, 1.0, seed=5)
    noise = np.random.default_rng(6).normal(0, 0.01, values.size)
    better = values.ravel() + 0.1 + noise
    paired = paired_interval(better, values.ravel(), list(cluster))
    assert paired.above_zero
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert nested_interval(better, list(cluster)).low < nested_interval(values.ravel(), list(cluster)).value


def test_invalid_scores_are_left_out_and_a_single_photograph_has_no_interval():
    interval = nested_interval([1.0, np.nan, 2.0, 3.0], ["a", "a", "b", "b"])
    assert interval.value == pytest.approx((1.0 + 2.5) / 2)
    assert interval.units == 2
    alone = nested_interval([1.0, 2.0], ["a", "a"])
    assert alone.value == 1.5
    assert np.isnan(alone.low)
    assert not alone.above_zero
    assert not alone.below_zero
    assert nested_interval([np.nan], ["a"]).units == 0


def test_intervals_are_the_same_each_time():
    values, cluster = nested_sample(4, 3, 1.0, 1.0, seed=9)
    assert nested_interval(values.ravel(), list(cluster)) == nested_interval(values.ravel(), list(cluster))


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_the_stratified_bootstrap_draws_seeds_within_contexts():
    # The mean of [R, T] under independent resampling of each column: Var = sum_t Var_p(column t) / (R T^2).
    scores = np.random.default_rng(2).normal(size=(5, 7)) * np.arange(1, 8)
    expected = scores.var(axis=0).sum() / (5 * 7**2)
    draws = stratified_bootstrap(scores, lambda drawn: drawn.mean((1, 2)), resamples=40_000)
    assert draws.var() == pytest.approx(expected, rel=0.03)


def test_contexts_alone_give_the_stratified_interval_no_width():
    scores = np.tile(np.arange(10.0), (3, 1))  # the seeds agree
    interval = stratified_interval(scores)
    assert (interval.low, interval.value, interval.high) == pytest.approx((4.5, 4.5, 4.5))
    assert np.isnan(stratified_interval(scores[:1]).low)


def test_a_context_without_a_valid_score_is_left_out():
    scores = np.array([[1.0, np.nan, 3.0], [1.0, 50.0, 3.0]])
    assert stratified_interval(scores).value == pytest.approx(2.0)


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    x, y = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0]])
    assert probability_of_improvement(x, y).value == pytest.approx((0.5 + 0.5) / 2)
    assert probability_of_improvement(y, x).value == pytest.approx(0.5)
    better = probability_of_improvement(x + 10, x)
    assert (better.low, better.value, better.high) == (1.0, 1.0, 1.0)
    z = np.random.default_rng(0).normal(size=(4, 6))
    u = stats.mannwhitneyu(x[:, 0], y[:, 0]).statistic / 2
    assert probability_of_improvement(x[:, :1], y[:, :1]).value == pytest.approx(u)
    assert probability_of_improvement(z, z).value == pytest.approx(0.5)


def test_a_performance_profile_falls_from_one_to_zero():
    band = performance_profile(np.array([[0.0, 1.0], [2.0, 3.0]]), [-1.0, 0.5, 2.5, 9.0])
    assert list(band.value) == [1.0, 0.75, 0.25, 0.0]
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()
    assert band.low[0] == 1.0
    assert band.high[-1] == 0.0


def test_the_starting_policy_is_zero_and_its_spread_one():
    start = np.array([1.0, 3.0])
    assert np.all(gain_over_start(start[None], start) == 0)
    assert gain_over_start([[2.0, 4.0]], start, in_spreads=True) == pytest.approx(np.array([[1.0, 1.0]]))
    with pytest.raises(ValueError, match="same on all contexts"):
        gain_over_start([[2.0, 2.0]], [1.0, 1.0], in_spreads=True)
    with pytest.raises(ValueError, match="expected the start's scores on 2 contexts"):
        gain_over_start([[2.0, 2.0]], [1.0])


def test_curves_of_several_seeds_are_joined_on_what_they_share():
    band = curve_band([([0, 10, 20], [0, 1, 2]), ([0, 8, 16], [2, 2.8, 3.6])], points=5)
    assert list(band.x) == [0, 4, 8, 12, 16]
    assert band.value == pytest.approx([1.0, 1.4, 1.8, 2.2, 2.6])
    # Two seeds that differ by 2 (or by 2 all along): the interval is the seeds themselves.
    assert band.low[0] == pytest.approx(0.0)
    assert band.high[0] == pytest.approx(2.0)
    assert np.isnan(curve_band([([0, 1], [0, 1])]).low).all()


def test_the_cost_of_reaching_a_target():
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], 2.0) == pytest.approx(15.0)
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], -1.0) == 0.0
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], 4.0) == float("inf")
    ratio = ratio_interval([10.0, 20.0], [5.0, 5.0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3.0, 2.0, 4.0))
    with pytest.raises(ValueError, match="all reached"):
        ratio_interval([float("inf")], [1.0])


def test_empty_and_mismatched_inputs_are_named():
    with pytest.raises(ValueError, match="a cluster for each of 2 values, got 1"):
        nested_bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match=r"expected scores \[seeds, contexts\]"):
        stratified_interval([1.0, 2.0])
    with pytest.raises(ValueError, match="the same contexts, got 2 and 1"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])


def test_rliable_agrees():
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    generator = np.random.default_rng(4)
    x, y = generator.normal(0.3, 1, (6, 12)), generator.normal(0, 1, (6, 12))
    values, intervals = library.get_interval_estimates(
        {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=3000
    )
    ours = stratified_interval(x, resamples=3000)
    width = ours.high - ours.low
    assert ours.value == pytest.approx(values["x"][0])
    assert (ours.low, ours.high) == pytest.approx(tuple(intervals["x"][:, 0]), abs=0.06 * width)
    better = probability_of_improvement(x, y)
    assert better.value == pytest.approx(metrics.probability_of_improvement(x, y))
    _, bounds = library.get_interval_estimates(
        {"pair": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=3000
    )
    assert (better.low, better.high) == pytest.approx(tuple(bounds["pair"][:, 0]), abs=0.015)
    thresholds = np.linspace(-2, 2, 9)
    profile, _ = library.create_performance_profile({"x": x}, thresholds, reps=100)
    assert performance_profile(x, thresholds).value == pytest.approx(profile["x"])
