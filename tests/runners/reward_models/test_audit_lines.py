"""The verdicts of an audit, each on numbers whose answer is known."""

import numpy as np
import pytest

from srgym.runners.reward_models import audit_lines as lines

PHOTOGRAPHS = [f"photograph {i // 2}" for i in range(12)]


def test_samples_above_the_truth_are_counted() -> None:
    truth = np.zeros(10)
    below, above = np.full((10, 4), -1.0), np.full((10, 4), -1.0)
    above[:, 0] = 1.0
    assert lines.above_truth(below, truth).holds
    assert not (line := lines.above_truth(above, truth)).holds and "25%" in line.measured


def test_ranks_are_those_of_spearman_and_a_group_without_any_counts_nowhere() -> None:
    a = [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, 2.0, float("nan")]]
    b = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    correlations = lines.group_correlations(a, b)
    assert correlations[0] == pytest.approx(-1) and np.isnan(correlations[1:]).all()
    flat = np.zeros((4, 5))
    assert not (line := lines.floor_line("JPEG 95", flat, flat)).holds and "no group" in line.measured


@pytest.mark.parametrize("sign, holds", [(1, True), (-1, False)])
def test_a_reward_that_ranks_against_fidelity_fails(sign: int, holds: bool) -> None:
    generator = np.random.default_rng(0)
    fidelity = generator.normal(size=(12, 8))
    samples = sign * fidelity + 0.5 * generator.normal(size=(12, 8))
    assert lines.signal_line("psnr_y", samples, fidelity, PHOTOGRAPHS).holds is holds


def test_no_correlation_at_all_is_not_held_against_a_reward() -> None:
    generator = np.random.default_rng(1)
    line = lines.signal_line("psnr_y", generator.normal(size=(12, 8)), generator.normal(size=(12, 8)), PHOTOGRAPHS)
    assert line.holds


def test_a_fault_must_be_noticed_everywhere_and_on_a_part() -> None:
    clean, noticed, missed = np.ones(20), np.zeros((20, 2)), np.full((20, 2), 2.0)
    assert lines.fault_line("blur", clean, noticed, noticed, True).holds
    assert not lines.fault_line("blur", clean, noticed, missed, True).holds
    assert not lines.fault_line("blur", clean, missed, noticed, True).holds
    assert lines.fault_line("shift", clean, missed, missed, False).holds is None  # no reference to know it by
    assert lines.fault_line("shift", clean, missed, missed, True).holds is False


def test_the_attack_counts_at_two_grey_levels() -> None:
    truth = np.ones(10)
    scores = {1: np.zeros(10), 2: np.zeros(10), 8: np.full(10, 2.0)}
    assert lines.attack_line(scores, truth, "its gradient").holds
    assert not lines.attack_line({**scores, 2: np.full(10, 2.0)}, truth, "its gradient").holds


def test_the_weight_at_most_of_the_gain_is_found_between_weights() -> None:
    assert lines.weight_at_gain([0, 0.5, 1.0, 2.0], [0.0, 0.6, 1.0, 0.5]) == pytest.approx(0.75, abs=0.005)
    assert lines.weight_at_gain([0, 1.0], [1.0, 1.0]) is None


def test_a_judge_that_turns_names_the_weight_to_stop_at() -> None:
    weights, reward = [0.0, 0.5, 1.0, 2.0], [0.0, 0.5, 1.0, 2.0]
    spread = 0.01 * np.random.default_rng(2).normal(size=(4, 12))
    turning = np.asarray([0.0, 0.3, -1.0, -3.0])[:, None] + spread
    line, stop = lines.overoptimisation("psnr_y", weights, reward, turning, PHOTOGRAPHS)
    assert not line.holds and stop == 0.5
    rising = np.asarray([0.0, 0.3, 0.6, 0.9])[:, None] + spread
    line, stop = lines.overoptimisation("psnr_y", weights, reward, rising, PHOTOGRAPHS)
    assert line.holds and stop == 2.0
    line, stop = lines.overoptimisation("psnr_y", weights, [0.0, 0.0, 0.0, 0.0], rising, PHOTOGRAPHS)
    assert line.holds is None and stop is None
