"""Asking a vision-language model for scores: the questions, the engines that answer them, and a vLLM server."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.rewards.serving.client import Client as Client
    from srgym.rewards.serving.engines import Engine as Engine
    from srgym.rewards.serving.engines import make_engine as make_engine
    from srgym.rewards.serving.parsing import parse_scores as parse_scores
    from srgym.rewards.serving.question import BadAnswer as BadAnswer
    from srgym.rewards.serving.question import Question as Question
    from srgym.rewards.serving.question import Reply as Reply
    from srgym.rewards.serving.server import Server as Server

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "client": ["Client"],
        "engines": ["Engine", "make_engine"],
        "parsing": ["parse_scores"],
        "question": ["BadAnswer", "Question", "Reply"],
        "server": ["Server"],
    },
)
