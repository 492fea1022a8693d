"""The client against servers that fail in every way that servers fail."""

import asyncio
import base64
import concurrent.futures
import hashlib
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from srgym.files import to_png as png
from srgym.rewards.serving.breaker import Breaker
from srgym.rewards.serving.client import Client, ServerRefused, ServersSilent
from srgym.rewards.serving.parsing import parse_scores, score_reply
from srgym.rewards.serving.question import BadAnswer, Question, Reply, encode_images

FIELDS = {"fidelity": (0.0, 1.0), "q_lr": (1.0, 5.0), "q_sr": (1.0, 5.0)}


def scores_of(image: bytes) -> dict[str, float]:
    """What the test's servers answer: fixed numbers for every image, found without asking."""
    a, b, c = hashlib.blake2b(image, digest_size=3).digest()
    return {"fidelity": round(a / 255, 3), "q_lr": round(1 + b / 64, 3), "q_sr": round(1 + c / 64, 3)}


def answered(text: str, **choice: Any) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}]})


def honest(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
    return answered(json.dumps(scores_of(first_image(body))))


def first_image(body: Mapping[str, Any]) -> bytes:
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)


@pytest.fixture
def serve(start_server: Any) -> Callable[..., Any]:
    """Starts servers, honest ones unless a handler is given."""
    return lambda handler=honest: start_server(handler)


def questions(count: int, start: int = 0) -> list[Question]:
    return [Question("score", (f"image {start + i}".encode(),), seed=start + i) for i in range(count)]


def read(reply: Reply) -> dict[str, float]:
    return parse_scores(reply.text, FIELDS)


def test_every_question_gets_its_own_answer_in_order(serve: Any) -> None:
    asked = questions(30)
    assert Client(serve().url).ask(asked, read) == [scores_of(q.images[0]) for q in asked]
    assert Client(serve().url).ask([], read) == []


def test_the_request_is_the_openai_protocol_with_vllms_constraint(serve: Any) -> None:
    seen: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []

    def keep(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        seen.append((body, headers))
        return honest(body, headers)

    image = png(torch.linspace(0, 1, 12).reshape(1, 3, 2, 2)[0])
    question = Question("how good?", (image, image), seed=7, max_tokens=50, stop=("end",), pattern="[0-9]")
    Client(serve(keep).url + "/v1/", model="compass", token="secret").ask([question], read)
    body, headers = seen[0]
    assert headers["authorization"] == "Bearer secret"
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    assert first_image(body) == image
    assert {key: body[key] for key in ("model", "seed", "max_tokens", "temperature", "stop")} == {
        "model": "compass", "seed": 7, "max_tokens": 50, "temperature": 0.0, "stop": ["end"],
    }  # fmt: skip
    assert body["structured_outputs"] == {"regex": "[0-9]"}


def test_the_token_comes_from_the_environment(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRGYM_SERVE_TOKEN", "from-outside")

    def guarded(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        return honest(body, headers) if headers.get("authorization") == "Bearer from-outside" else (401, "who?")

    assert Client(serve(guarded).url).ask(questions(1), read) != [None]
    with pytest.raises(ServerRefused, match=r"answered 401 .*who\?"):
        Client(serve(guarded).url, token="wrong").ask(questions(1), read)


def test_no_more_requests_are_in_flight_than_the_limit(serve: Any) -> None:
    server = serve()
    Client(server.url, limit=3).ask(questions(40), read)
    assert server.requests == 40
    assert server.most <= 3


def test_asked_ahead_answers_come_while_others_are_asked_under_one_limit(serve: Any) -> None:
    gate = threading.Event()

    def waiting(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        return honest(body, headers) if gate.is_set() else (503, "")

    client = Client(serve(waiting).url, limit=3, retries=1000, backoff=0.001, failures=10**6)
    attempt, busy, most = client._attempt, 0, 0

    async def counted(*given: Any) -> Reply:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        try:
            return await attempt(*given)
        finally:
            busy -= 1

    client._attempt = counted  # type: ignore[method-assign]
    waits = [client.begin(questions(8, start), read) for start in (0, 8, 16)]
    gate.set()
    found = [answer for wait in waits for answer in wait()]
    assert found == [scores_of(q.images[0]) for q in questions(24)]
    assert most == 3
    assert client.begin([], read)() == []


def test_batches_asked_at_once_are_one_in_the_patience_with_silent_servers(serve: Any) -> None:
    client = Client(serve(lambda *_: (500, "")).url, retries=0, failures=10**6, patience=2)
    for wait in [client.begin(questions(4), read) for _ in range(4)]:
        assert wait() == [None] * 4
    wait = client.begin(questions(4), read)
    with pytest.raises(ServersSilent, match="of 2 batches in a row"):
        wait()


def test_replicas_share_the_work(serve: Any) -> None:
    servers = [serve(), serve()]
    Client([server.url for server in servers], limit=8).ask(questions(80), read)
    assert sum(server.requests for server in servers) == 80
    assert min(server.requests for server in servers) >= 20


def test_a_retry_goes_to_another_replica_with_another_seed(serve: Any) -> None:
    seeds: list[list[int]] = [[], []]

    def ill(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        seeds[0].append(body["seed"])
        return 503, "busy"

    def well(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        seeds[1].append(body["seed"])
        return honest(body, headers)

    client = Client([serve(ill).url, serve(well).url], backoff=0.001, retries=1, failures=100)
    assert None not in client.ask(questions(20), read)
    again = set(seeds[1]) - set(range(20))
    assert len(seeds[0]) >= 1
    assert len(again) == len(seeds[0])


def test_a_bad_answer_is_asked_for_again_and_hotter(serve: Any) -> None:
    temperatures: list[float] = []

    def late(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        temperatures.append(body["temperature"])
        return honest(body, headers) if len(temperatures) > 2 else answered('{"fidelity": NaN}')

    client = Client(serve(late).url, backoff=0.001)
    assert None not in client.ask(questions(1), read)
    assert temperatures == [0.0, 0.7, 0.7]
    assert client.stats == {"asked": 1, "bad answer": 2, "lost": 0}


def test_without_a_good_answer_there_is_none_and_the_log_says_why(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(serve(lambda *_: (500, "")).url, retries=2, backoff=0.001, failures=100)
    with caplog.at_level(logging.WARNING, logger="srgym"):
        assert client.ask(questions(3), read) == [None] * 3
    assert "3 of 3 questions have no answer (9 x status 500)" in caplog.text


def test_an_address_where_nobody_listens_costs_answers_and_no_more() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{probe.getsockname()[1]}", retries=1, backoff=0.001)
        assert client.ask(questions(2), read) == [None, None]


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(serve: Any) -> None:
    client = Client(serve(lambda *_: "hang").url, timeout=60, deadline=0.3)
    began = time.monotonic()
    assert client.ask(questions(4), read) == [None] * 4
    assert time.monotonic() - began < 30  # far below the request's own limit
    assert client.stats["deadline"] == 4


def test_groups_arrive_as_soon_as_they_are_complete(serve: Any) -> None:
    gate = threading.Event()

    def second_group_waits(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        ready = body["seed"] < 4 or gate.is_set()
        return honest(body, headers) if ready else (503, "")

    client = Client(serve(second_group_waits).url, retries=1000, backoff=0.001, failures=10**6, deadline=60)
    arriving = client.stream(questions(8), read, groups=[0, 0, 0, 0, 1, 1, 1, 1])
    group, answers = next(arriving)
    assert group == 0
    assert answers == [scores_of(q.images[0]) for q in questions(4)]
    gate.set()
    assert next(arriving)[0] == 1


def test_a_callers_own_error_reaches_the_caller(serve: Any) -> None:
    def broken(reply: Reply) -> float:
        raise ZeroDivisionError("a bug in read")

    with pytest.raises(ZeroDivisionError, match="a bug in read"):
        Client(serve().url).ask(questions(3), broken)


def test_it_works_inside_a_running_event_loop(serve: Any) -> None:
    async def notebook() -> list[dict[str, float] | None]:
        return Client(serve().url).ask(questions(2), read)

    assert None not in asyncio.run(notebook())


def test_settings_that_cannot_work_are_refused() -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(ValueError, match="expected the base address"):
            Client(url)
    with pytest.raises(ValueError, match="at least one server"):
        Client([])
    with pytest.raises(ValueError, match="limit >= 1"):
        Client("http://127.0.0.1:1", limit=0)


def test_choices_give_an_expectation_over_renormalised_probabilities(serve: Any) -> None:
    def digits(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        assert body["structured_outputs"] == {"choice": list("123")}
        assert body["max_tokens"] == 1
        top = [{"token": t, "logprob": p} for t, p in (("1", -2.0), ("3", -1.0), ("2", -9999.0), ("x", -0.5))]
        return answered("3", logprobs={"content": [{"top_logprobs": top}]})

    question = Question("?", choices=tuple("123"))
    [value] = Client(serve(digits).url).ask([question], lambda reply: reply.expectation(tuple("123")))
    assert value == pytest.approx((1 * 0.36787944117144233 + 3) / 1.36787944117144233)
    with pytest.raises(BadAnswer, match="got none of 3"):
        Reply("1", logprobs={"1": -1.0, "2": -1.0}).expectation(tuple("123"))


def test_a_reply_ended_by_a_stop_string_is_read_to_its_scores(serve: Any) -> None:
    stop = '"description"'

    def stopped(body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        return answered('{"fidelity":0.5,"q_lr":2.0,"q_sr":3.0,', stop_reason=stop)

    [value] = Client(serve(stopped).url).ask([Question("?", stop=(stop,))], lambda reply: score_reply(reply, FIELDS))
    assert value == {"fidelity": 0.5, "q_lr": 2.0, "q_sr": 3.0}


def test_a_breaker_opens_probes_and_closes() -> None:
    now = [0.0]
    breaker = Breaker(failures=3, cooldown=2.0, longest=5.0, clock=lambda: now[0])
    breaker.failed(), breaker.failed(), breaker.succeeded(), breaker.failed(), breaker.failed()
    assert breaker.acquire()
    breaker.failed()
    assert breaker.open
    assert not breaker.acquire()
    assert breaker.wait() == 2.0
    now[0] = 2.0
    assert breaker.acquire()
    assert not breaker.acquire()  # one probe at a time
    breaker.failed()
    assert breaker.wait() == 4.0  # twice the pause
    now[0] = 6.0
    assert breaker.acquire()
    breaker.failed()
    assert breaker.wait() == 5.0  # no longer than the longest
    now[0] = 11.0
    assert breaker.acquire()
    breaker.abandoned()
    assert breaker.acquire()
    breaker.succeeded()
    assert not breaker.open
    assert breaker.wait() == 0.0


def test_a_dead_replica_is_left_alone_after_some_failures(serve: Any) -> None:
    dead, alive = serve(lambda *_: (502, "")), serve()
    client = Client([dead.url, alive.url], limit=4, backoff=0.001, failures=3, cooldown=1000)
    assert None not in client.ask(questions(100), read)
    assert dead.requests <= 3 + 4  # those in flight when it opened


def test_equal_neighbours_are_encoded_once_and_pixels_survive() -> None:
    from io import BytesIO

    from PIL import Image

    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    files = encode_images(images)
    assert files[0] is files[1]
    assert files[2] is files[3]
    assert files[0] != files[2]
    import numpy as np

    back = torch.from_numpy(np.array(Image.open(BytesIO(files[2])))).permute(2, 0, 1)
    assert torch.equal(back, (images[2] * 255).round().to(torch.uint8))


class Faulty:
    """10% hang, 10% answer 5xx, 5% reset the connection, 5% answer nonsense, 5% answer NaN; the rest is honest."""

    def __init__(self, seed: int) -> None:
        self.random, self.lock = random.Random(seed), threading.Lock()

    def __call__(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str] | str:
        with self.lock:
            draw, kind = self.random.random(), self.random.random()
        if draw < 0.10:
            return "hang"
        if draw < 0.20:
            return (500, "oops") if kind < 0.5 else (503, '{"error": "busy"}')
        if draw < 0.25:
            return "reset"
        if draw < 0.30:
            return (200, "<html>") if kind < 0.5 else answered("I'd rather not say: 4.5 { or 5")
        if draw < 0.35:
            return answered('{"fidelity": NaN, "q_lr": 2.0, "q_sr": 3.0}')
        return honest(body, headers)


def weather(serve: Any, batches: int) -> None:
    deadline = 8.0
    servers = [serve(Faulty(seed)) for seed in range(2)]
    client = Client(
        [server.url for server in servers], timeout=0.8, deadline=deadline, retries=3, backoff=0.02, cooldown=0.1
    )

    def batch(number: int) -> tuple[float, list[tuple[Question, dict[str, float] | None]]]:
        asked = questions(24, start=24 * number)
        began = time.monotonic()
        answers = client.ask(asked, read)
        return time.monotonic() - began, list(zip(asked, answers, strict=True))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # more starve each other where cores are shared
        results = list(pool.map(batch, range(batches)))
    assert max(seconds for seconds, _ in results) < 2 * deadline
    rows = [row for _, answers in results for row in answers]
    lost = sum(answer is None for _, answer in rows)
    assert len(rows) == 24 * batches
    # A valid row is what an honest server says of its image; nothing else ever comes out.
    assert all(answer is None or answer == scores_of(question.images[0]) for question, answer in rows)
    # With 35% faults and 4 tries a question is lost 1.5% of the time; the rest of the margin is for a slow machine.
    assert lost < 0.2 * len(rows)
    faults = {"timeout", "status 500", "status 503", "a malformed body", "bad answer"}
    assert faults <= set(client.stats)
    assert client.stats["asked"] == len(rows)
    assert client.stats["lost"] == lost


def test_bad_weather_never_hangs_and_never_invents(serve: Any) -> None:
    weather(serve, batches=60)
