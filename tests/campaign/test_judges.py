"""Judges' servers that answer anything: a batch ends within its deadline, and nothing is made up."""

import json
import random
import socket
import threading
import time
from contextlib import suppress

import pytest
from campaign.tally import Tally

from srgym.rewards.serving import client as client_module
from srgym.rewards.serving.client import Client, ServerRefused
from srgym.rewards.serving.parsing import parse_scores
from srgym.rewards.serving.question import Question

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1200)]
FIELDS = {"fidelity": (0.0, 1.0), "q_sr": (1.0, 5.0)}


def _content(draws: random.Random) -> str:
    """An answer of a model: right, nearly right, or nothing of the kind."""
    number = draws.choice(["0.5", "3", "1e400", "NaN", "-1", '"0.5"', "null", "true", "9" * 500, "[0.5]"])
    text = f'{{"fidelity": {number}, "q_sr": {draws.choice(["2.5", "6", "1" * 5000])}}}'
    return draws.choice([text, f"<answer>{text}</answer>", "<answer>" * 8000, "{" * 60_000, text[: len(text) // 2], ""])


def _answer(draws: random.Random) -> bytes:
    """A server's answer: of HTTP, nearly so, or noise."""
    body = json.dumps({"choices": [{"message": {"content": _content(draws)}, "finish_reason": "stop"}]}).encode()
    kind = draws.randrange(8)
    if kind == 0:
        return draws.randbytes(draws.randrange(2000))
    if kind == 1:
        body = body[: draws.randrange(len(body))]
    if kind == 2:
        body = draws.choice([b"null", b"[]", b'{"choices": []}', b"[" * 50_000, b'{"choices": [null]}', b"\xff\xfe"])
    if kind == 3:
        content = bytearray(body)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        body = bytes(content)
    status = draws.choice([200, 200, 200, 200, 500, 429, 302, 200])
    length = len(body) if kind != 4 else draws.choice([0, len(body) + 50, 10**12])
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLocation: http://127.0.0.1:9/\r\n\r\n".encode()
    return head + body if kind != 5 else (head + body)[: draws.randrange(len(head))]


def test_nothing_that_a_server_says_stops_or_fools_a_batch(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "a judge's server that answers noise, nearly HTTP, nearly JSON or nearly scores: batches of 4 questions"
    monkeypatch.setattr(client_module, "_GRACE", 2.0)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    draws, lock = random.Random(9), threading.Lock()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=respond, args=(connection,), daemon=True).start()

    def respond(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            with lock:
                answer = _answer(draws)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for trial in range(300):
        client = Client(url, timeout=0.5, deadline=1.5, retries=1, backoff=0.001, failures=10**6, patience=10**6)
        failure, began = None, time.monotonic()
        try:
            answers = client.ask([Question("?", seed=trial)] * 4, lambda reply: parse_scores(reply.text, FIELDS))
            made_up = [a for a in answers if a not in (None, {"fidelity": 0.5, "q_sr": 2.5})]
            if made_up:
                failure = f"trial {trial}: {made_up}"
        except ServerRefused:  # a status that says so
            pass
        except Exception as error:
            failure = f"trial {trial}: {type(error).__name__}: {error}"
        if time.monotonic() - began > 4:
            failure = f"trial {trial}: took {time.monotonic() - began:.1f} s"
        tally.add(what, failure)
        failure = None
        try:
            client.ready()
        except ServerRefused:
            pass
        except Exception as error:
            failure = f"readiness {trial}: {type(error).__name__}: {error}"
        tally.add(what, failure)
    listener.close()
    tally.settle(what)
