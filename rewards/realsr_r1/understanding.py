"""Whether a text names what the picture shows."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from srgym.errors import MissingFile, Refusal
from srgym.sealed import read_object

__all__ = ["MATCHES", "mentions", "read_synonyms", "singular", "understanding_reward"]

MATCHES = ("word", "substring")

_IRREGULAR = {
    "buses": "bus", "cactuses": "cactus", "children": "child", "feet": "foot", "gases": "gas", "geese": "goose",
    "lenses": "lens", "men": "man", "mice": "mouse", "people": "person", "teeth": "tooth", "women": "woman",
}  # fmt: skip
_TO_F = {"calves", "halves", "knives", "leaves", "loaves", "scarves", "shelves", "thieves", "wolves"}


def understanding_reward(
    text: str, tags: Collection[str], *, match: str = "word", synonyms: Mapping[str, Collection[str]] | None = None
) -> float | None:
    """The share of the tags that a text mentions, in [0, 1]; None where there are no tags.

    Args:
        text: the understanding that was written.
        tags: the main objects; one that is given twice counts once.
        match: "word" or "substring" (see `mentions`).
        synonyms: by tag, other words that count as naming it.
    """
    wanted = {" ".join(tag.lower().split()) for tag in tags} - {""}
    if not wanted:
        return None
    mentioned = (any(mentions(text, name, match) for name in (tag, *(synonyms or {}).get(tag, ()))) for tag in wanted)
    return sum(mentioned) / len(wanted)


def mentions(text: str, name: str, match: str = "word") -> bool:
    """Whether a text names a thing.

    Args:
        match: "word": the name's words in a row, as whole words, singular or plural. "substring": its letters anywhere,
            so that "car" is found in "carpet"; that is how RealSR-R1's released code matches.

    Raises:
        ValueError: for an unknown match.
    """
    if match == "substring":
        return name.lower() in text.lower()
    if match != "word":
        raise Refusal(f"expected a match of {', '.join(MATCHES)}, got '{match}'")
    wanted, words = _words(name), _words(text)
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def singular(word: str) -> str:
    """An English noun without its plural ending; what isn't a plural stays."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _TO_F:
        stem = word[:-3]
        return stem + "fe" if word == "knives" else stem + "f"
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if re.search(r"(?:ss|x|z|ch|sh)es$", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def read_synonyms(path: str | Path) -> dict[str, list[str]]:
    """A user's synonyms: a JSON file {"car": ["automobile", "sedan"], ...}.

    Raises:
        FileNotFoundError: if there's no such file. ValueError: if it holds anything else.
    """
    if not Path(path).is_file():
        raise MissingFile(f"expected a file of synonyms at '{path}', found none")
    held = read_object(Path(path), {})
    listed = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in held.values())
    if not listed:
        raise Refusal(f"expected synonyms as {{tag: [word, ...], ...}} in '{path}'")
    return {tag.lower(): names for tag, names in held.items()}


def _words(text: str) -> list[str]:
    return [singular(word) for word in re.findall(r"[^\W_]+", text.lower())]
