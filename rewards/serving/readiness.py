"""Whether what a reward depends on is there: asked once, before anything is trained on it."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from srgym.errors import Refusal
from srgym.rewards.serving.exchange import Fault, exchange, in_thread, session

__all__ = ["ServerRefused", "answering", "ensure_ready"]

_log = logging.getLogger(__name__)

_SECONDS = 5.0
_LARGEST_LIST = 1 << 20


class ServerRefused(Refusal):
    """A server isn't there, or won't answer however often it's asked: a wrong address, token, model or option."""


def ensure_ready(part: Any) -> None:
    """Let a reward, and whatever it is made of, say that it can't work.

    A reward that depends on something outside has a method `ready()`, which raises ValueError with the reason. It may
    be the reward's own (a user's too), its scorer's, judge's or engine's, or that of a part of a sum.

    Raises:
        ValueError: from the first part that isn't ready.
    """
    if callable(check := getattr(part, "ready", None)):
        check()
    for name in ("score", "scorer", "fidelity", "judge", "metrics", "engine"):
        if (inner := getattr(part, name, None)) is not None:
            ensure_ready(inner)
    if isinstance(parts := getattr(part, "parts", None), dict):
        for inner in parts.values():
            ensure_ready(inner)


def answering(urls: Sequence[str], model: str, token: str | None, seconds: float = _SECONDS) -> list[str]:
    """Which of the servers answer, each asked for its list of models; the others are warned of.

    Raises:
        ServerRefused: if none does, or one refuses the token or has no such model.
    """
    troubles = in_thread(_troubles(urls, model, token, seconds))
    silent = {url: trouble for url, trouble in troubles.items() if trouble is not None}
    where = ", ".join(f"{url} ({trouble})" for url, trouble in silent.items())
    if len(silent) == len(urls):
        raise ServerRefused(
            f"no server of the model '{model}' answers at {where}: start one with `srgym serve {model} --model PATH`, "
            "or set the reward's urls to where one is"
        )
    if silent:
        _log.warning("going on without the server of the model '%s' at %s", model, where)
    return [url for url in urls if url not in silent]


async def _troubles(urls: Sequence[str], model: str, token: str | None, seconds: float) -> dict[str, str | None]:
    async with session(len(urls), urls) as http:
        found = await asyncio.gather(*(_trouble(http, url, model, token, seconds) for url in urls))
    return dict(zip(urls, found, strict=True))


async def _trouble(http: Any, url: str, model: str, token: str | None, seconds: float) -> str | None:
    """Why a server doesn't answer, or None if it does."""
    try:
        status, body = await exchange(
            http, "GET", f"{url}/v1/models", token=token, seconds=seconds, largest=_LARGEST_LIST
        )
    except Fault as fault:
        return str(fault)
    if status in (401, 403):
        raise ServerRefused(
            f"{url} answers {status}: it wants another token than SRGYM_SERVE_TOKEN or the reward's setting"
        )
    if 300 <= status < 400:
        return f"status {status}, a redirect, which isn't followed: name the address that it leads to"
    if status != 200:
        # A server that has no list of models may still answer questions.
        return None if status in (404, 405, 501) else f"status {status}"
    names = _names(body)
    if names and model not in names:
        raise ServerRefused(
            f"{url} serves {', '.join(f'{name!r:.60}' for name in names[:5])}, and not the model '{model}' that is "
            "asked for"
        )
    return None


def _names(body: bytes) -> list[str]:
    try:
        return [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
