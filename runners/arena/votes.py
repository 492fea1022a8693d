"""Votes on disk: lines that are only ever appended to, and are there when a vote was answered for."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srgym.sealed import Damaged

__all__ = ["Lines", "read_lines"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file.

    A last line without its end was being written when the machine stopped: nobody was told that it counts, so it
    doesn't.

    Raises:
        Damaged: for any other line that isn't an object.
    """
    if not path.is_file():
        return []
    whole, end, _ = path.read_bytes().rpartition(b"\n")
    rows = []
    for number, line in enumerate((whole + end).splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Damaged(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise Damaged(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        rows.append(row)
    return rows


class Lines:
    """A file of JSON lines to append to, by one process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        whole = path.read_bytes().rpartition(b"\n")
        self._file.truncate(len(whole[0]) + len(whole[1]))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            OSError: where it can't be written; the file is as it was before.
        """
        before = os.fstat(self._file.fileno()).st_size
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self._file.name}: the disk took a part of a line")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        self._file.close()
