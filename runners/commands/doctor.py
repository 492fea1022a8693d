"""srgym doctor [key=value ...]: check this machine, and say what to do about what is missing.

  srgym doctor                                 versions, threads, memory, disk, GPU, weights
  srgym doctor servers=[http://gpu1:8000]      and whether reward servers answer

  out=runs         the folder that results would go to
  servers=[]       addresses of reward servers
  all=false        true shows what is well, too, line by line

The exit code is 1 if something would stop srgym from working.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from srgym.errors import Refusal
from srgym.rewards.serving.exchange import Fault, status_of
from srgym.runners.run.overrides import take_values

__all__ = ["Finding", "examine", "run"]

_DEFAULTS = {"out": "runs", "servers": [], "all": False}
_SIGNS = {"ok": "ok    ", "note": "note  ", "fail": "FAILS "}

_GIB = 2**30
_NEEDED_MEMORY, _NEEDED_DISK = 4 * _GIB, 2 * _GIB


def run(arguments: list[str]) -> int:
    settings, _ = take_values(arguments, _DEFAULTS)
    servers = [settings["servers"]] if isinstance(settings["servers"], str) else list(settings["servers"])
    well, failed = 0, 0
    for finding in examine(Path(str(settings["out"])), servers):
        well += finding.status == "ok"
        failed += finding.status == "fail"
        if finding.status != "ok" or settings["all"]:
            print(f"{_SIGNS[finding.status]}{finding.what}")
            for line in finding.advice.splitlines():
                print(f"      {line}")
    print(f"{well} things are well" + (f", {failed} must be mended" if failed else ""))
    return 1 if failed else 0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: "ok", "note" (works, but) or "fail".
        what: what was looked at, and what was found.
        advice: what to do about it; empty when it's ok.
    """

    status: str
    what: str
    advice: str = ""


def examine(out: Path, servers: Sequence[str]) -> Iterator[Finding]:
    """Look at everything: versions, threads, memory, disk, GPU, weights, the output folder, reward servers."""
    yield _python()
    yield from _versions()
    yield _threads()
    yield _memory()
    yield _output(out)
    yield from _gpu()
    yield from _weights()
    for url in servers:
        yield _server(url)


def _python() -> Finding:
    return Finding("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")


def _versions() -> Iterator[Finding]:
    """Every package that srgym requires, against the range it requires."""
    from packaging.requirements import Requirement

    for text in metadata.requires("srgym") or []:
        required = Requirement(text)
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            yield Finding("fail", f"{required.name} isn't installed", f'pip install "{required}"')
            continue
        if required.specifier.contains(installed, prereleases=True):
            yield Finding("ok", f"{required.name} {installed}")
        else:
            yield Finding("fail", f"{required.name} {installed}", f'tried with {required}: pip install "{required}"')


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    threads = int(asked) if asked and asked.isdigit() else cores
    if threads > cores:
        advice = f"more threads than cores slow every step down: export OMP_NUM_THREADS={cores}"
        return Finding("note", f"{threads} threads on {cores} cores", advice)
    return Finding("ok", f"{threads} threads on {cores} cores")


def _memory() -> Finding:
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    except (OSError, ValueError):
        return Finding("note", "memory: this system doesn't tell", "the main job takes up to 4 GiB")
    for line in lines:
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    what = f"{available / _GIB:.1f} GiB of memory available"
    if available < _NEEDED_MEMORY:
        return Finding("note", what, "the main job takes up to 4 GiB: close something, or lower runner.microbatch")
    return Finding("ok", what)


def _output(out: Path) -> Finding:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("fail", f"{place} can't be written ({error.strerror})", "choose another folder with out=")
    what = f"{place.absolute()} is writable, {free / _GIB:.0f} GiB free"
    if free < _NEEDED_DISK:
        return Finding("note", what, "checkpoints may not fit: free some space, or choose another folder with out=")
    return Finding("ok", what)


def _gpu() -> Iterator[Finding]:
    try:
        import torch

        from srgym.precision import has_bfloat16
    except Exception as error:  # a broken installation: whatever it raises is what has to be told
        yield Finding("fail", f"torch can't be imported ({type(error).__name__}: {error})", "install it again")
        return
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
        yield Finding("note", f"no GPU (torch {torch.__version__}, {built})", "the compact policy needs none")
        if not has_bfloat16(torch.device("cpu")):
            yield Finding("note", "this CPU has no bfloat16", "autocast=auto takes float32; bf16 would be slower")
        return
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: runner.autocast=off"
        yield Finding("ok", f"GPU {i}: {facts.name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free, {bf16}")


def _weights() -> Iterator[Finding]:
    """The weights that ship with the package, and those that a user brings for rewards that need them."""
    from srgym import policies, rewards

    shipped = Path(str(policies.__path__[0])) / "weights" / "compact_base" / "model.safetensors"
    if shipped.is_file():
        yield Finding("ok", "weights of the compact policy")
    else:
        advice = "install the package again, or train them: srgym train experiment=compact_base"
        yield Finding("fail", f"weights of the compact policy aren't at {shipped}", advice)
    for name in ("compass", "dists", "lpips"):
        try:
            rewards.make(name)
        except FileNotFoundError as error:
            yield Finding("note", f"reward {name} can't be used: its weights aren't here", str(error))
        except ImportError as error:
            yield Finding("note", f"reward {name} can't be used: {error}", "install what is missing")
        except Refusal as error:
            yield Finding("fail", f"reward {name} can't be used", str(error))
        else:
            yield Finding("ok", f"weights of the reward {name}")


def _server(url: str) -> Finding:
    try:
        status = status_of(f"{url.rstrip('/')}/health", 2.0)
    except Fault as fault:
        advice = "start one with srgym serve, where a reward of yours needs it"
        return Finding("note", f"no reward server answers at {url} ({fault})", advice)
    if status == 200:
        return Finding("ok", f"a reward server answers at {url}")
    return Finding("note", f"the server at {url} answers {status}", "is it a server of srgym serve? look at its output")
