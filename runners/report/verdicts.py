"""Sentences that say plainly what the numbers support, and alerts where they bend the wrong way."""

from collections.abc import Mapping, Sequence

import pandas as pd

from srgym.runners.measure.statistics import Interval
from srgym.runners.report.document import Callout
from srgym.runners.report.numbers import signed
from srgym.runners.report.summary import difference, level

__all__ = ["against_baselines", "alerts", "claim", "compared", "hacking_alert"]


def compared(difference: Interval) -> str:
    """How an interval of a difference lies."""
    if difference.above_zero:
        return "the interval lies above zero"
    if difference.below_zero:
        return "the interval lies below zero"
    if difference.seeds == 2:
        return "two seeds show a direction, and no interval"
    if difference.low != difference.low:
        return f"there is no interval from {difference.units} photograph{'s' if difference.units != 1 else ''}"
    return "the interval includes zero"


def against_baselines(frame: pd.DataFrame, name: str, baselines: Sequence[str], metric: str) -> str:
    """How a method does beside the best of what costs no reinforcement learning; empty where there is none."""
    levels = {other: level(frame, other, metric).value for other in baselines}
    known = {other: value for other, value in levels.items() if value == value}
    if not known:
        return ""
    best = max(known, key=lambda other: known[other])
    gap = difference(frame, name, best, metric)
    return f"Over the best that costs no reinforcement learning ({best}): {signed(gap)}; {compared(gap)}."


def claim(
    frame: pd.DataFrame,
    metric: str,
    final: str,
    start: str,
    control: str | None,
    fidelity: Sequence[str],
    judges: Mapping[str, Sequence[str]],
) -> tuple[bool, list[Callout]]:
    """Whether the final policy beats its start and the random-reward control, and no judge sees it fall.

    Args:
        metric: what was trained on, as it stands in the frame.
        final, start, control: methods of the frame.
        fidelity: metrics that must not fall significantly.
        judges: independent metrics that mustn't either, by purpose (see `srgym.rewards.kin.independent_judges`);
            without one of each purpose the claim isn't supported, nor where all perceptual ones see a loss, be it
            significant or not.

    Returns:
        Whether all of it holds, and a verdict for each part, the sum of it first.
    """
    gain = difference(frame, final, start, metric)
    parts = [(gain.above_zero, f"**{metric}**, {final} over {start}: {signed(gain)}; {compared(gain)}.")]
    if control is not None:
        above = difference(frame, final, control, metric)
        text = f"**{metric}**, {final} over the random-reward control {control}: {signed(above)}; {compared(above)}."
        parts.append((above.above_zero, text))
    else:
        parts.append((False, "There is no run with a random reward at the same budget, so no gain can be claimed."))
    for kind, names in judges.items():
        if not names:
            text = f"No {kind} metric was measured that is independent of what was trained on: no gain can be claimed."
            parts.append((False, text))
    for name in dict.fromkeys([*fidelity, *(name for names in judges.values() for name in names)]):
        change = difference(frame, final, start, name)
        ends = "not significantly lower" if not change.below_zero else "significantly lower"
        parts.append((not change.below_zero, f"**{name}**, {final} over {start}: {signed(change)}; {ends}."))
    seen = [difference(frame, final, start, name).value for name in judges.get("perceptual", ())]
    if seen and max(seen) < 0:
        text = f"Every independent perceptual judge sees {final} below {start}, if not significantly."
        parts.append((False, text))
    holds = all(good for good, _ in parts)
    return holds, [_sum(holds, final, start, metric, gain.units), *(_part(good, text) for good, text in parts)]


def _part(good: bool, text: str) -> Callout:
    return Callout("good" if good else "bad", text)


def _sum(holds: bool, final: str, start: str, metric: str, photographs: int) -> Callout:
    where = f"on these {photographs} photographs"
    if holds:
        return Callout(
            "good",
            f"**The claim holds {where}**: {final} raises {metric} over {start} and over the random-reward control, "
            "and neither fidelity nor an independent judge is significantly lower.",
        )
    return Callout("bad", f"**The claim does not hold {where}.** Which part of it fails is said below.")


def hacking_alert(name: str, reward: Interval, others: Mapping[str, Interval]) -> Callout | None:
    """An alert where the training reward rises while a metric that wasn't trained on falls, both significantly.

    Args:
        name: who is told of. reward, others: gains over the start.
    """
    fallen = [f"{metric} {signed(gap)}" for metric, gap in others.items() if gap.below_zero]
    if not reward.above_zero or not fallen:
        return None
    return Callout(
        "warning",
        f"**{name}**: the training reward rises ({signed(reward)}) while {', '.join(fallen)} "
        f"fall{'s' if len(fallen) == 1 else ''}: the sign of a reward that is being gamed.",
    )


def alerts(
    frame: pd.DataFrame, names: Sequence[str], start: str, metric: str, held_out: Sequence[str]
) -> list[Callout]:
    """`hacking_alert` for methods of one frame."""
    callouts = []
    for name in names:
        others = {other: difference(frame, name, start, other) for other in held_out}
        alert = hacking_alert(name, difference(frame, name, start, metric), others)
        if alert is not None:
            callouts.append(alert)
    return callouts
