"""What every part of srgym writes to disk in one way: JSON that is whole or not there, and images as 8-bit PNG."""

import io
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srgym.errors import Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["check_folder", "locked", "naming", "to_bytes", "to_png", "write_json", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk and rename it, so that a reader sees all of it or none, after
    a loss of power too; folders are made.

    Raises:
        OSError: naming `path`; what was there before still is.
    """
    draft = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that comes of writing a file name it; the system's own often doesn't."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def check_folder(folder: Path, setting: str = "out") -> None:
    """Refuse a folder that can't be made or written into, before there is something to write.

    Raises:
        Refusal: naming the setting that it comes from, and what is in the way.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise Refusal(f"{setting}={folder}: expected a folder, or a place for one, and {place} is a file")
    if not os.access(place, os.W_OK):
        raise Refusal(f"{setting}={folder}: {place} can't be written into")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to this process; it is free again when the process ends, however it ends.

    Raises:
        Refusal: where another process has it, naming that.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    owner, lock = folder / ".owner.json", FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        known = json.loads(owner.read_text()) if owner.is_file() else {}
        who = f"process {known.get('process', 'unknown')} on {known.get('host', 'another machine')}"
        raise Refusal(
            f"{folder} is in use by {who}, since {known.get('since', 'a while')}: wait for it, or choose another folder"
        ) from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(owner, {"process": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; what JSON doesn't know is written as its text."""
    write_whole(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def to_bytes(image: "Tensor") -> "Tensor":
    """Values in [0, 1], clipped and rounded to 8 bits."""
    return (image.float().clamp(0, 1) * 255).round().byte()


def to_png(image: "Tensor | NDArray[Any]", **options: Any) -> bytes:
    """An image [3, H, W] as a PNG file: in [0, 1], or of 8 bits already (see `to_bytes`).

    Args:
        options: of Pillow's PNG writer: `compress_level`, `pnginfo`, `icc_profile`, `exif`.
    """
    import torch
    from PIL import Image

    bits = torch.as_tensor(image).detach()
    pixels = (bits if bits.dtype == torch.uint8 else to_bytes(bits)).permute(1, 2, 0).contiguous().cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()
