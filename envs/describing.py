"""Descriptions of images by a served multimodal model, in three rounds, as RealSR-R1's documents want them.

Each round sees the image and what was said before; a fourth question asks for the main things by name (the paper has
Grounded-SAM find them). Answers are appended to a file as they come, so that a stopped job goes on where it was.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from srgym.envs.descriptions import LEVELS
from srgym.envs.sources import Sample, Source
from srgym.errors import MissingFile, Refusal
from srgym.rewards.serving.engines import Engine
from srgym.rewards.serving.question import BadAnswer, Question, Reply, encode_images
from srgym.sealed import read_object

__all__ = ["PROMPTS", "describe_source", "read_prompts"]

PROMPTS = {
    "rough": "Say in about fifty words how this photograph is laid out: its subject, what is before it and behind it.",
    "middle": (
        'Of this photograph it was said: "{rough}" Look closer and say it better: what stands out, its surfaces and '
        "textures, light and shadow, and how its colours change. Correct what was wrong."
    ),
    "final": (
        'Of this photograph it was said first: "{rough}" and then: "{middle}" Say now its finest details: small things '
        "in the background, fine textures, gradients, edges of light and shadow. Correct what was wrong."
    ),
    "tags": "Name the main things in this photograph, at most six, each by one or two words, separated by commas.",
}
"""What is asked; a later round may quote earlier answers by their names."""

_MOST = 6
_LONGEST = 400  # tokens of an answer


def read_prompts(path: str | Path | None) -> dict[str, str]:
    """Questions from a JSON file with the keys of `PROMPTS`; the others stay.

    Raises:
        FileNotFoundError: if there is none. ValueError: for an unknown key, or a name that isn't an earlier round's.
    """
    if path is None:
        return dict(PROMPTS)
    if not Path(path).is_file():
        raise MissingFile(f"expected a JSON file of questions at {path}, found none")
    own = read_object(Path(path), {})
    for key, text in own.items():
        if key not in PROMPTS or not isinstance(text, str):
            raise Refusal(f"{path}: expected texts by {', '.join(PROMPTS)}, got '{key}'")
    prompts = {**PROMPTS, **own}
    said: dict[str, str] = {}
    for key, text in prompts.items():
        try:
            text.format(**said)
        except (KeyError, IndexError, ValueError) as error:
            raise Refusal(f"{path}: '{key}' may quote {', '.join(said) or 'nothing'}, got {error}") from error
        said[key] = ""
    return prompts


def describe_source(
    source: Source,
    engine: Engine,
    out: str | Path,
    *,
    prompts: Mapping[str, str] = PROMPTS,
    batch: int = 8,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[int, int]:
    """Describe a source's images, and append what is said to a file of JSON lines (see `srgym.envs.descriptions`).

    Args:
        source: with ground truth.
        engine: who answers.
        out: what it holds already isn't asked again.
        batch: images in flight at once.
        limit: at most so many, from the first.
        progress: is called with the share done.

    Returns:
        How many were written now, and how many had no usable answer, which are left out and asked next time.

    Raises:
        ValueError: for a source without ground truth, or a file that holds something else.
    """
    if "hr" not in source.provides:
        raise Refusal(f"descriptions are of ground truth ('hr'), and the source '{source.name}' has none")
    if batch < 1:
        raise Refusal(f"expected batch of 1 or more, got {batch}")
    path, total = Path(out), len(source) if limit is None else min(limit, len(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        known = _mend(path)
        missing = (sample for sample in map(source.__getitem__, range(total)) if sample.id not in known)
        written, without, seen = 0, 0, len(known)
        while samples := list(islice(missing, batch)):
            lines = [line for line in _described(samples, engine, prompts) if line is not None]
            written, without, seen = written + len(lines), without + len(samples) - len(lines), seen + len(samples)
            _append(path, lines)
            if progress is not None:
                progress(min(seen / total, 1.0))
    return written, without


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Refusal(f"another process is writing {path}: wait for it, or choose another file") from error
    try:
        yield
    finally:
        lock.release()


def _mend(path: Path) -> set[str]:
    """The ids that a file has; a last line that was torn is cut off."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    names = set()
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            names.add(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{path}, line {number}: expected a description, got {line!r:.60}") from error
    return names


def _append(path: Path, lines: Iterable[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _described(samples: Sequence[Sample], engine: Engine, prompts: Mapping[str, str]) -> list[str | None]:
    """A line for each sample, None where a round had no usable answer."""
    images = [encode_images(torch.as_tensor(sample.hr)[None])[0] for sample in samples]
    said: list[dict[str, Any]] = [{} for _ in samples]
    for key, prompt in prompts.items():
        going = [i for i, answers in enumerate(said) if None not in answers.values()]
        questions = [_question(prompt.format(**said[i]), images[i]) for i in going]
        for i, answer in zip(going, engine.ask(questions, _tags if key == "tags" else _words), strict=True):
            said[i][key] = answer
    lines: list[str | None] = []
    for sample, answers in zip(samples, said, strict=True):
        complete = len(answers) == len(prompts) and None not in answers.values()
        captions = [answers.get(level) for level in LEVELS]
        line = {"id": sample.id, "captions": captions, "tags": answers.get("tags")}
        lines.append(json.dumps(line, ensure_ascii=False) if complete else None)
    return lines


def _question(text: str, image: bytes) -> Question:
    seed = int.from_bytes(hashlib.blake2b(image + text.encode(), digest_size=4).digest(), "big") & 0x7FFFFFFF
    return Question(text, (image,), seed, max_tokens=_LONGEST)


def _words(reply: Reply) -> str:
    text = " ".join(re.sub(r"[<>]", " ", reply.text).split())  # a tag of its own would break the document's form
    if not text:
        raise BadAnswer("expected a description, got nothing")
    return text


def _tags(reply: Reply) -> list[str]:
    names = [name.strip(" .").lower() for name in re.split(r"[,;\n]", _words(reply))]
    names = [name for name in dict.fromkeys(names) if name and len(name.split()) <= 3]
    if not names:
        raise BadAnswer(f"expected names separated by commas, got {reply.text!r:.60}")
    return names[:_MOST]
