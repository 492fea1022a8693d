"""An asynchronous client of OpenAI-compatible servers: everything in flight at once, nothing waited for in vain."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from srgym.errors import Refusal, WrongType
from srgym.rewards.serving.breaker import Breaker
from srgym.rewards.serving.exchange import Fault, exchange, library, session
from srgym.rewards.serving.question import BadAnswer, Question, Reply
from srgym.rewards.serving.readiness import ServerRefused, answering
from srgym.rewards.serving.server import TOKEN_VARIABLE

__all__ = ["Client", "ServerRefused", "ServersSilent"]

T = TypeVar("T")

_ROUNDING = 1e-4  # what the logarithm of a probability may be above 0
_GRACE = 5.0  # seconds behind the deadline after which a batch is given up whose loop is stuck
_log = logging.getLogger(__name__)


class ServersSilent(Refusal):
    """Every server has been silent for several batches: going on would collect samples without scores for ever."""


class _Replica:
    def __init__(self, url: str, breaker: Breaker) -> None:
        self.url, self.breaker = url, breaker
        self.busy = self.asked = 0


class _Batch:
    """The questions of one call, and what has become of them; given up at `end`, of `time.monotonic`."""

    def __init__(self, questions: list[Question], labels: list[int], end: float) -> None:
        self.questions, self._labels = questions, labels
        self.began, self.end = time.monotonic(), end
        self.answers: list[Any] = [None] * len(questions)
        self._rows: dict[int, list[int]] = {}
        for i, label in enumerate(labels):
            self._rows.setdefault(label, []).append(i)
        self._unsettled = Counter(labels)
        self.open = len(questions)
        self.faults: Counter[str] = Counter()
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.left = threading.Event()

    def settle(self, i: int, answer: Any) -> None:
        """Question i is done; hands its group over with the last of it."""
        label = self._labels[i]
        self.answers[i] = answer
        self.open -= 1
        self._unsettled[label] -= 1
        if not self._unsettled[label]:
            self._hand_over(label)

    def close(self) -> None:
        """The time is up: hands over what's there of the groups that aren't complete."""
        if self.open:
            self.faults["deadline"] += self.open
        for label, count in self._unsettled.items():
            if count:
                self._hand_over(label)

    @property
    def labels(self) -> set[int]:
        """All groups."""
        return set(self._rows)

    def answers_of(self, label: int) -> list[Any]:
        """A group's answers as far as they are there."""
        return [self.answers[i] for i in self._rows[label]]

    def next(self) -> Any:
        """What is handed over next; raises queue.Empty if nothing is by the end."""
        return self.out.get(timeout=max(0.0, self.end - time.monotonic()))

    def _hand_over(self, label: int) -> None:
        self.out.put((label, self.answers_of(label)))


class Client:
    """Asks a model behind one or several OpenAI-compatible servers (vLLM), balanced over them.

    A question that fails is asked again after a pause, with a new seed, on another replica where there's one. A
    question without a good answer by the deadline has none: its result is None, never a made-up score.

    Args:
        urls: base addresses, such as "http://127.0.0.1:8000"; one or several replicas of the same model.
        model: the name that the servers know the model by.
        token: sent as a bearer token; when None, what the environment variable `token_variable` holds.
        limit: how many requests are in flight at once, of all batches together.
        timeout: seconds for one request.
        deadline: seconds for one batch, retries and pauses included.
        retries: how often a failed question is asked again.
        backoff: seconds before the first retry; doubled for each further one, and spread by half.
        failures, cooldown: when a replica is left alone, and for how many seconds at first (see `Breaker`).
        structured: send vLLM's `structured_outputs` for questions with a pattern or choices.
        patience: after how many batches in a row without a single reply to give up, with ServersSilent; those that
            were asked at once, as the parts of a rollout are, count as one. Replies that hold no usable score count as
            replies: a model that answers badly costs samples, and doesn't stop a run.

    Attributes:
        stats: how many questions were `asked` and `lost`, and how often each fault was met.

    Raises:
        ValueError: for settings that can't work.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        model: str = "srgym",
        token: str | None = None,
        token_variable: str = TOKEN_VARIABLE,
        limit: int = 64,
        timeout: float = 60.0,
        deadline: float = 300.0,
        retries: int = 3,
        backoff: float = 0.25,
        failures: int = 5,
        cooldown: float = 1.0,
        structured: bool = True,
        patience: int = 3,
    ) -> None:
        addresses = [urls] if isinstance(urls, str) else list(urls or ())
        if not addresses:
            raise Refusal("a client needs the base address of at least one server, got none")
        if min(limit, patience) < 1 or retries < 0 or timeout <= 0 or deadline <= 0 or backoff < 0:
            raise Refusal(
                "a client needs limit >= 1, retries >= 0, timeout > 0, deadline > 0, backoff >= 0 and patience >= 1, "
                f"got {limit}, {retries}, {timeout}, {deadline}, {backoff}, {patience}"
            )
        self._replicas = [_Replica(_address(url), Breaker(failures, cooldown)) for url in addresses]
        self.model, self._token = model, token or os.environ.get(token_variable)
        self.limit, self.timeout, self.deadline = limit, timeout, deadline
        self.retries, self.backoff, self.structured = retries, backoff, structured
        self.patience, self._silent, self._silent_until = patience, 0, -math.inf
        library()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.stats: Counter[str] = Counter()

    def ready(self) -> None:
        """Look whether servers are there and know the model.

        Raises:
            ServerRefused: if none is, or one refuses.
        """
        answering([replica.url for replica in self._replicas], self.model, self._token, min(self.timeout, 5.0))

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], T]) -> list[T | None]:
        """Every question's answer as `read` makes it of a reply (raising BadAnswer), None where there's none.

        Takes no longer than `deadline`.

        Raises:
            ServerRefused, ServersSilent: see `stream`.
        """
        return self.begin(questions, read)()

    def begin(self, questions: Sequence[Question], read: Callable[[Reply], T]) -> Callable[[], list[T | None]]:
        """Ask without waiting: returns a function that waits for what `ask` returns, and raises what it raises."""
        arriving = self._received(self._sent(questions, read, [0] * len(questions))) if questions else iter(())

        def answers() -> list[T | None]:
            batches = list(arriving)
            return batches[0][1] if batches else []

        return answers

    def stream(
        self, questions: Sequence[Question], read: Callable[[Reply], T], groups: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[T | None]]]:
        """Like `ask`, but yields (group, its answers in order) as soon as a group is complete, in that order of time.

        Args:
            questions: asked all at once, under `limit`.
            read: from a reply to a value; raises BadAnswer for a reply to be asked for again.
            groups: the group of each question; all in group 0 when None.

        Raises:
            ServerRefused: when a server turns a request down for good.
            ServersSilent: behind the groups of the last of `patience` batches that got no reply at all.
        """
        labels = list(groups) if groups is not None else [0] * len(questions)
        if len(labels) != len(questions):
            raise Refusal(f"expected a group for each of {len(questions)} questions, got {len(labels)}")
        if questions:
            yield from self._received(self._sent(questions, read, labels))

    def _sent(self, questions: Sequence[Question], read: Callable[[Reply], T], labels: list[int]) -> _Batch:
        batch = _Batch(list(questions), labels, time.monotonic() + self.deadline + _GRACE)
        asyncio.run_coroutine_threadsafe(self._run(batch, read), self._running())
        return batch

    def _received(self, batch: _Batch) -> Iterator[tuple[int, list[Any]]]:
        """A batch's groups as they are complete; then what it ended with, if that's an error."""
        missing = batch.labels
        try:
            while (item := batch.next()) is not None:
                if isinstance(item, BaseException):
                    raise item
                missing.discard(item[0])
                yield item
        except queue.Empty:  # the loop is stuck in something that doesn't give way
            _log.warning("a batch of %d questions is given up %g s after its deadline", len(batch.questions), _GRACE)
            with self._lock:
                self._loop = None  # the next batch gets another
            yield from ((label, batch.answers_of(label)) for label in missing)
        finally:
            batch.left.set()

    def _running(self) -> asyncio.AbstractEventLoop:
        """The event loop of this client's batches, in a thread of its own: the caller may already be inside a loop (a
        notebook is), and goes on with other work while answers come in."""
        with self._lock:
            if self._loop is None:
                self._loop, self._gate = asyncio.new_event_loop(), asyncio.Semaphore(self.limit)
                threading.Thread(target=self._loop.run_forever, name="srgym-client", daemon=True).start()
                weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
            return self._loop

    async def _run(self, batch: "_Batch", read: Callable[[Reply], T]) -> None:
        try:
            async with session(self.limit, [replica.url for replica in self._replicas]) as http:
                try:
                    await self._collect(http, batch, read)
                finally:
                    batch.out.put(None)
        except Exception as error:  # raised in the thread that waits for the batch
            batch.out.put(error)
            batch.out.put(None)

    async def _collect(self, http: Any, batch: "_Batch", read: Callable[[Reply], T]) -> None:
        gate = self._gate
        done: asyncio.Queue[asyncio.Task[T | None]] = asyncio.Queue()
        number: dict[asyncio.Task[T | None], int] = {}
        for i, question in enumerate(batch.questions):
            task = asyncio.create_task(self._answer(http, gate, question, read, batch.faults))
            task.add_done_callback(done.put_nowait)
            number[task] = i
        end = asyncio.get_running_loop().time() + self.deadline
        try:
            while batch.open and not batch.left.is_set():
                rest = end - asyncio.get_running_loop().time()
                if rest <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    # Woken now and then to notice a caller who has gone away.
                    task = await asyncio.wait_for(done.get(), min(rest, 0.5))
                    batch.settle(number[task], task.result())
        except Exception as error:
            batch.out.put(error)
        finally:
            for task in number:
                task.cancel()
            batch.close()
            self._account(batch)

    def _account(self, batch: "_Batch") -> None:
        lost = sum(answer is None for answer in batch.answers)
        silent = lost == len(batch.questions) and not batch.faults["bad answer"] and not batch.left.is_set()
        with self._lock:
            self.stats.update({**batch.faults, "asked": len(batch.questions), "lost": lost})
            if not silent:
                self._silent = 0
            elif batch.began >= self._silent_until:
                self._silent, self._silent_until = self._silent + 1, time.monotonic()
            in_a_row = self._silent
        if not lost:
            return
        causes = ", ".join(f"{count} x {cause}" for cause, count in batch.faults.most_common())
        _log.warning("%d of %d questions have no answer (%s)", lost, len(batch.questions), causes)
        if in_a_row >= self.patience:
            where = ", ".join(replica.url for replica in self._replicas)
            batch.out.put(
                ServersSilent(
                    f"no server of the model '{self.model}' has replied to any question of {in_a_row} batches in a row "
                    f"({where}; {causes}): bring one back, then go on from the last checkpoint with resume=FOLDER"
                )
            )

    async def _answer(
        self, http: Any, gate: asyncio.Semaphore, question: Question, read: Callable[[Reply], T], faults: Counter[str]
    ) -> T | None:
        last: _Replica | None = None
        bad = False
        for attempt in range(self.retries + 1):
            asked = question
            if attempt:
                asked = question.again(attempt, hotter=bad)
                await asyncio.sleep(self.backoff * 2 ** (attempt - 1) * _spread(asked.seed))
            async with gate:
                last = await self._replica(avoid=last)
                try:
                    reply = await self._attempt(http, last, asked)
                except Fault as fault:
                    faults[str(fault)] += 1
                    continue
            try:
                return read(reply)
            except BadAnswer:
                bad = True
                faults["bad answer"] += 1
        return None

    async def _replica(self, avoid: _Replica | None) -> _Replica:
        """The least busy replica that takes calls, rather another than `avoid`; waits until there's one."""
        while True:
            for replica in sorted(self._replicas, key=lambda r: (r is avoid, r.busy, r.asked)):
                if replica.breaker.acquire():
                    return replica
            await asyncio.sleep(max(0.01, min(replica.breaker.wait() for replica in self._replicas)))

    async def _attempt(self, http: Any, replica: _Replica, question: Question) -> Reply:
        replica.busy += 1
        replica.asked += 1
        reported = False
        try:
            reply = await self._post(http, replica.url, question)
            replica.breaker.succeeded()
            reported = True
            return reply
        except Fault:
            replica.breaker.failed()
            reported = True
            raise
        finally:
            replica.busy -= 1
            if not reported:
                replica.breaker.abandoned()

    async def _post(self, http: Any, url: str, question: Question) -> Reply:
        body = json.dumps(self._payload(question)).encode()
        status, content = await exchange(
            http, "POST", url + "/v1/chat/completions", token=self._token, seconds=self.timeout, body=body
        )
        if status in (408, 425, 429) or status >= 500:
            raise Fault(f"status {status}")
        if status != 200:
            said = content[:300].decode("utf-8", "replace")
            raise ServerRefused(f"{url} answered {status} to a question for the model '{self.model}': {said}")
        return _read_body(content, question)

    def _payload(self, question: Question) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": question.messages(),
            "max_tokens": 1 if question.choices else question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
        }
        if question.stop:
            payload["stop"] = list(question.stop)
        if question.choices:
            payload |= {"logprobs": True, "top_logprobs": 20}
        if self.structured and question.choices:
            payload["structured_outputs"] = {"choice": list(question.choices)}
        elif self.structured and question.pattern:
            payload["structured_outputs"] = {"regex": question.pattern}
        return payload


def _read_body(content: bytes, question: Question) -> Reply:
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise WrongType(f"expected a text, got {type(text).__name__}")
        logprobs = _first_logprobs(choice) if question.choices else {}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise Fault("a malformed body") from error
    stopped = choice.get("finish_reason") == "stop" and choice.get("stop_reason") in question.stop
    return Reply(text, stopped=stopped, logprobs=logprobs)


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float]:
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    found = {str(entry["token"]): float(entry["logprob"]) for entry in top}
    for token, value in found.items():
        if math.isnan(value) or value > _ROUNDING:
            raise Refusal(f"expected the logarithm of a probability for {token!r:.20}, got {value}")
    return found


def _spread(seed: int) -> float:
    """A factor from 0.5 to 1.5, drawn from the seed, so that retries don't come all at once."""
    digest = hashlib.blake2b(seed.to_bytes(8, "big", signed=True), digest_size=4).digest()
    return 0.5 + int.from_bytes(digest, "big") / 2**32


def _address(url: str) -> str:
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return url.rstrip("/").removesuffix("/v1")
    raise Refusal(f"expected the base address of a server, such as 'http://127.0.0.1:8000', got '{url}'")
