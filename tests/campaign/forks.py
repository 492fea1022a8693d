"""Commands in forked children: what they import is imported once, and their file operations can be counted."""

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from srgym.runners.commands.cli import main

__all__ = ["digests", "forked", "policy_of"]

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def forked(
    arguments: Sequence[str],
    folder: Path,
    last: int | None = None,
    *,
    before: Callable[[], object] = lambda: None,
    said: Path = Path(os.devnull),
) -> tuple[int, int]:
    """Run a command in a child, killed before its file operation number `last` at `folder` or beside it (never: None).

    Args:
        before: what the child does first. said: what it says.

    Returns:
        Its exit code, and how many operations there were.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            changes = event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITES)
            if changes and folder.name in str(args[0]).removeprefix(str(folder.parent)):
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        before()
        sys.addaudithook(watch)
        code = 70
        try:
            code = main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os.write(writing, str(count).encode())
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(count or 0)


def digests(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def policy_of(folder: Path) -> Path:
    if not folder.exists():
        assert main(["train", "experiment=smoke", "logger=csv", f"out={folder}"]) == 0
    return folder
