"""A study on disk: the images that people compare, how they are shown, and what was agreed on before the first vote.

STUDY/
    material/        sealed: study.json, and images/ as PNG: lr/, hr/ where there is one, method_0/, method_1/, ...,
                     intact/ and blocks_1/, ... of the attention checks; a context's images share their name
    welcome.txt      what a rater reads and agrees to, to be edited: paragraphs, the first one the heading
    raters.jsonl     one line a rater, votes.jsonl one line a vote: only ever appended to
    report.html ...  what `srgym arena report` wrote
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from srgym.errors import MissingFile, Refusal
from srgym.sealed import read_object, verify
from srgym.settings import Count, Natural, Share, check_arguments

__all__ = ["CHECK", "Design", "Study", "decoys", "image_name", "open_study"]

# What an attention check shows: an image, and the same in blocks, so that there is one right answer.
CHECK = "intact"


def decoys(together: int) -> tuple[str, ...]:
    """What stands beside the intact image of a check."""
    return tuple(f"blocks_{i}" for i in range(1, together))


@dataclass(frozen=True)
class Design:
    """How a study is shown, and by which rule raters are left out; written down before the first vote.

    Attributes:
        title: what the page is called.
        question: what a rater is asked about every set of images.
        together: how many images at once: 2 for pairs, or more to choose the best of.
        ties: whether "can't tell" is an answer.
        lr: whether the input stands among the images ("centred") or is shown while a key is held ("key").
        trials: at most so many for each rater, beside repeats and checks, drawn for each anew; None: all there are.
        repeats: how many of a rater's trials come again, later and with sides drawn anew.
        checks: how many attention checks each rater gets.
        pass_checks: the share of the checks that a rater must answer rightly to be counted.
        seed: of orders and sides, and of the images that are samples.
    """

    title: str = "Which image is better?"
    question: str = "Which image would you rather have?"
    together: Count = 2
    ties: bool = True
    lr: Literal["centred", "key"] = "key"
    trials: Count | None = None
    repeats: Natural = 4
    checks: Natural = 3
    pass_checks: Share = 0.75
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_arguments(Design, vars(self), "")
        if self.together < 2:
            raise Refusal(f"together is how many images are compared at once, at least 2; got {self.together}")


@dataclass(frozen=True)
class Study:
    """A study's folder, opened.

    Attributes:
        folder: where it lies. design: how it is shown.
        methods: their names, as in reports; raters never see them.
        contexts: their ids, "photograph/crop". checks: the numbers of the contexts that have images for checks.
        has_hr: whether there is ground truth. record: how the images were made.
    """

    folder: Path
    design: Design
    methods: tuple[str, ...]
    contexts: tuple[str, ...]
    checks: tuple[int, ...]
    has_hr: bool
    record: Mapping[str, Any]

    @cached_property
    def _folders(self) -> dict[str, str]:
        own = {name: name for name in (CHECK, *decoys(self.design.together))}
        return own | {name: f"method_{i}" for i, name in enumerate(self.methods)}

    def images(self, what: str) -> Path:
        """The folder of "lr", "hr" or a method's images, or of those of the checks."""
        return self.folder / "material" / "images" / self._folders.get(what, what)

    def image(self, what: str, context: int) -> Path:
        return self.images(what) / image_name(context)

    def welcome(self) -> list[str]:
        """The paragraphs of the page of consent and instruction."""
        path = self.folder / "welcome.txt"
        if not path.is_file():
            raise MissingFile(f"expected what raters read before they agree at {path}, found nothing")
        return [" ".join(part.split()) for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def image_name(context: int) -> str:
    """What all files of a context's images are called."""
    return f"{context:05d}.png"


def open_study(folder: str | Path) -> Study:
    """Read a study, and check that its images are those that were made.

    Raises:
        MissingFile: where there is none. Damaged: for a file that has changed.
    """
    place = Path(folder)
    if not (place / "material" / "study.json").is_file():
        raise MissingFile(f"expected a study in {place}, found none: make one by srgym arena make out={place}")
    verify(place / "material")
    kinds = {"design": dict, "methods": list, "contexts": list, "checks": list, "has_hr": bool, "record": dict}
    held = read_object(place / "material" / "study.json", kinds)
    methods, contexts, checks = (tuple(held[key]) for key in ("methods", "contexts", "checks"))
    return Study(place, Design(**held["design"]), methods, contexts, checks, held["has_hr"], held["record"])
