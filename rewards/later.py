"""Scores that come later: a reward that has asked a server hands out a function that waits, and others go on meanwhile.

Whatever does its own arithmetic is done when it is called, by the caller's thread, so that waiting changes no number.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

__all__ = ["Later", "gathered", "settled", "then"]

A = TypeVar("A")
B = TypeVar("B")

Later: TypeAlias = A | Callable[[], A]
"""A value that is there, or a function without arguments that waits for it; it is called once."""


def settled(value: Later[A]) -> A:
    """The value, waited for where it isn't there yet."""
    return value() if callable(value) else value


def then(value: Later[A], use: Callable[[A], B]) -> Later[B]:
    """What `use` makes of a value, as soon as it is there."""
    if not callable(value):
        return use(value)
    wait: Callable[[], A] = value
    return lambda: use(wait())


def gathered(values: Mapping[str, Later[A]]) -> Later[dict[str, A]]:
    """Several values by name, as soon as all are there."""
    if not any(callable(value) for value in values.values()):
        return dict(values)  # type: ignore[arg-type]
    return lambda: {name: settled(value) for name, value in values.items()}
