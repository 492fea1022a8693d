"""Methods that a judge's pool shares with what it is measured on: it isn't measured on strangers then."""

from collections.abc import Iterable

__all__ = ["shared_methods"]


def shared_methods(pool: Iterable[str], measured: Iterable[str]) -> list[str]:
    """The pool's methods that are among those measured, by their names without case, dashes and scale."""
    theirs = {_plain(name) for name in measured}
    return [name for name in pool if _plain(name) in theirs]


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removesuffix("plus").removesuffix("x4")
