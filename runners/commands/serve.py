"""srgym serve NAME --model PATH [key=value ...] [-- ARGUMENTS OF VLLM]: serve a reward's model with vLLM.

  srgym serve compass --model models/compass         two images a question, port 8000
  srgym serve judge --model models/judge             RealSR-R1's generation judge: a whole group, port 8001
  srgym serve refreward --model models/refreward     RefReward-SR's judge, port 8002
  srgym serve compare --model models/compare         a pairwise judge: the input and two candidates, port 8003
  srgym serve compass --model models/compass port=9000 -- --tensor-parallel-size 2

  host=127.0.0.1     the address it listens at; this machine only, unless you name another
  port=PORT          of the address
  images=N           the most images in one question (for judge: the group's size and one)
  max_model_len=N    the most tokens of a question and its answer; 8192
  device=gpu         or cpu, for vLLM's CPU build
  python=PATH        the interpreter that vLLM is installed for: SRGYM_VLLM_PYTHON, else this one
  --print            show the command and stop

Clients send the token in SRGYM_SERVE_TOKEN. Where it isn't set, a new one is made and shown. Images are taken from
inside requests only: the server fetches none from an address or a disk, and runs no code from the model's folder.
"""

import os
import secrets
import shlex
import subprocess
import sys
from difflib import get_close_matches

from srgym.errors import Refusal
from srgym.rewards.serving.server import TOKEN_VARIABLE, Server
from srgym.runners.commands.arguments import take_flag, take_option, take_setting

__all__ = ["SERVED", "run"]

# Name: (port, images in one question). Each reward's client looks for its own by default.
SERVED = {"compass": (8000, 2), "judge": (8001, 17), "refreward": (8002, 2), "compare": (8003, 3)}

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(arguments: list[str]) -> int:
    extra = _behind_dashes(arguments)
    show = take_flag(arguments, "--print")
    models = take_option(arguments, "--model")
    name, server = _server(arguments, models, extra)
    if show:
        print(shlex.join(server.command))
        return 0
    _check_vllm(server.command[0])
    if TOKEN_VARIABLE not in os.environ:
        print(f"a new token; before you train: export {TOKEN_VARIABLE}={server.token}")
    print(f"serving {name} at {server.url} (stop with ctrl-c)", flush=True)
    return server.run()


def _behind_dashes(arguments: list[str]) -> list[str]:
    if "--" not in arguments:
        return []
    at = arguments.index("--")
    extra = arguments[at + 1 :]
    del arguments[at:]
    return extra


def _server(arguments: list[str], models: list[str], extra: list[str]) -> tuple[str, Server]:
    names = [argument for argument in arguments if "=" not in argument]
    name = names[0] if names else ""
    if name not in SERVED:
        near = get_close_matches(name, SERVED, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Refusal(f"srgym serve expects one of {', '.join(SERVED)}, got '{name}'{hint}")
    if len(models) != 1:
        raise Refusal(f"srgym serve {name} expects one model: --model PATH, got {len(models)}")
    arguments.remove(name)
    port, images = SERVED[name]
    host = take_setting(arguments, "host", "127.0.0.1") or ""
    device = take_setting(arguments, "device", "gpu")
    if device not in ("cpu", "gpu"):
        raise Refusal(f"expected device=cpu or device=gpu, got device={device}")
    server = Server(
        models[0],
        token=os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24),
        host=host,
        port=_whole(arguments, "port", port),
        cpu=device == "cpu",
        name=name,
        images=_whole(arguments, "images", images),
        max_model_len=_whole(arguments, "max_model_len", 8192),
        python=take_setting(arguments, "python") or os.environ.get("SRGYM_VLLM_PYTHON") or sys.executable,
        extra=extra,
    )
    if arguments:
        raise Refusal(f"srgym serve doesn't know '{arguments[0]}'; arguments of vLLM go behind '--'")
    if host not in _LOOPBACK:
        print(f"note: {host} can be reached from other machines; only the token protects the server", file=sys.stderr)
    return name, server


def _whole(arguments: list[str], key: str, default: int) -> int:
    value = take_setting(arguments, key, str(default)) or ""
    if not value.isdecimal():
        raise Refusal(f"expected a whole number as {key}, got '{value}'")
    return int(value)


def _check_vllm(python: str) -> None:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        present = subprocess.run([python, "-c", look], check=False).returncode == 0
    except OSError as error:
        raise Refusal(f"expected an interpreter at '{python}': {error}") from error
    if not present:
        raise Refusal(
            f"serving needs vLLM, which '{python}' doesn't have: pip install 'srgym[vllm]', or name the interpreter of "
            "an environment that has it with python=PATH or SRGYM_VLLM_PYTHON"
        )
