"""Whether what a reward depends on is there: asked once, before anything is trained on it."""

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from srgym.errors import Refusal

__all__ = ["ServerRefused", "answering", "ensure_ready"]

_log = logging.getLogger(__name__)

_SECONDS = 5.0


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
    troubles = {url: _trouble(url, model, token, seconds) for url in urls}
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


def _trouble(url: str, model: str, token: str | None, seconds: float) -> str | None:
    """Why a server doesn't answer, or None if it does."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as when asking: through no proxy
    try:
        with opener.open(request, timeout=seconds) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ServerRefused(
                f"{url} answers {error.code}: it wants another token than SRGYM_SERVE_TOKEN or the reward's setting"
            ) from error
        # A server that has no list of models may still answer questions.
        return None if error.code in (404, 405, 501) else f"status {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
    names = _names(body)
    if names and model not in names:
        raise ServerRefused(
            f"{url} serves {', '.join(map(repr, names))}, and not the model '{model}' that is asked for"
        )
    return None


def _names(body: bytes) -> list[str]:
    try:
        return [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return []
