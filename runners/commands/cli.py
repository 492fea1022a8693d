# PYTHON_ARGCOMPLETE_OK
"""The command `srgym`: finds the command, and turns what a user can mend into one sentence and exit code 2.

Nothing heavy is imported before the settings are checked.
"""

import errno
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from srgym.errors import Refusal
from srgym.registry import TRUST

__all__ = ["COMMANDS", "main"]

DEBUG = "SRGYM_DEBUG"

# What a disk answers that is full, or closed to whoever writes.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

COMMANDS = {
    "train": "train a policy: srgym train experiment=oars",
    "evaluate": "score a policy, or a folder of images",
    "compare": "compare runs with intervals",
    "reproduce": "run the papers' claims in miniature, each with a verdict",
    "upscale": "super-resolve photographs: srgym upscale photo.jpg",
    "rewards": "list the rewards, or check one: srgym rewards check NAME",
    "envs": "list the sources of contexts and the environments",
    "judge": "make a judge: pool, label, train, evaluate, distil",
    "describe": "have a served model describe images, for policies that write",
    "doctor": "check this machine and say what to do",
    "merge": "add a LoRA to the weights of a policy",
    "export": "write a policy so that stock diffusers reads it, with a model card",
    "serve": "serve a reward over HTTP",
    "arena": "ask people which images they prefer, in the browser",
    "launch": "write a SLURM job that trains: srgym launch slurm nodes=2 gpus=8 experiment=oars_qwen",
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "Reinforcement-learning post-training of image super-resolution.\n\n"
        f"usage: srgym COMMAND [key=value ...]\n\n{listed}\n\n"
        "srgym COMMAND --help tells what a command takes; srgym --version tells the version.\n"
        f"--debug, {DEBUG}=1: tracebacks of refusals, too.\n"
        'Tab completes in a shell that knows argcomplete: eval "$(register-python-argcomplete srgym)".\n'
        "--trust: import code that the files of a run or a policy name by its path, as module:Class.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit code: 0; 1 of a run that failed; 2 for what the user can mend; 128 + n if
    signal n stopped it.

    An error of other code than srgym's passes, so that Python shows where it happened.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from srgym.runners.commands.completion import complete

        complete(list(COMMANDS))
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from srgym import __version__

        print(__version__)
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return _refuse(f"unknown command '{name}': expected one of {', '.join(COMMANDS)}{hint}")
    for flag, variable in (("--trust", TRUST), ("--debug", DEBUG)):
        if flag in rest:
            rest = [argument for argument in rest if argument != flag]
            os.environ[variable] = "1"  # processes that are started see it, too
    command = import_module(f"srgym.runners.commands.{name}")
    if any(flag in rest for flag in ("-h", "--help")):
        print(command.usage(rest) if hasattr(command, "usage") else command.__doc__)
        return 0
    return _run(command.run, rest)


def _run(command: Callable[[list[str]], int], rest: list[str]) -> int:
    warnings.showwarning, threading.excepthook = _tell, _tell_of_thread
    try:
        return int(command(rest) or 0)
    except KeyboardInterrupt:
        return _refuse("stopped", 130)
    except OSError as error:
        if isinstance(error, Refusal):
            return _refuse(_told(error))
        if error.errno not in _DISK:
            raise
        where = error.filename or "a file"
        return _refuse(f"{where}: {error.strerror}; what was saved before is kept", 1)
    except Exception as error:
        code = 2 if isinstance(error, Refusal) else getattr(error, "exit_code", None)  # a run that says how it ended
        if code is None:
            raise  # of somebody's code or of ours: its traceback tells where, its notes when
        return _refuse(_told(error), int(code))


def _tell_of_thread(args: threading.ExceptHookArgs) -> None:
    """An error of a thread as Python shows it, but for a disk's, which whoever writes through the thread gets, too."""
    if not isinstance(args.exc_value, OSError) or args.exc_value.errno not in _DISK:
        threading.__excepthook__(args)


def _told(error: Exception) -> str:
    """An error's message and notes; its traceback is printed where that is asked for."""
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(error)
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def _tell(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Our own warnings as a sentence; other libraries' as Python shows them."""
    ours = "srgym" in Path(filename).parts and category is UserWarning
    text = f"srgym: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    sys.stderr.write(text)


def _refuse(message: str, code: int = 2) -> int:
    among = f" [process {os.environ.get('RANK', '?')}]" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"srgym{among}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
