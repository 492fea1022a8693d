"""Answers on disk: appended as they come, none asked for twice, a line that was torn dropped."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from srgym.errors import Refusal

__all__ = ["AnswerLog", "answer_key", "read_answers"]


def answer_key(images: Iterable[str], prompt: str, annotator: str, order: str = "", sample: int = 0) -> str:
    """What an answer is known by: the hashes of its images, what was asked, who was, in which order, which time."""
    told = json.dumps([list(images), prompt, annotator, order, sample])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The answers in a file of JSON lines, each with its `key`, `answer` and what was told about it.

    A last line without its end is left out: its process was stopped, or is writing it.

    Raises:
        Refusal: for a line that is no answer.
    """
    content = path.read_bytes() if path.is_file() else b""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            row["key"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            shown = line.decode(errors="replace")
            raise Refusal(f"{path}, line {number}: expected an answer, got {shown!r:.60}") from error
        rows.append(row)
    return rows


class AnswerLog:
    """The answers of one annotator in one stage, by key; a file of JSON lines that is only ever appended to.

    Args:
        path: made with the first answer. A last line without its end, of a process that was stopped, is cut off.

    Raises:
        Refusal: for a line that is no answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {row["key"]: row["answer"] for row in read_answers(path)}
        if not path.is_file():
            return
        with path.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, answers: Mapping[str, Any], about: Mapping[str, Mapping[str, Any]]) -> None:
        """Append answers, and flush them to the disk.

        Args:
            answers: by key. about: what people may want to know of each, by key: its group, its candidates.
        """
        if not answers:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for key, answer in answers.items():
                file.write(json.dumps({"key": key, **about[key], "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known |= answers
