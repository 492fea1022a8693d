"""The sentences that the compact policy knows: a token is a whole sentence, or a tag."""

import re
from collections.abc import Sequence

from srgym.document import IMAGES, PICTURE, SECTIONS
from srgym.errors import Refusal

__all__ = ["END", "SENTENCES", "START", "Vocabulary"]

_PAD, START, END = "<pad>", "<start>", "<end>"

_LEVELS = ("none", "light", "medium", "heavy")
_NOISES = ("none", *(f"{level} {kind}" for level in _LEVELS[1:] for kind in ("gaussian", "poisson")))
_STEPS = {"blur": _LEVELS, "resize": _LEVELS, "noise": _NOISES, "JPEG compression": _LEVELS}
_COLOURS = ("grey", "red", "brown", "yellow", "green", "blue", "purple")

SENTENCES: tuple[tuple[str, ...], ...] = (
    *(
        tuple(f"{order} {step}: {label}." for label in labels)
        for order in ("First", "Second")
        for step, labels in _STEPS.items()
    ),
    ("Dark.", "Dim light.", "Bright."),
    tuple(f"Mostly {colour}." for colour in _COLOURS),
    ("A smooth surface.", "A grained surface.", "A rough surface."),
    ("Low contrast.", "Medium contrast.", "High contrast."),
    ("Even light.", "Brighter above.", "Brighter below.", "Brighter on the left.", "Brighter on the right."),
    ("Horizontal lines.", "Vertical lines.", "Diagonal lines.", "Mixed lines."),
    ("Few colours.", "Several colours.", "Many colours."),
)
"""What `srgym.envs.descriptions` says of an image and of its degradation; one of each row is true."""

_TAGS = re.compile(r"(?<=[^/]>) (?=[^<])|(?<=[.>]) (?=</)")
_SENTENCE = re.compile(r"[^.]+\.")


class Vocabulary:
    """Numbers of sentences and tags; image tokens follow after them."""

    def __init__(self) -> None:
        tags = [f"<{slash}{name}>" for slash in ("", "/") for name in SECTIONS]
        self.words = (_PAD, START, END, *tags, *(sentence for row in SENTENCES for sentence in row))
        self.index = {word: i for i, word in enumerate(self.words)}
        self.rows = {self.index[sentence]: i for i, row in enumerate(SENTENCES) for sentence in row}
        self.images = {name: (self.index[f"<{name}>"], self.index[f"</{name}>"]) for name in IMAGES}

    def __len__(self) -> int:
        return len(self.words)

    def read(self, text: str) -> list[int]:
        """The sentences of a text, as tokens.

        Raises:
            ValueError: naming the first one that isn't known.
        """
        sentences = [match.strip() for match in _SENTENCE.findall(text)]
        unread = _SENTENCE.sub("", text).strip()
        strange = [sentence for sentence in sentences if sentence not in self.index] + ([unread] if unread else [])
        if strange:
            raise Refusal(
                f"compact_vlcot writes the sentences of env.descriptions=statistics alone, and doesn't know "
                f"'{strange[0]:.60}': take those, or a policy with a language's vocabulary (lumina_vlcot)"
            )
        return [self.index[sentence] for sentence in sentences]

    def write(self, tokens: Sequence[int]) -> str:
        """Tokens as text, up to the end; a run of image tokens is one picture."""
        words: list[str] = []
        for token in tokens:
            word = self.words[token] if token < len(self) else PICTURE
            if word in (_PAD, END):
                break
            if word != PICTURE or not words or words[-1] != PICTURE:
                words.append(word)
        text = " ".join(words)
        return (
            re.sub(r"> ?([^<]*?) ?<", r">\1<", text).replace("><", ">\n<").replace(f">\n{PICTURE}\n<", f">{PICTURE}<")
        )
