"""Constrained decoding for models in this process: only tokens that keep an answer on its pattern."""

from importlib import import_module
from typing import Any

__all__ = ["PatternGuide"]


class PatternGuide:
    """Which tokens may follow, so that an answer matches a regular expression.

    For patterns of literals, groups, digits and digit ranges (what `Question.pattern` allows): only tokens spelt with
    the pattern's own letters and digits are looked at.

    Args:
        tokenizer: a transformers tokenizer.
        pattern: the regular expression.
    """

    def __init__(self, tokenizer: Any, pattern: str) -> None:
        regex: Any = import_module("regex")  # as re, but tells a text that may still come to match
        self._pattern = regex.compile(pattern)
        self._end = int(tokenizer.eos_token_id)
        self._tokenizer = tokenizer
        letters = set(pattern) | set("0123456789")
        special = set(tokenizer.all_special_ids)
        spelt = ((i, tokenizer.decode([i])) for i in range(len(tokenizer)) if i not in special)
        self._tokens = [(i, text) for i, text in spelt if text and letters.issuperset(text)]
        self._known: dict[str, list[int]] = {}

    def allowed(self, answered: list[int]) -> list[int]:
        """The token ids that may follow an answer's tokens so far; its end alone when the pattern is complete."""
        text = self._tokenizer.decode(answered, skip_special_tokens=True)
        if text not in self._known:
            match = self._pattern.fullmatch
            following = [i for i, token in self._tokens if match(text + token, partial=True)]
            self._known[text] = following if following and not match(text) else [self._end]
        return self._known[text]
