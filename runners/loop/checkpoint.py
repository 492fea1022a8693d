"""Checkpoints that are whole or not there: sealed folders of safetensors and JSON, written beside their place and
renamed, so that a crash at any moment leaves the previous one."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from srgym.errors import Refusal
from srgym.files import write_json
from srgym.sealed import (
    Damaged,
    read_object,
    read_tensors,
    replaced_folders,
    restore,
    verify,
    write_folder,
    write_tensors,
)

__all__ = ["Checkpoint", "Checkpoints"]


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
            raise Refusal(f"runner.keep is at least 1, got {keep}")
        self.folder, self._keep = folder, keep

    def save(self, number: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> Path:
        """Write checkpoint `number` and drop the oldest ones beyond `keep`.

        Args:
            tensors: by file stem, then by name; each group becomes one safetensors file.
            values: everything else, JSON values.
        """

        def write(draft: Path) -> None:
            for stem, named in tensors.items():
                # Clones: some tensors share their memory, which safetensors doesn't write.
                write_tensors(
                    draft / f"{stem}.safetensors", {name: t.detach().cpu().clone() for name, t in named.items()}
                )
            write_json(draft / "values.json", values)

        written = write_folder(self.folder_of(number), write)
        for old in self._found()[self._keep :]:
            shutil.rmtree(old)
        return written

    def folder_of(self, number: int) -> Path:
        """Where checkpoint `number` is, or would be."""
        return self.folder / f"{number:08d}"

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. A damaged one is named in a warning and passed over."""
        folders = self._found()
        for folder in folders:
            try:
                verify(folder)
            except Damaged as damage:
                last = folder == folders[-1]
                then = "there is none before, so this starts afresh" if last else "using the one before"
                warnings.warn(f"passing over a damaged checkpoint: {damage}; {then}", stacklevel=2)
                continue
            return read(folder)
        return None

    def _found(self) -> list[Path]:
        """The folders of checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        for folder in replaced_folders(self.folder):
            restore(folder)
        return sorted((p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def read(folder: Path) -> Checkpoint:
    """Read a verified checkpoint."""
    tensors = {path.stem: read_tensors(path) for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(folder, tensors, read_object(folder / "values.json", {}))
