"""Image files to RGB: what a folder of photographs really holds, read in one documented way or refused by name."""

import os
import stat
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from srgym.errors import MissingFile, Refusal

__all__ = [
    "MAX_PIXELS", "SUFFIXES", "BadImage", "ImageCache", "has_transparency", "image_files", "image_size", "is_grey",
    "read_image", "to_float",
]  # fmt: skip

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Pillow's own threshold of suspicion: 268 MB of RGB, above any benchmark's images and any camera's but a few.
MAX_PIXELS = 89_478_485

_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap the sides
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPAQUE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


class BadImage(Refusal):
    """A file that can't be used as an image; the message names the file, what was expected and what came."""


class _NoImage(BadImage, MissingFile):
    """A place where there is no file."""


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image file as uint8 RGB [3, H, W].

    - EXIF orientations 1-8 are applied, before anything else looks at the sides.
    - Transparency (RGBA, LA, a palette's transparent colour) is composited on white, as most viewers show it.
    - Greyscale and 1 bit become three equal channels; a palette and CMYK become RGB (Pillow's conversion; embedded
      colour profiles aren't applied).
    - 16-bit greyscale is rounded to 8 bit (65535 is 255); of 16-bit RGB the high byte is kept.
    - Of several frames or pages the first is read.

    Args:
        max_pixels: larger images are refused from their header, before they are decoded.

    Raises:
        FileNotFoundError: when there is no such file.
        BadImage: for a file that is no image, is cut off or damaged, is too large, or holds values whose white isn't
            known (floating point, 32-bit integers, LAB).
    """
    path = Path(path)
    with _opened(path, max_pixels) as image:
        try:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
        except Exception as error:  # Pillow's decoders raise of many kinds on damaged data
            raise BadImage(
                f"{path}: expected a whole image file, got one that is cut off or damaged ({error})"
            ) from error
        pixels = _rgb(upright, image.info, path)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) as `read_image` would give it, from the header alone. Raises as `read_image` does."""
    path = Path(path)
    with _opened(path, max_pixels) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # its size is turned already in some versions of Pillow
            width, height = image.tag_v2.get(IMAGEWIDTH, width), image.tag_v2.get(IMAGELENGTH, height)
        # Pillow decodes a whole PNG to look for EXIF data behind its pixels, where next to nobody puts them.
        seen = image.format != "PNG" or "exif" in image.info
        try:
            turned = seen and _orientation(image) in _TURNED
        except Exception as error:
            raise BadImage(f"{path}: expected a whole image file, got damaged EXIF data ({error})") from error
    return (width, height) if turned else (height, width)


def to_float(image: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return image.float() / 255


def is_grey(path: str | os.PathLike[str]) -> bool:
    """Whether an image file has one channel of brightness and no colours."""
    with Image.open(path) as image:
        return image.mode in ("1", "L", "LA") or image.mode.startswith("I")  # I;16 and its byte orders


def has_transparency(path: str | os.PathLike[str]) -> bool:
    """Whether any pixel of an image file isn't opaque."""
    with Image.open(path) as image:
        if not (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
            return False
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        return bool(lowest < 255)


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files under a folder, sorted by their path in it.

    Files count by suffix (`SUFFIXES`, in any case), in subfolders and behind links too; hidden ones don't.

    Raises:
        FileNotFoundError: when the folder doesn't exist or isn't one.
        ValueError: when it holds no image file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFile(f"expected a folder of images, got {root}, which {_what_is(root)}")
    files, visited = [], set()
    for here, inside, names in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        inside[:] = [] if real in visited else [name for name in inside if not name.startswith(".")]
        if real not in visited:
            visited.add(real)  # a link to a folder above would go round for ever
            files += [Path(here, name) for name in names if not name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not images:
        raise Refusal(f"expected images ({', '.join(sorted(SUFFIXES))}) under {root}, got none")
    return images


class ImageCache:
    """Decoded images, the least recently used dropped first.

    Args:
        megabytes: how much is kept; an image larger than that is read each time.
    """

    def __init__(self, megabytes: float = 512) -> None:
        self._limit = int(megabytes * 2**20)
        self._held: OrderedDict[Path, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(self, path: Path) -> Tensor:
        """`read_image`, remembered. Several threads may read at once; the tensor is shared, so never written to."""
        with self._lock:
            if path in self._held:
                self._held.move_to_end(path)
                return self._held[path]
        image = read_image(path)
        with self._lock:
            if path not in self._held and image.nbytes <= self._limit:
                self._held[path] = image
                self._bytes += image.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return image

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImageCache":
        # A lock can't be copied, and Gymnasium copies an environment's arguments.
        return ImageCache(self._limit / 2**20)


_KINDS = (
    (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link to nothing"),
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def _kind(path: Path) -> str:
    """What there is at a path, in words, without opening it: a pipe would be waited for."""
    try:
        mode = path.stat().st_mode
    except OSError:
        try:
            mode = path.lstat().st_mode  # of a link that leads nowhere
        except FileNotFoundError:
            return "nothing"
        except OSError as error:
            return f"nothing that can be seen ({error.strerror})"
    return next((name for fits, name in _KINDS if fits(mode)), "neither a file nor a folder")


def _what_is(path: Path) -> str:
    return "is a file" if path.exists() else "doesn't exist"


def _opened(path: Path, max_pixels: int) -> Image.Image:
    """The file with its header read, and of an allowed size."""
    kind = _kind(path)
    if kind != "a file":
        no_file = _NoImage if kind in ("nothing", "a link to nothing") else BadImage
        raise no_file(f"expected an image file at {path}, got {kind}")
    try:
        image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"{path}: expected at most {max_pixels:,} pixels, got far more ({error})") from error
    except Exception as error:
        raise BadImage(f"{path}: expected an image file, got one that can't be read as an image ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise BadImage(f"{path}: expected at most {max_pixels:,} pixels, got {width} x {height} = {width * height:,}")
    return image


def _orientation(image: Image.Image) -> int:
    orientation: int = image.getexif().get(_ORIENTATION, 1)
    return orientation


def _rgb(image: Image.Image, info: dict[str | tuple[int, int], Any], path: Path) -> npt.NDArray[np.uint8]:
    """[H, W, 3] of whatever mode came."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _from_16_bit(np.asarray(image), path)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in _TRANSPARENT or (image.mode in _OPAQUE and "transparency" in info):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, layer).convert("RGB"))
    if image.mode not in _OPAQUE:
        raise BadImage(
            f"{path}: expected grey, RGB, palette or CMYK pixels of 8 or 16 bit, got Pillow's mode '{image.mode}', "
            "whose white isn't known"
        )
    return np.array(image.convert("RGB"))


def _from_16_bit(values: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.uint8]:
    wide = values.astype(np.float64)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadImage(f"{path}: expected 8- or 16-bit pixels, got values from {wide.min():.0f} to {wide.max():.0f}")
    return np.rint(wide / 257).astype(np.uint8)
