"""Who answers questions: served models, or a model in this process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.later import Later
from srgym.rewards.serving.question import BadAnswer, Question, Reply

__all__ = ["ENGINES", "Engine", "asked", "ask_locally", "make_engine"]

T = TypeVar("T")

ENGINES = ("served", "transformers", "vllm")


class Engine(Protocol):
    """Answers questions about images.

    One whose answers come from elsewhere also has `begin(questions, read)`: it asks, and returns a function that waits
    for what `ask` returns.
    """

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], T]) -> list[T | None]:
        """Each question's answer, as `read` makes it of a reply; None where there's no good one."""

    def stream(
        self, questions: Sequence[Question], read: Callable[[Reply], T], groups: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[T | None]]]:
        """(group, the answers to its questions in order), each group as soon as it is complete."""


def make_engine(spec: "Spec | Engine", *, model: str) -> Engine:
    """An engine.

    Args:
        spec: the base address of a server ("http://127.0.0.1:8000"); or a mapping with `engine` and its options:
            "served" (`urls`, and what else `Client` takes), "transformers" or "vllm" (`path` of the model's folder, and
            what else `TransformersEngine` or `VLLMEngine` takes); or an engine, which is returned.
        model: the name that served models go by unless the spec gives one.

    Raises:
        ValueError: for an unknown engine.
    """
    if isinstance(spec, str):
        spec = {"engine": "served", "urls": spec}
    if not isinstance(spec, Mapping):
        return spec
    options = {str(key): value for key, value in spec.items()}
    name = options.pop("engine", "served")
    if name not in ENGINES:
        raise Refusal(f"unknown engine '{name}': expected one of {', '.join(ENGINES)}")
    try:
        if name == "served":
            from srgym.rewards.serving.client import Client

            return Client(**{"model": model, **options})
        if name == "transformers":
            from srgym.rewards.serving.local import TransformersEngine

            return TransformersEngine(**options)
        from srgym.rewards.serving.local import VLLMEngine

        return VLLMEngine(**options)
    except TypeError as error:
        raise Refusal(f"engine '{name}': {error}") from error


def asked(engine: Engine, questions: Sequence[Question], read: Callable[[Reply], T]) -> Later[list[T | None]]:
    """What `engine.ask` returns, or a function that waits for it where others answer."""
    begin: Callable[..., Callable[[], list[T | None]]] | None = getattr(engine, "begin", None)
    return engine.ask(questions, read) if begin is None else begin(questions, read)


def ask_locally(
    answer: Callable[[list[Question]], list[Reply]],
    questions: Sequence[Question],
    read: Callable[[Reply], T],
    retries: int,
) -> list[T | None]:
    """Ask a model that doesn't fail; a bad answer is asked for again, hotter and with another seed, `retries` times."""
    values: list[T | None] = [None] * len(questions)
    waiting = list(range(len(questions)))
    for attempt in range(retries + 1):
        asked = [questions[i].again(attempt, hotter=True) if attempt else questions[i] for i in waiting]
        bad = []
        for i, reply in zip(waiting, answer(asked) if asked else [], strict=True):
            try:
                values[i] = read(reply)
            except BadAnswer:
                bad.append(i)
        waiting = bad
    return values
