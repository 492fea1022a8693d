"""What a judge is trained on and measured by: a set's labelled groups, as questions with answers and as preferences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Protocol

from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.compass.mllm import shown
from srgym.rewards.serving.prompts import COMPARE, COMPARE_CHOICES, compass
from srgym.runners.judges.ranking import Preferences
from srgym.runners.judges.sft import Example, Examples, compass_answer, from_png

__all__ = ["Group", "Images", "Material", "compare_images"]


@dataclass(frozen=True)
class Group:
    """One input and its labelled candidates.

    Attributes:
        name: of the input. kind: synthetic or real. methods: what made each candidate.
        q_lr: quality of the input in [1, 5]. quality, anchor: of the candidates [N] in [1, 5], calibrated, and as the
            anchor said. fidelity: [N] in [0, 1]; None of a real input.
        better: [N, N], 1 where the first of two candidates is better, 0 where the second is, 0.5 where neither, NaN
            where nobody says; what the comparisons came to.
        descriptions: [N], "" where there is none. verdicts: the quality that each speaks of, in [1, 5], NaN where it
            speaks of none; empty where nobody was asked.
        picture: what the input is a piece of; "" for itself. Pieces of one picture are no independent sample.
    """

    name: str
    kind: str
    methods: tuple[str, ...]
    q_lr: float
    quality: tuple[float, ...]
    anchor: tuple[float, ...]
    better: Tensor
    fidelity: tuple[float, ...] | None
    descriptions: tuple[str, ...]
    verdicts: tuple[float, ...] = ()
    picture: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each candidate: its method, numbered where a method made several."""
        seen: Counter[str] = Counter()
        names = []
        for method in self.methods:
            seen[method] += 1
            names.append(method if seen[method] == 1 else f"{method} #{seen[method]}")
        return tuple(names)


class Images(Protocol):
    """A set's pictures as PNG files, by group and place; read when they are asked for."""

    def lr(self, group: int) -> bytes:
        """Of an input."""

    def sr(self, group: int, place: int) -> bytes:
        """Of a candidate."""

    def hr(self, group: int) -> bytes | None:
        """Of the picture that an input was made of; None of a real input."""


@dataclass(frozen=True)
class Material:
    """One split of a set.

    Attributes:
        groups: labelled. images: of them. about: name, split, annotators and SHA-256 of the set's labels.
    """

    groups: Sequence[Group]
    images: Images
    about: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """What a judge's record says of its data."""
        return {**self.about, "groups": len(self.groups), "rows": sum(len(group.methods) for group in self.groups)}

    def pair(self, group: int, place: int) -> tuple[bytes, bytes]:
        """The enlarged LR and the SR of a candidate, as they are shown in use."""
        lr, sr = from_png(self.images.lr(group)), from_png(self.images.sr(group, place))
        return shown(lr[None], sr[None])[0]

    def examples(self, recipe: str, labels: str = "calibrated") -> Examples:
        """Questions with answers, of the recipe `compass` or `compare`."""
        if recipe == "compass":
            return _Scores(self, labels)
        return _Comparisons(self)

    def preferences(self, labels: str = "calibrated") -> Preferences:
        """Images to be ranked."""
        return _Preferences(self, labels)


def _labels(group: Group, labels: str) -> Sequence[float]:
    return group.quality if labels == "calibrated" else group.anchor


class _Scores:
    def __init__(self, material: Material, labels: str) -> None:
        self._material, self._labels = material, labels
        self._places = [(i, j) for i, group in enumerate(material.groups) for j in range(len(group.methods))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Example:
        at, place = self._places[i]
        group = self._material.groups[at]
        scores = {"q_lr": group.q_lr, "q_sr": _labels(group, self._labels)[place]}
        if group.fidelity is not None and group.kind == "synthetic":
            scores["fidelity"] = group.fidelity[place]
        answer = compass_answer(scores, group.descriptions[place])
        return Example(compass(group.kind), self._material.pair(at, place), answer)


class _Comparisons:
    def __init__(self, material: Material) -> None:
        self._material = material
        self._pairs = [
            (i, a, b)
            for i, group in enumerate(material.groups)
            for a, b in permutations(range(len(group.methods)), 2)
            if group.better[a, b].isfinite()
        ]
        if not self._pairs:
            raise Refusal("recipe=compare learns from comparisons, and no two candidates of this set are compared")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Example:
        at, a, b = self._pairs[i]
        better = float(self._material.groups[at].better[a, b])
        answer = COMPARE_CHOICES[2 if better == 0.5 else 0 if better > 0.5 else 1]
        images = self._material.images
        return Example(COMPARE, compare_images(images.lr(at), images.sr(at, a), images.sr(at, b)), answer)


class _Preferences:
    def __init__(self, material: Material, labels: str) -> None:
        self._material = material
        self.labels = [_labels(group, labels) for group in material.groups]

    def images(self, group: int, place: int) -> tuple[bytes, ...]:
        return self._material.pair(group, place)


def compare_images(lr: bytes, first: bytes, second: bytes) -> tuple[bytes, bytes, bytes]:
    """What `COMPARE` is asked about: the input enlarged, and two candidates, as PNG files."""
    low = from_png(lr)[None]
    (large, one), (_, other) = (shown(low, from_png(image)[None])[0] for image in (first, second))
    return large, one, other
