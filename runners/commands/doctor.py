"""srgym doctor [key=value ...]: check this machine, and say what to do about what is missing.

  srgym doctor                                 versions, threads, memory, disk, GPU, weights
  srgym doctor servers=[http://gpu1:8000]      and whether reward servers answer

  out=runs         the folder that results would go to
  servers=[]       addresses of reward servers
  all=false        true shows what is well, too, line by line

The exit code is 1 if something would stop srgym from working.
"""

from pathlib import Path

from srgym.runners.command_line import take_values

__all__ = ["run"]

_DEFAULTS = {"out": "runs", "servers": [], "all": False}
_SIGNS = {"ok": "ok    ", "note": "note  ", "fail": "FAILS "}


def run(arguments: list[str]) -> int:
    chosen, _ = take_values(arguments, _DEFAULTS)
    servers = [chosen["servers"]] if isinstance(chosen["servers"], str) else list(chosen["servers"])
    from srgym.runners.doctor import examine

    well, failed = 0, 0
    for finding in examine(Path(str(chosen["out"])), servers):
        well += finding.status == "ok"
        failed += finding.status == "fail"
        if finding.status != "ok" or chosen["all"]:
            print(f"{_SIGNS[finding.status]}{finding.what}")
            for line in finding.advice.splitlines():
                print(f"      {line}")
    print(f"{well} things are well" + (f", {failed} must be mended" if failed else ""))
    return 1 if failed else 0
