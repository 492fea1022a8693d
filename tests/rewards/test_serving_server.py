"""Starting a server: its settings are safe, and it's gone when it's stopped."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from srgym.rewards.serving.server import Server, free_port, serve_command, serve_environment
from srgym.runners.commands.cli import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_server_listens_here_only_and_takes_no_image_but_those_in_a_request(model: Path) -> None:
    command = serve_command(model, name="compass", images=3)
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--served-model-name") == "compass"
    assert json.loads(option(command, "--limit-mm-per-prompt")) == {"image": 3, "video": 0}
    [domain] = json.loads(option(command, "--allowed-media-domains"))
    assert domain.endswith(".invalid")  # a name that is never given to anybody
    assert not {"--trust-remote-code", "--allowed-local-media-path", "--api-key"} & set(command)
    assert "--enforce-eager" not in command
    assert "--enforce-eager" in serve_command(model, cpu=True)


def test_the_token_is_in_the_environment_and_not_on_the_command_line(model: Path) -> None:
    server = Server(model, token="secret")
    assert server.environment["VLLM_API_KEY"] == "secret"
    assert not any("secret" in word for word in server.command)
    assert serve_environment("t", base={"VLLM_SERVER_DEV_MODE": "1"}).get("VLLM_SERVER_DEV_MODE") is None
    assert len({Server(model).token for _ in range(3)} - {""}) == 3


@pytest.mark.parametrize(
    "extra",
    [
        "--trust-remote-code", "--trust_remote_code=true", "--allowed-local-media-path=/", "--trust", "--trust-rem=1",
        "--host", "--host=0.0.0.0", "--ho=0.0.0.0", "--config=evil.yaml", "--conf", "--uds", "--api_key", "--model",
        "--middleware=evil.Layer", "--worker-cls", "--tool-parser-plugin=evil.py", "--",
    ],
)  # fmt: skip
def test_a_safe_setting_cannot_be_undone(model: Path, extra: str) -> None:
    with pytest.raises(ValueError, match="would undo a safe setting"):
        serve_command(model, extra=[extra])


def test_what_cannot_be_served_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a model's folder with a config\.json"):
        serve_command(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a port"):
        serve_command(model, port=70000)
    with pytest.raises(ValueError, match="at least 1 image"):
        serve_command(model, images=0)


# Stands in for the interpreter of vLLM's environment: answers /health, and has a worker of its own.
_STAND_IN = """
    #!{python}
    import http.server, os, subprocess, sys
    port = int(sys.argv[sys.argv.index("--port") + 1])
    worker = subprocess.Popen(["sleep", "600"])
    open({pids!r}, "w").write(f"{{os.getpid()}} {{worker.pid}}")
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
        def log_message(self, *_):
            pass
    print("listening", os.environ["VLLM_API_KEY"], flush=True)
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(textwrap.dedent(text).lstrip().format(python=sys.executable, pids=str(folder / "pids")))
    path.chmod(0o755)
    return str(path)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_a_stopped_server_takes_its_workers_along(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Server(model, token="t", python=stand_in(tmp_path, _STAND_IN), log=log) as server:
        assert server.ready()
        assert log.read_text() == "listening t\n"
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(map(alive, pids))
        with pytest.raises(ValueError, match="already started"):
            server.start()
    assert not any(map(alive, pids))
    assert not server.ready()


def test_a_server_that_dies_says_so_with_its_last_words(model: Path, tmp_path: Path) -> None:
    dying = stand_in(tmp_path, '#!{python}\nprint("no such card"); raise SystemExit(3)\n')
    server = Server(model, python=dying, log=tmp_path / "log")
    with pytest.raises(ValueError, match=r"ended with code 3 before it answered:\nno such card"):
        server.__enter__()


def test_free_ports_are_free() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))


def test_the_command_serves_by_name(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["serve", "judge", "--model", str(model), "images=9", "port=9001", "--print", "--", "--seed", "3"]
    assert main(given) == 0
    command = capsys.readouterr().out.split()
    assert option(command, "--served-model-name") == "judge"
    assert option(command, "--port") == "9001"
    assert command[-2:] == ["--seed", "3"]
    assert '{"image":' in " ".join(command)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["compas", "--model", "M"], "did you mean 'compass'?"),
        (["compass"], "expects one model: --model PATH, got 0"),
        (["compass", "--model", "M", "port=high"], "expected a whole number as port, got 'high'"),
        (["compass", "--model", "M", "device=tpu"], "expected device=cpu or device=gpu"),
        (["compass", "--model", "M", "ports=1"], "doesn't know 'ports=1'"),
        (["compass", "--model", "M", "--", "--trust-remote-code"], "would undo a safe setting"),
        (["compass", "--model", "M", "python=/nowhere/python"], "expected an interpreter at '/nowhere/python'"),
        (["compass", "--model", "/nowhere"], "expected a model's folder"),
    ],
)
def test_a_mistaken_command_is_told_in_one_sentence(
    words: list[str], complaint: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *(str(model) if word == "M" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


def test_an_interpreter_without_vllm_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = stand_in(tmp_path, "#!{python}\nraise SystemExit(1)\n")
    assert main(["serve", "compass", "--model", str(model), f"python={without}"]) == 2
    assert "serving needs vLLM, which" in capsys.readouterr().err
