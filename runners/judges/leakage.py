"""Methods that a judge's pool shares with what it is measured on: it isn't measured on strangers then."""

from collections.abc import Iterable

__all__ = ["SRIQA", "shared_methods"]

SRIQA = ("SwinIR", "RealESRNet", "RealESRGAN", "BSRGAN", "HGGT", "StableSR", "SUPIR", "SeeSR", "SinSR", "OSEDiff")
"""SRIQA-Bench's methods: two of regression, three with a GAN, five of diffusion."""

_ALIASES = {"rrdb": "realesrnet", "rrdbnet": "realesrnet"}


def shared_methods(pool: Iterable[str], measured: Iterable[str]) -> list[str]:
    """The pool's methods that are among those measured, whatever the case, dashes and scale in their names."""
    theirs = {_plain(name) for name in measured}
    return [name for name in pool if _plain(name) in theirs]


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    letters = letters.removesuffix("plus").removesuffix("x4")
    return _ALIASES.get(letters, letters)
