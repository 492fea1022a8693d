"""How numbers are written: to the digit that their interval supports."""

import math

from srgym.runners.measure.statistics import Interval

__all__ = ["amount", "interval_text", "plain", "signed"]


def _decimals(width: float) -> int:
    """Two significant digits of the interval's width, at most five decimals."""
    if not math.isfinite(width) or width <= 0:
        return 3
    return min(5, max(0, 1 - math.floor(math.log10(width))))


def _shown(value: float, decimals: int, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text.replace("-", "−") if float(text) != 0 else text.lstrip("+-")


def plain(value: float, decimals: int = 3) -> str:
    """A number without an interval; a dash where there is none."""
    return _shown(value, decimals)


def interval_text(interval: Interval, sign: bool = False, more: int = 0) -> str:
    """`value [low, high]`; the bounds are left out where there are none.

    Args:
        more: decimals beyond what the interval supports, where levels of one sample are told apart.
    """
    decimals = _decimals(interval.high - interval.low) + more
    value = _shown(interval.value, decimals, sign)
    if not math.isfinite(interval.low):
        return value
    return f"{value} [{_shown(interval.low, decimals, sign)}, {_shown(interval.high, decimals, sign)}]"


def signed(interval: Interval) -> str:
    """A difference with its interval, signs shown."""
    return interval_text(interval, sign=True)


def amount(value: float) -> str:
    """A large count as a person reads it: 950, 12.3 k, 4.56 M, 7.8 G, 1.2 T, 3.4 P."""
    if not math.isfinite(value):
        return "-"
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
