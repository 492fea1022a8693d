"""Intervals against closed forms, against simulated coverage, and against rliable where it is installed."""

import numpy as np
import pytest
from scipy import stats

from srgym.runners.measure.statistics import (
    Components,
    cost_to_reach,
    crossed_difference,
    crossed_interval,
    curve_band,
    gain_over_start,
    holm,
    iqm,
    performance_profile,
    probability_of_improvement,
    ratio_interval,
    seed_interval,
    units_needed,
    variance_components,
)

TRUTH = 0.05


def world(generator, seeds: int, photographs: int, seed_sd: float, crops: int = 12):
    """Two equal algorithms on the same contexts: a seed shifts all of its contexts, a photograph all of its crops."""
    cluster = np.repeat(np.arange(photographs), crops)
    context = 0.03 * generator.standard_normal(photographs)[cluster] + 0.05 * generator.standard_normal(len(cluster))

    def algorithm():
        noise = 0.02 * generator.standard_normal((seeds, len(cluster)))
        return TRUTH + seed_sd * generator.standard_normal((seeds, 1)) + context + noise

    return algorithm(), algorithm(), cluster


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.005, 0.03])
def test_an_interval_holds_what_it_promises_and_equal_algorithms_are_seldom_told_apart(seed_sd: float, seeds: int):
    generator, trials = np.random.default_rng(int(1000 * seed_sd) + seeds), 300
    held, apart, better = 0, 0, 0
    for trial in range(trials):
        x, y, cluster = world(generator, seeds, (4, 12)[trial % 2], seed_sd, crops=4)
        interval = crossed_interval(x, cluster, resamples=250)
        held += interval.low <= TRUTH <= interval.high
        gap = crossed_difference(x, y, cluster, resamples=250)
        apart += gap.above_zero or gap.below_zero
        chance = probability_of_improvement(x, y, cluster, resamples=250)
        better += not chance.low <= 0.5 <= chance.high
    # Standard errors of 300 trials: 1.3% at 95%, and at 5%.
    assert held / trials >= 0.90
    assert apart / trials <= 0.09
    assert better / trials <= 0.08


def test_photographs_alone_give_students_interval_of_their_means():
    generator = np.random.default_rng(1)
    means = generator.normal(size=6)
    scores, cluster = np.repeat(means, 5)[None], np.repeat(np.arange(6), 5)
    interval = crossed_interval(scores, cluster, resamples=40_000)
    expected = stats.t.interval(0.95, 5, loc=means.mean(), scale=stats.sem(means))
    # 40,000 resamples: the standard error of a standard deviation is 0.4%.
    assert (interval.low, interval.high) == pytest.approx(expected, rel=0.02)
    assert (interval.units, interval.seeds) == (6, 1)
    assert interval.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=0.05)


def test_seeds_that_differ_alone_give_students_interval_of_the_seeds():
    shifts = np.array([0.0, 1.0, 2.0, 5.0])
    scores, cluster = shifts[:, None] + np.zeros((4, 6)), np.repeat(np.arange(3), 2)
    interval = crossed_interval(scores, cluster, resamples=40_000)
    expected = stats.t.interval(0.95, 3, loc=2.0, scale=stats.sem(shifts))
    assert (interval.low, interval.high) == pytest.approx(expected, rel=0.02)
    alone = seed_interval(scores)
    assert (alone.low, alone.high) == pytest.approx(expected)


def test_the_two_variances_add_up():
    generator = np.random.default_rng(2)
    seeds, photographs = generator.normal(size=5), generator.normal(size=7)
    scores = seeds[:, None] + photographs[None]
    interval = crossed_interval(scores, np.arange(7), resamples=40_000)
    parts = [seeds.var(ddof=1) / 5, photographs.var(ddof=1) / 7]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 6)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    assert interval.high - interval.value == pytest.approx(reach, rel=0.02)


def test_two_seeds_show_a_direction_and_nothing_is_certain_without_any_spread():
    generator = np.random.default_rng(3)
    two = generator.normal(1, 0.1, (2, 12))
    interval = crossed_interval(two, np.repeat(np.arange(4), 3))
    assert interval.value == pytest.approx(two.mean())
    assert interval.seeds == 2
    assert np.isnan([interval.low, interval.high, interval.p]).all()
    assert not interval.above_zero and not interval.below_zero
    assert np.isnan(seed_interval(two).low)
    assert np.isnan(probability_of_improvement(two, two - 1).low)
    assert np.isnan(crossed_interval(np.ones((3, 4))).low)
    assert np.isnan(crossed_interval([[1.0, 2.0]], ["a", "a"]).low)


def test_photographs_of_unequal_crops_count_the_same():
    assert crossed_interval([[1.0, 1.0, 1.0, 1.0, 5.0]], ["a", "a", "a", "a", "b"]).value == 3.0


def test_pairing_takes_out_what_the_contexts_share():
    generator = np.random.default_rng(5)
    context, cluster = generator.normal(0, 3, 32), np.repeat(np.arange(4), 8)
    x, y = (shift + context + generator.normal(0, 0.01, (3, 32)) for shift in (0.1, 0.0))
    paired = crossed_difference(x, y, cluster)
    assert paired.above_zero
    assert paired.value == pytest.approx(0.1, abs=0.01)
    start = crossed_difference(x, y[:1], cluster)
    assert (start.seeds, start.units) == (3, 4)
    assert crossed_interval(x, cluster).low < crossed_interval(y, cluster).value


def test_a_context_without_a_valid_score_is_left_out():
    scores = [[1.0, np.nan, 3.0, 5.0], [1.0, 50.0, 3.0, 5.0], [1.0, 50.0, 3.0, 5.0]]
    interval = crossed_interval(scores, ["a", "a", "b", "c"])
    assert interval.value == pytest.approx(3.0)
    assert interval.units == 3
    assert crossed_interval([[np.nan]]).units == 0


def test_intervals_are_the_same_each_time():
    x, y, cluster = world(np.random.default_rng(9), 3, 4, 0.01)
    assert crossed_interval(x, cluster) == crossed_interval(x, cluster)
    assert probability_of_improvement(x, y, cluster) == probability_of_improvement(x, y, cluster)


def test_iqm_is_the_mean_of_the_middle_half():
    scores = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])
    assert iqm(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert crossed_interval(scores[None], statistic="iqm").value == pytest.approx(iqm(scores))


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    x, y = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0]])
    assert probability_of_improvement(x, y).value == pytest.approx((0.5 + 0.5) / 2)
    assert probability_of_improvement(y, x).value == pytest.approx(0.5)
    assert probability_of_improvement(x + 10, x).value == 1.0
    z = np.random.default_rng(0).normal(size=(4, 6))
    u = stats.mannwhitneyu(x[:, 0], y[:, 0]).statistic / 2
    assert probability_of_improvement(x[:, :1], y[:, :1]).value == pytest.approx(u)
    assert probability_of_improvement(z, z).value == pytest.approx(0.5)


def test_a_performance_profile_falls_from_one_to_zero():
    scores = np.random.default_rng(4).normal(size=(4, 9))
    band = performance_profile(scores, [-9.0, 0.0, 9.0])
    assert list(band.value) == pytest.approx([1.0, (scores > 0).mean(), 0.0])
    assert 0 <= band.low[1] < band.value[1] < band.high[1] <= 1
    assert np.isnan(band.low[[0, 2]]).all()  # all or none: no spread, no interval


def test_the_starting_policy_is_zero_and_its_spread_one():
    start = np.array([1.0, 3.0])
    assert np.all(gain_over_start(start[None], start) == 0)
    assert gain_over_start([[2.0, 4.0]], start, in_spreads=True) == pytest.approx(np.array([[1.0, 1.0]]))
    with pytest.raises(ValueError, match="same on all contexts"):
        gain_over_start([[2.0, 2.0]], [1.0, 1.0], in_spreads=True)
    with pytest.raises(ValueError, match="expected the start's scores on 2 contexts"):
        gain_over_start([[2.0, 2.0]], [1.0])


def test_holm_is_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.01, float("nan"), 0.02])
    assert [adjusted[0], adjusted[2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(adjusted[1])


def test_variance_components_are_found_again():
    generator = np.random.default_rng(6)
    found = [
        variance_components(
            generator.normal(0, 0.5, (8, 1)) + generator.normal(0, 1, (1, 20)) + generator.normal(0, 0.3, (8, 20))
        )
        for _ in range(200)
    ]
    # The mean of 200 estimates: standard errors of 4% (seeds) and 2.5% (photographs).
    assert np.mean([c.seed for c in found]) == pytest.approx(0.25, rel=0.15)
    assert np.mean([c.photograph for c in found]) == pytest.approx(1.0, rel=0.1)
    assert np.mean([c.rest for c in found]) == pytest.approx(0.09, rel=0.05)
    assert Components(0.25, 1.0, 0.09).of_mean(5, 10) == pytest.approx(0.05 + 0.1 + 0.0018)


def test_as_many_photographs_as_are_said_do_show_the_effect():
    components = Components(np.nan, 1.0, 0.0)
    number, seeds = units_needed(1.0, components, 1, 6)
    assert seeds is None
    # The textbook's answer for a paired t test of one standard deviation at 80%: 10 pairs.
    assert number == 10
    generator = np.random.default_rng(7)
    shown = [crossed_interval(generator.normal(1, 1, (1, number)), resamples=200).above_zero for _ in range(400)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.07)
    assert units_needed(0.01, Components(1.0, 0.0, 0.0), 3, 6)[0] is None  # more photographs don't help against seeds


def test_curves_of_several_seeds_are_joined_on_what_they_share():
    first, second = np.array([[0.0], [1.0], [2.0]]), np.array([[2.0], [2.8], [3.6]])
    band = curve_band([([0, 10, 20], first), ([0, 8, 16], second)], points=5)
    assert list(band.x) == [0, 4, 8, 12, 16]
    assert band.value == pytest.approx([1.0, 1.4, 1.8, 2.2, 2.6])
    assert np.isnan(band.low).all()  # two seeds
    assert np.isnan(curve_band([([0, 1], np.array([[0.0], [1.0]]))]).low).all()
    three = curve_band([([0, 1], np.array([[shift], [shift + 1.0]])) for shift in (0.0, 1.0, 3.0)], points=2)
    expected = stats.t.interval(0.95, 2, loc=4 / 3, scale=stats.sem([0.0, 1.0, 3.0]))
    assert (three.low[0], three.high[0]) == pytest.approx(expected, rel=0.1)


def test_the_cost_of_reaching_a_target():
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], 2.0) == pytest.approx(15.0)
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], -1.0) == 0.0
    assert cost_to_reach([0, 10, 20], [0.0, 1.0, 3.0], 4.0) == float("inf")
    ratio = ratio_interval([10.0, 20.0, 30.0], [5.0, 5.0, 5.0])
    # On the logarithm, with one side without spread: t of 2 degrees of freedom times the relative standard error.
    reach = stats.t.ppf(0.975, 2) * stats.sem([10.0, 20.0, 30.0]) / 20
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((4.0, 4 * np.exp(-reach), 4 * np.exp(reach)))
    assert np.isnan(ratio_interval([10.0, 20.0], [5.0, 5.0]).low)
    with pytest.raises(ValueError, match="all reached"):
        ratio_interval([float("inf")], [1.0])


def test_empty_and_mismatched_inputs_are_named():
    with pytest.raises(ValueError, match="the same contexts everywhere, each with its cluster"):
        crossed_interval([[1.0, 2.0]], ["a"])
    with pytest.raises(ValueError, match=r"expected scores \[seeds, contexts\]"):
        crossed_interval([1.0, 2.0])
    with pytest.raises(ValueError, match=r"the same contexts everywhere.*got \[2, 1\] contexts"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])


def test_rliable_agrees_on_the_estimates():
    metrics = pytest.importorskip("rliable.metrics")
    generator = np.random.default_rng(4)
    x, y = generator.normal(0.3, 1, (6, 12)), generator.normal(0, 1, (6, 12))
    assert iqm(x) == pytest.approx(metrics.aggregate_iqm(x))
    assert probability_of_improvement(x, y).value == pytest.approx(metrics.probability_of_improvement(x, y))
