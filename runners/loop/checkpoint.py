"""Checkpoints that are whole or not there: safetensors and JSON, hashed, written beside their place and renamed.

A checkpoint is a folder. Its files are written and flushed to the disk first, `manifest.json` with the SHA-256 of
every one of them last, and then the folder gets its name: a crash at any moment leaves the previous checkpoint.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["Checkpoint", "Checkpoints", "DamagedCheckpoint", "file_hash", "verify", "write_folder"]

_MANIFEST = "manifest.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files aren't those its manifest names."""


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


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder all or nothing: `write` fills a temporary one beside it, which is hashed, flushed and renamed.

    What was at `folder` is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        write(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        for path in files:
            _flush(path)
        hashes = {path.relative_to(draft).as_posix(): file_hash(path) for path in files}
        manifest = draft / _MANIFEST
        manifest.write_text(json.dumps({"sha256": hashes}, indent=2) + "\n")
        _flush(manifest)
        _flush(draft)
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}.replaced")
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
    return folder


def verify(folder: Path) -> None:
    """Check a folder against its manifest.

    Raises:
        DamagedCheckpoint: naming the first file that is missing, changed, or not in the manifest.
    """
    try:
        hashes = json.loads((folder / _MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder} has no readable {_MANIFEST}") from error
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        if file_hash(path) != expected:
            raise DamagedCheckpoint(f"{path} has changed since it was written (its SHA-256 isn't the manifest's)")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = sorted(found - set(hashes) - {_MANIFEST})
    if extra:
        raise DamagedCheckpoint(f"{folder / extra[0]} is not in the manifest")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: its folder, `tensors` by file stem and name, and the JSON `values`."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage: saved, rotated, and the newest whole one found again.

    Args:
        folder: where they go, one folder each, named by its number.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"runner.keep is at least 1, got {keep}")
        self.folder, self._keep = folder, keep

    def save(self, number: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> Path:
        """Write checkpoint `number` and drop the oldest ones beyond `keep`.

        Args:
            tensors: by file stem, then by name; each group becomes one safetensors file.
            values: everything else, JSON values.
        """
        from safetensors.torch import save_file

        def write(draft: Path) -> None:
            for stem, named in tensors.items():
                whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
                save_file(whole, draft / f"{stem}.safetensors")
            (draft / "values.json").write_text(json.dumps(values, indent=1) + "\n")

        written = write_folder(self.folder_of(number), write)
        for old in self._found()[self._keep :]:
            shutil.rmtree(old)
        return written

    def folder_of(self, number: int) -> Path:
        """Where checkpoint `number` is, or would be."""
        return self.folder / f"{number:08d}"

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. A damaged one is named in a warning and passed over."""
        found = self._found()
        for folder in found:
            try:
                verify(folder)
            except DamagedCheckpoint as damage:
                last = folder == found[-1]
                then = "there is none before, so this starts afresh" if last else "using the one before"
                warnings.warn(f"passing over a damaged checkpoint: {damage}; {then}", stacklevel=2)
                continue
            return read(folder)
        return None

    def _found(self) -> list[Path]:
        """The folders of checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def read(folder: Path) -> Checkpoint:
    """Read a verified checkpoint."""
    from safetensors.torch import load_file

    tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(folder, tensors, json.loads((folder / "values.json").read_text()))
