"""Asking a vision-language model for scores: the questions, the engines that answer them, and a vLLM server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.rewards.serving.client import Client as Client
    from srgym.rewards.serving.engines import Engine as Engine
    from srgym.rewards.serving.engines import make_engine as make_engine
    from srgym.rewards.serving.parsing import parse_scores as parse_scores
    from srgym.rewards.serving.question import BadAnswer as BadAnswer
    from srgym.rewards.serving.question import Question as Question
    from srgym.rewards.serving.question import Reply as Reply
    from srgym.rewards.serving.server import Server as Server

_EXPORTS = {
    "BadAnswer": "question",
    "Client": "client",
    "Engine": "engines",
    "Question": "question",
    "Reply": "question",
    "Server": "server",
    "make_engine": "engines",
    "parse_scores": "parsing",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
