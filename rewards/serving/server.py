"""Serving a model with vLLM, safely: this machine only, with a token, and no image but those inside a request."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from srgym.errors import MissingFile, Refusal

__all__ = ["TOKEN_VARIABLE", "Server", "free_port", "model_folder", "serve_command", "serve_environment"]

TOKEN_VARIABLE = "SRGYM_SERVE_TOKEN"
"""The environment variable that holds the servers' token; a token is never written into a configuration."""

_NOWHERE = "data-urls-only.invalid"
# Options of vLLM that a command line of ours sets, that run code, or that would let others in or images be fetched.
_WHAT_CANNOT_BE_CHANGED = (
    "trust-remote-code", "allowed-local-media-path", "allowed-media-domains", "api-key", "config", "host", "port",
    "uds", "model", "served-model-name", "generation-config", "middleware", "tool-parser-plugin",
    "reasoning-parser-plugin", "worker-cls", "worker-extension-cls", "logits-processors",
)  # fmt: skip


def serve_command(
    model: str | Path,
    *,
    name: str = "srgym",
    host: str = "127.0.0.1",
    port: int = 8000,
    images: int = 2,
    max_model_len: int = 8192,
    cpu: bool = False,
    python: str = sys.executable,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command that serves a model with vLLM's OpenAI-compatible server.

    Args:
        model: the folder of the model.
        name: what clients call it.
        host, port: where it listens.
        images: the most images in one request; videos are refused.
        max_model_len: tokens of the longest question and answer, images included.
        cpu: settings for vLLM's CPU build.
        python: the interpreter of the environment that vLLM is installed in.
        extra: further arguments of vLLM, such as ["--tensor-parallel-size", "2"].

    Raises:
        FileNotFoundError: if `model` isn't a model's folder.
        ValueError: for a port, an image limit or an extra argument that can't be.
    """
    if not 0 < port < 65536:
        raise Refusal(f"expected a port from 1 to 65535, got {port}")
    if images < 1:
        raise Refusal(f"expected a limit of at least 1 image in a request, got {images}")
    for word in extra:
        option = word.removeprefix("--").split("=")[0].split(".")[0].replace("_", "-")
        # vLLM understands the beginning of an option as well as the whole.
        if word.startswith("--") and any(known.startswith(option) for known in _WHAT_CANNOT_BE_CHANGED):
            raise Refusal(f"'{word}' would undo a safe setting (host=, port= and --model say the others)")
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_folder(model).resolve())]
    command += ["--served-model-name", name, "--host", host, "--port", str(port)]
    command += [
        "--max-model-len",
        str(max_model_len),
        "--limit-mm-per-prompt",
        json.dumps({"image": images, "video": 0}),
    ]
    # A domain that can't exist: every address that isn't a data: URL is refused, so nobody makes the server fetch.
    command += ["--allowed-media-domains", json.dumps([_NOWHERE])]
    # The sampling of a question is the client's alone, whatever the model's folder suggests.
    command += ["--generation-config", "vllm"]
    command += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
    command += ["--disable-fastapi-docs"]
    if cpu:
        command += [
            "--dtype",
            "float32",
            "--enforce-eager",
            "--skip-mm-profiling",
            "--distributed-executor-backend",
            "uni",
        ]
    return [*command, *extra]


def serve_environment(token: str, *, cpu: bool = False, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: its token (on a command line everybody could read it), and nothing sent home."""
    environment = dict(os.environ if base is None else base)
    environment |= {
        "VLLM_API_KEY": token,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    environment.pop("VLLM_SERVER_DEV_MODE", None)
    if cpu:
        # Compiling costs the first request a quarter of a minute; binding threads fails inside most containers.
        environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Server:
    """A running vLLM server: `with Server(model, python=...) as server: Client(server.url, token=server.token)`.

    Args:
        model: the folder of the model.
        token: what clients must send; from SRGYM_SERVE_TOKEN, else a new random one, when None.
        port: a free one when None.
        log: where its output goes; this process's own output when None.
        options: further arguments of `serve_command`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        token: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        cpu: bool = False,
        log: str | Path | None = None,
        **options: object,
    ) -> None:
        self.token = token or os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
        port = free_port(host) if port is None else port
        self.command = serve_command(model, host=host, port=port, cpu=cpu, **options)  # type: ignore[arg-type]
        self.environment = serve_environment(self.token, cpu=cpu)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._log = Path(log) if log is not None else None
        self._output: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Start the process, in a session of its own, so that stopping it takes its workers along."""
        if self._process is not None:
            raise Refusal(f"the server at {self.url} is already started")
        self._sockets = tempfile.TemporaryDirectory(prefix="srgym-serve-")
        environment = {**self.environment, "VLLM_RPC_BASE_PATH": self._sockets.name}
        self._output = self._log.open("wb") if self._log is not None else None
        self._process = subprocess.Popen(
            self.command, env=environment, stdout=self._output, stderr=self._output, start_new_session=True
        )

    def ready(self) -> bool:
        """Whether it answers."""
        # Not through a proxy of the environment: the address is this machine's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url + "/health", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, timeout: float = 600.0) -> None:
        """Wait until it answers.

        Raises:
            ValueError: if it ends before, or doesn't answer within `timeout` seconds; with the end of its log.
        """
        end = time.monotonic() + timeout
        while not self.ready():
            code = self._process.poll() if self._process is not None else -1
            if code is not None:
                raise Refusal(f"the server ended with code {code} before it answered{self._tail()}")
            if time.monotonic() > end:
                raise Refusal(f"the server at {self.url} didn't answer within {timeout:.0f} s{self._tail()}")
            time.sleep(0.25)

    def run(self) -> int:
        """Run it in the foreground until it ends or is interrupted; returns its exit code."""
        self.start()
        assert self._process is not None
        try:
            return self._process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            self.stop()

    def stop(self, patience: float = 15.0) -> None:
        """Stop it and its workers."""
        process, self._process = self._process, None
        if process is not None:
            _signal_session(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            # Workers that outlived it hold the memory that the next server wants.
            _signal_session(process.pid, signal.SIGKILL)
            process.wait()
        if self._output is not None:
            self._output.close()
        if self._sockets is not None:
            self._sockets.cleanup()
        self._output = self._sockets = None

    def _tail(self, lines: int = 15) -> str:
        if self._log is None or not self._log.is_file():
            return ""
        return ":\n" + "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> "Server":
        self.start()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _signal_session(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def model_folder(path: str | Path) -> Path:
    """A folder with a model in it.

    Raises:
        FileNotFoundError: if there's none.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise MissingFile(f"expected a model's folder with a config.json at '{folder}', found none")
    return folder
