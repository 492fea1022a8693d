"""One exchange of HTTP with a server that may be slow, wrong or hostile.

It ends within its deadline, reads no more than its limit, follows no redirect (which could carry the token elsewhere)
and passes through no proxy; whatever goes wrong is a `Fault` with a reason.
"""

import asyncio
import contextlib
import importlib
import os
import ssl
import threading
from collections.abc import Coroutine, Sequence
from functools import cache
from typing import Any, TypeVar

from srgym.errors import Refusal

__all__ = ["LARGEST_BODY", "Fault", "exchange", "in_thread", "library", "session", "status_of"]

T = TypeVar("T")

LARGEST_BODY = 4 << 20


class Fault(Exception):
    """A server failed at one request; another try may go well."""


def library() -> Any:
    """httpx, under either of the two names that huggingface_hub (which brings it) has used."""
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise Refusal("asking a served model needs httpx: pip install httpx")


def session(limit: int, urls: Sequence[str]) -> Any:
    """An asynchronous client for servers at these addresses, of at most `limit` connections."""
    http = library()
    tls = _certificates() if any(url.startswith("https") for url in urls) else False
    limits = http.Limits(max_connections=limit, max_keepalive_connections=limit)
    # Time is kept by `exchange`; proxies of the environment would carry images to hosts that nobody named.
    return http.AsyncClient(timeout=None, limits=limits, verify=tls, trust_env=False, follow_redirects=False)


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


async def exchange(
    http: Any,
    method: str,
    url: str,
    *,
    token: str | None,
    seconds: float,
    body: bytes | None = None,
    largest: int = LARGEST_BODY,
) -> tuple[int, bytes]:
    """Status and body of a server's answer.

    Args:
        http: a `session`.
        token: sent as a bearer token.
        seconds: for all of it. largest: bytes of the body.

    Raises:
        Fault: and nothing else, with the reason.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    headers |= {} if body is None else {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(seconds):
            async with http.stream(method, url, content=body, headers=headers) as response:
                parts, size = [], 0
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > largest:
                        raise Fault(f"a body of more than {largest} bytes")
            return int(response.status_code), b"".join(parts)
    except Fault:
        raise
    except TimeoutError as error:
        raise Fault("timeout") from error
    except Exception as error:
        raise Fault(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """What the system said, such as "Connection refused", where it is behind an error; else the error's kind."""
    behind: list[BaseException] = [error]
    for one in behind:
        if isinstance(one, OSError) and one.errno:
            return os.strerror(one.errno) if one.errno > 0 else str(one.strerror)
        parts = (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))
        behind += [part for part in parts if part is not None and part not in behind]
    return type(error).__name__


def status_of(url: str, seconds: float) -> int:
    """The status that an address answers a GET with, no token sent.

    Raises:
        Fault: where it doesn't answer.
    """

    async def ask() -> int:
        async with session(1, [url]) as http:
            status, _ = await exchange(http, "GET", url, token=None, seconds=seconds, largest=1 << 16)
            return status

    return in_thread(ask())


def in_thread(run: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a loop of its own: the caller may be inside one already (a notebook is)."""
    result: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(asyncio.run(run))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="srgym-client", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]
