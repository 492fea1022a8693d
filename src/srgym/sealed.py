"""Folders that are whole or not there, and files that are what was written.

A folder is sealed by `manifest.json`, the SHA-256 of every other file in it, which is written last. What is loaded from
a sealed folder is checked first; what isn't as it should be is named.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from typing import TYPE_CHECKING, Any

from srgym.errors import Refusal
from srgym.files import naming, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Damaged",
    "check_shapes",
    "drafted",
    "file_hash",
    "read_object",
    "read_tensors",
    "replaced_folders",
    "restore",
    "seal",
    "sort_header",
    "verify",
    "verify_if_sealed",
    "write_folder",
    "write_tensors",
]

_MANIFEST, _REPLACED = "manifest.json", ".replaced"
_LOADED = {".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".parquet"}  # what some loader might pick up
_MOST_JSON = 64 * 2**20


class Damaged(Refusal):
    """Files that aren't what was written."""


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Write the manifest of a folder's files, those of folders in it too, and flush all of them to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _MANIFEST)
    for path in files:
        _flush(path)
    hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
    write_json(folder / _MANIFEST, {"sha256": hashes})
    _flush(folder)


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """A folder all or nothing: what is written into the one that is yielded is at `folder` when all of it is there.

    What was at `folder` is replaced; between two renames it lies at `.NAME.replaced`, from where `restore` fetches it.

    Raises:
        OSError: where it can't be written, naming a file.
    """
    draft, replaced = _beside(folder)
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    try:
        yield draft
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
            draft.rename(folder)
            shutil.rmtree(replaced)
        else:
            draft.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a sealed folder all or nothing (see `drafted`): `write` fills it."""
    with drafted(folder) as draft:
        write(draft)
        seal(draft)
    return folder


def restore(folder: Path) -> None:
    """Put a folder back that a crash left between the two renames of `write_folder`."""
    _, replaced = _beside(folder)
    if replaced.is_dir():
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(folder)


def replaced_folders(parent: Path) -> list[Path]:
    """The folders under `parent` that `restore` has something to do for."""
    return [parent / path.name[1 : -len(_REPLACED)] for path in parent.glob(f".*{_REPLACED}")]


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written, and where what it replaces goes."""
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}{_REPLACED}")


def verify(folder: Path) -> None:
    """Check a folder against its manifest.

    Raises:
        Damaged: naming the first file that is missing, changed, or that a loader might read and the manifest hasn't.
    """
    hashes = read_object(folder / _MANIFEST, {"sha256": dict})["sha256"]
    for name, expected in hashes.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{folder / _MANIFEST} names '{name}', which lies outside of its folder")
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if file_hash(path) != expected:
            raise Damaged(f"{path} has changed since it was written (its SHA-256 isn't the manifest's)")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in _LOADED}
    extra = sorted(present - set(hashes) - {_MANIFEST})
    if extra:
        raise Damaged(f"{folder / extra[0]} is not in the manifest")


def verify_if_sealed(folder: Path) -> None:
    """`verify`, with a warning for a folder without a manifest, whose files can't be checked.

    Raises:
        Damaged: as `verify`.
    """
    if (folder / _MANIFEST).exists():
        verify(folder)
    else:
        warnings.warn(f"{folder} has no {_MANIFEST}: whether its files are those written can't be told", stacklevel=3)


def read_object(path: Path, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        keys: what it must hold, and of which types.

    Raises:
        Damaged: naming the file and what isn't as it should be.
    """
    try:
        if path.stat().st_size > _MOST_JSON:
            raise Damaged(f"{path}: expected at most {_MOST_JSON >> 20} MiB of JSON, got {path.stat().st_size >> 20}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path}: expected a JSON object, got {type(value).__name__}")
    for key, kind in keys.items():
        if key not in value:
            raise Damaged(f"{path}: expected the key '{key}', got {', '.join(map(repr, list(value)[:8])) or 'none'}")
        if not isinstance(value[key], kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise Damaged(f"{path}: expected {names} as '{key}', got {type(value[key]).__name__}")
    return value


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, on the CPU.

    Raises:
        Damaged: if it isn't one, or is cut off.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path} can't be read as safetensors: {error}") from error


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, from any device, of the permissions that any new file has.

    Raises:
        OSError: naming `path`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with naming(path):
        path.unlink(missing_ok=True)
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(whole, path, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error
        sort_header(path)
        path.chmod(S_IMODE(mode))  # safetensors' own are for the owner alone


def sort_header(path: Path) -> None:
    """safetensors writes several metadata entries in an order of chance: sorted, the same tensors are the same file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def check_shapes(path: Path, stored: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> None:
    """Compare what a file holds with what a model has.

    Raises:
        Damaged: naming the first tensor that is missing, has another shape, or belongs to no part.
    """
    for name, tensor in expected.items():
        if name not in stored or stored[name].shape != tensor.shape:
            came = tuple(stored[name].shape) if name in stored else "nothing"
            raise Damaged(f"'{name}' in {path}: expected {tuple(tensor.shape)}, got {came}")
    surplus = [name for name in stored if name not in expected]
    if surplus:
        raise Damaged(f"'{surplus[0]}' in {path} belongs to no part of the model")
