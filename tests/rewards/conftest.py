"""Who answers questions in tests: an engine with a script, and a tiny model of the real classes."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from srgym.rewards.serving.question import BadAnswer, Question, Reply
from srgym.runners.judges.tiny import write_tiny

Handler = Callable[[Mapping[str, Any], Mapping[str, str]], tuple[int, str] | str]


class Scripted:
    """An engine whose answers are written down; keeps what it was asked."""

    def __init__(self, answer: Callable[[Question], Reply]) -> None:
        self.answer, self.asked = answer, list[Question]()

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], Any]) -> list[Any]:
        self.asked += questions
        values: list[Any] = []
        for question in questions:
            try:
                values.append(read(self.answer(question)))
            except BadAnswer:
                values.append(None)
        return values


@pytest.fixture
def scripted() -> type[Scripted]:
    """Makes engines that answer as a function of the question says."""
    return Scripted


class Served:
    """An HTTP server on this machine; its handler returns (status, body), or "hang" or "reset".

    `models` are the names that it lists; None: it has no list.
    """

    models: tuple[str, ...] | None = None

    def __init__(self, handler: Handler) -> None:
        self.handler, self.requests = handler, 0
        self.most = self.now = 0
        self.url = ""
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self.thread.start()
        started.wait(10)

    async def _serve(self, started: threading.Event) -> None:
        self.loop, self.closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self.closed.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.now -= 1
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if head[0].startswith("GET "):
            listed = json.dumps({"data": [{"id": name} for name in self.models or ()]})
            await self._write(writer, *((404, "") if self.models is None else (200, listed)))
            return True
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests += 1
        result = self.handler(body, headers)
        if result == "hang":
            await reader.read()  # until the client gives up
            return False
        if result == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        await self._write(writer, *result)
        return True

    async def _write(self, writer: asyncio.StreamWriter, status: int, content: str) -> None:
        data = content.encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.closed.set)
        self.thread.join(10)


@pytest.fixture
def start_server() -> Iterator[Callable[[Handler], Served]]:
    """Starts HTTP servers that answer as a handler says, and stops them when the test is over."""
    running: list[Served] = []

    def start(handler: Handler) -> Served:
        running.append(Served(handler))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def tiny_qwen3vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Qwen3-VL with 0.2 M random weights, its tokenizer and its processor."""
    return write_tiny(tmp_path_factory.mktemp("qwen3vl"), width=64, layers=2, tokens=384, spread=0.08)
