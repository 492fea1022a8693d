"""Answers on disk: appended as they come, none asked for twice, a line that was torn dropped."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from srgym.errors import Refusal

__all__ = ["AnswerLog", "answer_key"]


def answer_key(images: Iterable[str], prompt: str, annotator: str, order: str = "", sample: int = 0) -> str:
    """What an answer is known by: the hashes of its images, what was asked, who was, in which order, which time."""
    told = json.dumps([list(images), prompt, annotator, order, sample])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class AnswerLog:
    """The answers of one annotator in one stage, by key; a file of JSON lines that is only ever appended to.

    Args:
        path: made with the first answer. A last line without its end, of a process that was stopped, is cut off.

    Raises:
        Refusal: for a line that is no answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode().splitlines(), 1):
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise Refusal(f"{path}, line {number}: expected an answer, got {line!r:.60}") from error

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
