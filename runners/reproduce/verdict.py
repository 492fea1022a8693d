"""What an interval says of a claim: pure functions, all of them.

A claim expects a difference to lie above the margin ("up"), below minus the margin ("down"), or no lower than minus the
margin ("held"). Each conclusion is a one-sided test of Student's t against its end of the margin, at half of 1 - LEVEL,
so that it is drawn just when the whole interval lies there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from srgym.runners.measure.resampling import LEVEL, Interval
from srgym.runners.measure.statistics import holm

__all__ = ["Conclusion", "Expectation", "Verdict", "corrected", "judge", "summed"]

Expectation = Literal["up", "down", "held"]
Conclusion = Literal["reproduced", "contradicted", "no effect of that size", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """A conclusion, and how likely the nearest of its rivals would have given such an interval.

    Attributes:
        p: two-sided, of the conclusion that is nearest to being drawn; NaN where there is no interval.
        uncorrected: what was concluded before the correction for several contrasts, where that was more.
    """

    conclusion: Conclusion
    p: float = float("nan")
    uncorrected: Conclusion | None = None


def judge(interval: Interval, expect: Expectation, margin: float, line: float = 0.0) -> Verdict:
    """The verdict on one contrast.

    Args:
        interval: of the difference.
        expect: where the claim says that it lies.
        margin: the least difference that matters, at least 0.
        line: what stands for no difference (of a ratio, say).
    """
    chances = _chances(interval, expect, margin, line)
    if not chances:
        return Verdict("inconclusive")
    nearest = min(chances, key=lambda conclusion: chances[conclusion])
    p = min(1.0, 2 * chances[nearest])
    return Verdict(nearest if p <= 1 - LEVEL else "inconclusive", p)


def _chances(
    interval: Interval, expect: Expectation, margin: float, line: float
) -> Mapping[Conclusion, float]:  # fmt: skip
    """One-sided p of each conclusion that can be drawn; empty without an interval."""
    if not interval.error > 0:
        return {}

    def above(bound: float) -> float:
        return float(stats.t.sf((interval.value - bound) / interval.error, interval.freedom))

    high, low = line + margin, line - margin
    if expect == "held":
        return {"reproduced": above(low), "contradicted": 1 - above(low)}
    up, down = above(high), 1 - above(low)
    inside = max(above(low), 1 - above(high))
    ours, its = (up, down) if expect == "up" else (down, up)
    found: dict[Conclusion, float] = {"reproduced": ours, "contradicted": its}
    return found | ({"no effect of that size": inside} if margin > 0 else {})


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts on several contrasts that are read together, by Holm's method: what doesn't stand is inconclusive."""
    adjusted = holm([verdict.p for verdict in verdicts])
    return [
        replace(verdict, p=p, conclusion="inconclusive", uncorrected=verdict.conclusion)
        if verdict.conclusion != "inconclusive" and p > 1 - LEVEL
        else replace(verdict, p=p)
        for verdict, p in zip(verdicts, adjusted, strict=True)
    ]


def summed(conclusions: Sequence[Conclusion]) -> str:
    """What the primary contrasts of one claim say together; a claim is reproduced if all of its parts are."""
    kinds, count = set(conclusions), len(conclusions)
    if not kinds:
        return "not run"
    if len(kinds) == 1:
        return conclusions[0]
    held, failed = (sum(c == kind for c in conclusions) for kind in ("reproduced", "contradicted"))
    if held:
        return f"{held} of {count} parts reproduced" + (f", {failed} contradicted" if failed else "")
    return f"{failed} of {count} parts contradicted" if failed else "inconclusive"
