"""SRIQA-Bench's accuracy: its subsets and their counts, ties, baselines and intervals."""

import itertools
import math
import random

import numpy as np
import pytest

from srgym.runners.judges.benchmark import (
    accuracy,
    by_gap,
    difference,
    hits,
    leave_method_out,
    method_mean,
    order_flips,
    original_best,
    pairs_in,
)

METHODS = (
    "SwinIR", "RealESRNet", "Original", "RealESRGAN", "BSRGAN", "StableSR", "DiffBIR", "SeeSR", "PASD", "OSEDiff",
    "SUPIR",
)  # fmt: skip


@pytest.fixture(scope="module")
def truth():
    """Opinion scores of 100 scenes in the benchmark's layout: eleven images each, no ties."""
    draw = random.Random(0)
    bias = {method: draw.gauss(0, 1) for method in METHODS} | {"Original": 2.0}
    return {f"{i:03}": {m: bias[m] + draw.gauss(0, 1) for m in METHODS} for i in range(100)}


def test_the_subsets_have_the_benchmarks_counts(truth):
    assert {subset: pairs_in(truth, subset) for subset in ("Reg", "Gen", "All")} == {
        "Reg": 300, "Gen": 3600, "All": 5500,
    }  # fmt: skip
    with pytest.raises(ValueError, match="expected a subset of Reg, Gen, All, got 'Real'"):
        pairs_in(truth, "Real")


def test_the_truth_is_always_right_its_opposite_never_and_a_tie_is_wrong(truth):
    opposite = {s: {m: -v for m, v in own.items()} for s, own in truth.items()}
    alike = {s: dict.fromkeys(own, 3.0) for s, own in truth.items()}
    found = [accuracy(truth, predicted) for predicted in (truth, opposite, alike, {})]
    assert [one.interval.value for one in found] == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert [one.ties for one in found] == [0.0, 0.0, 1.0, 0.0]
    assert [one.unrated for one in found] == [0.0, 0.0, 0.0, 1.0]


def test_the_accuracy_is_the_share_of_pairs_in_order_counted_plainly(truth):
    draw = random.Random(1)
    predicted = {s: {m: round(v + draw.gauss(0, 1), 1) for m, v in own.items()} for s, own in truth.items()}
    right, n = 0, 0
    for scene in truth:
        for a, b in itertools.combinations([m for m in METHODS if m not in ("SwinIR", "RealESRNet")], 2):
            n += 1
            better, worse = (a, b) if truth[scene][a] > truth[scene][b] else (b, a)
            right += predicted[scene][better] > predicted[scene][worse]
    got = accuracy(truth, predicted, "Gen")
    assert (got.interval.value, got.pairs) == (pytest.approx(right / n), n)
    assert got.ties > 0


def test_the_error_is_that_of_scenes_resampled_whole(truth):
    """Each scene's judge is in the mood for all its pairs: the pairs of a scene are no independent sample."""
    draw = random.Random(2)
    mood = {s: draw.choice((1, 1, 1, -1)) for s in truth}
    predicted = {s: {m: mood[s] * v for m, v in own.items()} for s, own in truth.items()}
    got = accuracy(truth, predicted)
    per = np.array([float(own.mean()) for own in hits(truth, predicted).values()])
    resampled = np.random.default_rng(0).choice(per, (4000, 100)).mean(1)
    assert got.error == pytest.approx(resampled.std(), rel=0.05)
    binomial = math.sqrt(per.mean() * (1 - per.mean()) / 5500)
    assert got.error > 5 * binomial
    assert got.interval.low < per.mean() < got.interval.high


def test_scenes_of_one_picture_are_resampled_together(truth):
    # The judge is right in half of the pictures and wrong in the others; every picture has ten scenes.
    pictures = {scene: scene[:2] for scene in truth}
    mood = {scene: 1 if int(scene[:2]) % 2 else -1 for scene in truth}
    predicted = {s: {m: mood[s] * v for m, v in own.items()} for s, own in truth.items()}
    apart, together = accuracy(truth, predicted), accuracy(truth, predicted, pictures=pictures)
    assert apart.interval.value == pytest.approx(together.interval.value)
    assert together.error == pytest.approx(np.std([0, 1] * 5, ddof=1) / math.sqrt(10))
    assert together.interval.high - together.interval.low > 3 * (apart.interval.high - apart.interval.low)


def test_paired_differences_know_less_noise_than_the_two_apart(truth):
    draw = random.Random(3)
    shared = {s: {m: v + draw.gauss(0, 1) for m, v in own.items()} for s, own in truth.items()}
    other = {s: {m: v + draw.gauss(0, 0.1) for m, v in own.items()} for s, own in shared.items()}
    apart = difference(truth, shared, other)
    assert apart.high - apart.low < 0.7 * (2 * 1.98 * math.hypot(*(accuracy(truth, p).error for p in (shared, other))))
    same = difference(truth, shared, shared)
    assert same.value == pytest.approx(0.0, abs=1e-12)


def test_the_baselines_need_no_judge(truth):
    # Every method's mean over scenes, and the same without the scene that is rated.
    mean = method_mean(truth)
    held = method_mean(truth, held_out=True)
    by_hand = np.mean([own["PASD"] for own in truth.values()])
    assert mean["007"]["PASD"] == pytest.approx(by_hand)
    without = np.mean([own["PASD"] for scene, own in truth.items() if scene != "007"])
    assert held["007"]["PASD"] == pytest.approx(without)
    assert accuracy(truth, mean).interval.value >= accuracy(truth, held).interval.value > 0.6
    # The original against ten others, and a coin on the 45 pairs of these.
    beaten = np.mean([own["Original"] > v for own in truth.values() for m, v in own.items() if m != "Original"])
    assert original_best(truth)[0] == pytest.approx((10 * beaten + 45 * 0.5) / 55)


def test_several_samples_of_a_method_are_one_method_to_the_baseline():
    truth = {"a": {"x": 1.0, "x #2": 2.0, "y": 0.0}, "b": {"x": 3.0, "x #2": 6.0, "y": 5.0}}
    assert method_mean(truth)["a"] == {"x": 3.0, "x #2": 3.0, "y": 2.5}
    assert method_mean(truth, held_out=True)["a"] == {"x": 4.5, "x #2": 4.5, "y": 5.0}
    assert set(leave_method_out(truth, truth)) == {"x", "y"}
    assert accuracy(truth, method_mean(truth)).ties == pytest.approx(1 / 3)


def test_accuracy_by_gap_and_without_each_method(truth):
    draw = random.Random(4)
    predicted = {s: {m: v + draw.gauss(0, 1) for m, v in own.items()} for s, own in truth.items()}
    # A judge that knows nothing of one method.
    for own in predicted.values():
        own["SUPIR"] = draw.gauss(0, 9)
    rows = by_gap(truth, predicted)
    assert sum(n for *_, n in rows) == 5500
    assert [low for low, *_ in rows] == sorted(low for low, *_ in rows)
    assert rows[0][2] < rows[-1][2]
    left = leave_method_out(truth, predicted)
    assert max(left, key=lambda m: left[m][0]) == "SUPIR"
    assert left["SUPIR"][1] == pytest.approx(0.5, abs=0.1)
    n_with, n_without = 10 * 100, 45 * 100
    whole = accuracy(truth, predicted).interval.value
    for without, with_ in left.values():
        assert (n_with * with_ + n_without * without) / 5500 == pytest.approx(whole)


def test_an_answer_that_follows_the_order_of_asking_is_a_flip():
    steady = {(0, 1): 1.0, (1, 0): 0.0, (0, 2): 0.5, (2, 0): 0.5}
    assert order_flips(steady) == 0.0
    assert order_flips(steady | {(1, 2): 1.0, (2, 1): 1.0}) == pytest.approx(1 / 3)
    assert math.isnan(order_flips({(0, 1): 1.0}))
