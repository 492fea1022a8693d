"""Whether two pictures are one: by their bytes, or by what they look like."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

__all__ = ["Fingerprint", "fingerprint"]

_SIDE, _KEPT = 32, 8
_NEAR = 4  # bits of 63; of unrelated photographs about 32 differ
_FLAT = 2.0  # grey levels: a picture without any contrast looks like every other one


@dataclass(frozen=True)
class Fingerprint:
    """A picture's SHA-256, and a perceptual hash: which of its 63 slowest waves are above their median, which scaling
    and JPEG leave alone.

    Attributes:
        bits: None of a picture that is flat.
    """

    sha256: str
    bits: int | None

    def same_as(self, other: "Fingerprint") -> bool:
        """Whether the two are one picture."""
        if self.sha256 == other.sha256:
            return True
        return self.bits is not None and other.bits is not None and (self.bits ^ other.bits).bit_count() <= _NEAR

    def as_text(self) -> str:
        return "" if self.bits is None else f"{self.bits:016x}"

    @classmethod
    def from_text(cls, sha256: str, text: str) -> "Fingerprint":
        return cls(sha256, int(text, 16) if text else None)


def fingerprint(png: bytes) -> Fingerprint:
    """Of a picture file."""
    with Image.open(BytesIO(png)) as image:
        small = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    waves: NDArray[Any] = dctn(small, norm="ortho")[:_KEPT, :_KEPT].ravel()[1:]
    bits = None
    if small.std() >= _FLAT:
        above = waves > np.median(waves)
        bits = int("".join("1" if bit else "0" for bit in above), 2)
    return Fingerprint(hashlib.sha256(png).hexdigest(), bits)
