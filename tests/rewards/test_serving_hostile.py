"""Servers that are slow, wrong or hostile: a deadline holds, a token stays where it was sent, and a reason is given."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from srgym.rewards.serving import client as client_module
from srgym.rewards.serving.client import Client, ServerRefused
from srgym.rewards.serving.parsing import LONGEST, parse_scores
from srgym.rewards.serving.question import BadAnswer, Question, Reply

Answer = Callable[[socket.socket], None]


class Raw:
    """A server that writes bytes as it likes; keeps the requests that came."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.requests = answer, list[str]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.requests.append(connection.recv(1 << 16).decode("latin-1"))
            self.answer(connection)


@pytest.fixture
def raw() -> Iterator[Callable[[Answer], Raw]]:
    running: list[Raw] = []

    def start(answer: Answer) -> Raw:
        running.append(Raw(answer))
        return running[-1]

    yield start
    for server in running:
        server.listener.close()


def sends(*parts: bytes, pause: float = 0.0) -> Answer:
    def answer(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)

    return answer


def body(content: bytes, status: str = "200 OK", *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + content


def trouble(server: Raw, **options: object) -> str:
    with pytest.raises(ServerRefused) as refused:
        Client(server.url, **options).ready()  # type: ignore[arg-type]
    return str(refused.value)


def test_a_token_does_not_follow_a_redirect(raw: Callable[[Answer], Raw]) -> None:
    thief = raw(sends(body(b'{"data": []}')))
    guard = raw(sends(body(b"", "302 Found", f"Location: {thief.url}/v1/models")))
    assert "status 302, a redirect, which isn't followed" in trouble(guard, token="secret")
    assert "Bearer secret" in guard.requests[0] and not thief.requests
    with pytest.raises(ServerRefused, match="answered 302"):
        Client(guard.url, token="secret").ask([Question("?")], lambda reply: reply.text)
    assert not thief.requests


def test_slow_pieces_do_not_stretch_the_deadline(raw: Callable[[Answer], Raw]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    began = time.monotonic()
    assert "timeout" in trouble(raw(sends(head, *[b"x"] * 200, pause=0.05)), timeout=0.3)
    assert "timeout" in trouble(raw(sends(*[b"H"] * 200, pause=0.05)), timeout=0.3)
    assert time.monotonic() - began < 5


def test_no_more_is_read_than_a_list_of_models_may_be_long(raw: Callable[[Answer], Raw]) -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x" * 1_000_000)
            sent.append(1)

    assert "a body of more than" in trouble(raw(flood))
    assert len(sent) < 20


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\x00\xff\xfe", b"HTTP/1.1 banana\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 500 " + b"x" * 100_000,
        body(b"", "500 Trouble"), body(b"", "999 ?"),
    ],
)  # fmt: skip
def test_every_failure_is_a_reason(raw: Callable[[Answer], Raw], answer: bytes) -> None:
    assert "answers at" in trouble(raw(sends(answer)), timeout=1)


@pytest.mark.parametrize(
    "listed", [b"[" * 100_000, b"null", b'{"data": 1}', b'{"data": [1]}', b"\xff", b'{"data": []}']
)
def test_a_list_of_models_that_is_none_says_nothing(raw: Callable[[Answer], Raw], listed: bytes) -> None:
    Client(raw(sends(body(listed))).url).ready()


@pytest.mark.parametrize("value", ["1" + "0" * 400, "0.5", "NaN", "Infinity", '"x"', "null", "[]"])
def test_what_is_no_log_probability_costs_an_answer_and_not_the_run(raw: Callable[[Answer], Raw], value: str) -> None:
    top = f'{{"content": [{{"top_logprobs": [{{"token": "1", "logprob": {value}}}]}}]}}'
    answer = f'{{"choices": [{{"message": {{"content": "1"}}, "logprobs": {top}}}]}}'.encode()
    client = Client(raw(sends(body(answer))).url, retries=0)
    assert client.ask([Question("?", choices=("1",))], lambda reply: reply.expectation(("1",))) == [None]
    assert client.stats["a malformed body"] == 1


def test_parsing_takes_time_in_proportion_to_the_answer() -> None:
    began = time.monotonic()
    for hostile in ("<answer>" * 8192, "<answer></answer>" * 8192, "{" * LONGEST, '{"' * LONGEST, "}{" * LONGEST):
        with pytest.raises(BadAnswer):
            parse_scores(hostile, {"q": (0, 1)})
    assert time.monotonic() - began < 3
    assert parse_scores('<answer><answer>{"q": 1}</answer>', {"q": (0, 1)}) == {"q": 1}
    assert parse_scores('</answer>{"q": 1}<answer>', {"q": (0, 1)}) == {"q": 1}


def test_the_deadline_holds_while_the_reading_of_an_answer_does_not_give_way(
    raw: Callable[[Answer], Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_GRACE", 0.1)
    message = body(json.dumps({"choices": [{"message": {"content": "x"}}]}).encode())
    over = threading.Event()

    def stuck(reply: Reply) -> str:
        over.wait(20)
        return reply.text

    began = time.monotonic()
    found = list(Client(raw(sends(message)).url, deadline=0.3).stream([Question("?")] * 3, stuck, groups=[0, 0, 1]))
    assert time.monotonic() - began < 5
    assert sorted(found) == [(0, [None, None]), (1, [None])]
    over.set()
