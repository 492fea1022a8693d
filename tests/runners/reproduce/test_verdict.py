"""The verdict's rules, on synthetic cells: seeds and photographs drawn around a known difference."""

import numpy as np
import pytest

from srgym.runners.measure.resampling import LEVEL, Interval
from srgym.runners.measure.statistics import crossed_difference
from srgym.runners.reproduce.verdict import Verdict, corrected, judge, summed

MARGIN = 0.2


def cells(difference: float, seeds: int = 8, photographs: int = 12, spread: float = 0.02, seed: int = 0) -> Interval:
    """Two arms of so many seeds on four crops of so many photographs, `difference` apart."""
    generator = np.random.default_rng(seed)
    names = np.repeat([f"p{i}" for i in range(photographs)], 4)
    scene = generator.normal(28.0, 3.0, photographs).repeat(4)

    def arm(mean: float) -> np.ndarray:
        of_seeds = generator.normal(0, spread, (seeds, 1))
        of_photographs = generator.normal(0, spread, photographs).repeat(4)
        return mean + scene + of_seeds + of_photographs + generator.normal(0, spread, (seeds, len(names)))

    return crossed_difference(arm(difference), arm(0.0), names)


@pytest.mark.parametrize(
    ("difference", "expect", "conclusion"),
    [
        (0.5, "up", "reproduced"),
        (-0.5, "up", "contradicted"),
        (0.0, "up", "no effect of that size"),
        (-0.5, "down", "reproduced"),
        (0.5, "down", "contradicted"),
        (0.0, "down", "no effect of that size"),
        (0.5, "held", "reproduced"),
        (0.0, "held", "reproduced"),
        (-0.5, "held", "contradicted"),
    ],
)  # fmt: skip
def test_an_effect_none_and_the_opposite(difference, expect, conclusion):
    assert judge(cells(difference), expect, MARGIN).conclusion == conclusion


@pytest.mark.parametrize("expect", ["up", "down", "held"])
@pytest.mark.parametrize("difference", [-0.2, 0.0, 0.2])
def test_too_few_and_too_noisy_cells_tell_nothing(difference, expect):
    assert judge(cells(difference, seeds=3, photographs=4, spread=0.5), expect, MARGIN).conclusion == "inconclusive"


def test_two_seeds_or_one_photograph_give_no_interval_and_no_verdict():
    assert judge(cells(0.5, seeds=2), "up", MARGIN) == Verdict("inconclusive")
    assert judge(Interval(0.5, np.nan, np.nan, 1), "held", MARGIN).conclusion == "inconclusive"


@pytest.mark.parametrize("seed", range(40))
def test_a_verdict_is_drawn_just_when_the_whole_interval_lies_there(seed):
    """The rule as it is printed, beside its tests of Student's t."""
    generator = np.random.default_rng(seed)
    interval = cells(generator.uniform(-0.5, 0.5), 4, 5, generator.uniform(0.01, 0.2), seed)
    low, high = interval.low, interval.high
    up = "reproduced" if low > MARGIN else "contradicted" if high < -MARGIN else None
    inside = "no effect of that size" if low > -MARGIN and high < MARGIN else "inconclusive"
    assert judge(interval, "up", MARGIN).conclusion == (up or inside)
    held = "reproduced" if low > -MARGIN else "contradicted" if high < -MARGIN else "inconclusive"
    assert judge(interval, "held", MARGIN).conclusion == held
    assert (judge(interval, "up", MARGIN).p <= 1 - LEVEL) == (
        judge(interval, "up", MARGIN).conclusion != "inconclusive"
    )


def test_a_line_stands_for_no_difference():
    ratio = Interval(7.0, 6.0, 8.0, 5, 5, 0.0, 0.4, 6.0)
    assert judge(ratio, "up", 0.0, line=5.0).conclusion == "reproduced"
    assert judge(ratio, "up", 0.0, line=9.0).conclusion == "contradicted"
    assert judge(ratio, "up", 0.0, line=7.5).conclusion == "inconclusive"


def test_several_contrasts_are_corrected_by_holm():
    """By hand: .01, .03 and .04 become .03, .06 and .06, and one without an interval isn't counted."""
    verdicts = [Verdict("reproduced", p) for p in (0.04, 0.01, 0.03)] + [Verdict("inconclusive")]
    fixed = corrected(verdicts)
    assert [round(verdict.p, 6) for verdict in fixed[:3]] == [0.06, 0.03, 0.06]
    assert [verdict.conclusion for verdict in fixed] == ["inconclusive", "reproduced", "inconclusive", "inconclusive"]
    assert [verdict.uncorrected for verdict in fixed] == ["reproduced", None, "reproduced", None]


def test_without_an_effect_errors_are_rare():
    """At the edge of the margin, where "reproduced" is wrong just so: about half of 1 - LEVEL of 200 worlds."""
    wrong = sum(judge(cells(MARGIN, 5, 8, 0.1, seed), "up", MARGIN).conclusion == "reproduced" for seed in range(200))
    assert wrong <= 12  # 5 expected; 12 or more have a chance of .3%


@pytest.mark.parametrize(
    ("conclusions", "said"),
    [
        ([], "not run"),
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "inconclusive"], "1 of 2 parts reproduced"),
        (["reproduced", "contradicted"], "1 of 2 parts reproduced, 1 contradicted"),
        (["contradicted", "contradicted"], "contradicted"),
        (["contradicted", "inconclusive"], "1 of 2 parts contradicted"),
        (["no effect of that size"], "no effect of that size"),
        (["no effect of that size", "inconclusive"], "inconclusive"),
    ],
)
def test_a_claim_is_reproduced_if_all_of_it_is(conclusions, said):
    assert summed(conclusions) == said
