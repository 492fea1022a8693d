"""What a result was made with: the versions, the commit, the machine and the day that a record of it keeps."""

import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import srgym

__all__ = ["made_with"]

_PACKAGES = ("torch", "diffusers", "gymnasium", "transformers", "peft")


def made_with() -> dict[str, str]:
    """The versions of srgym and of what the numbers depend on, srgym's `commit` (of a checkout that has one; with
    `+changes` where files differ from it), the `machine` (its GPUs, else its processor; no host name) and the `date`
    (local, YYYY-MM-DD HH:MM:SS).
    """
    facts = {"srgym": srgym.__version__, "python": platform.python_version()}
    facts |= {name: metadata.version(name) for name in _PACKAGES} | {"torch": torch.__version__}  # with its build
    commit = _commit(Path(srgym.__path__[0]).resolve())
    facts |= {"commit": commit} if commit else {}
    return facts | {"machine": _machine(), "date": time.strftime("%Y-%m-%d %H:%M:%S")}


@cache
def _commit(package: Path) -> str:
    """The commit of the checkout that a package is used from; empty for an installed one."""
    tracked = _git(
        package, "ls-files", "--error-unmatch", "__init__.py"
    )  # a checkout around an installation isn't ours
    commit = tracked and _git(package, "rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and _git(package, "status", "--porcelain", "-uno") else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def _machine() -> str:
    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        return f"{count} x {name}" if count > 1 else name
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
