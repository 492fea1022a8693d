"""A study on disk: the images that people compare, how they are shown, and what was agreed on before the first vote.

STUDY/
    material/        sealed: study.json, and images/ as PNG: lr/, hr/ where there is one, method_0/, method_1/, ...,
                     intact/ and blocks_1/, ... of the attention checks; a context's images share their name
    welcome.txt      what a rater reads and agrees to, to be edited: paragraphs, the first one the heading
    raters.jsonl     one line a rater, votes.jsonl one line a vote: only ever appended to
    report.html ...  what `srgym arena report` wrote
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from srgym.envs.task import SRTask
from srgym.errors import MissingFile, Refusal
from srgym.files import check_folder, to_png, write_json, write_whole
from srgym.runners.measure.evaluation import draw, spread_indices
from srgym.runners.measure.methods import Method
from srgym.sealed import read_object, verify, write_folder
from srgym.settings import Count, Natural, Share, check_arguments

__all__ = ["CHECK", "Design", "Study", "check_room", "make_study", "open_study"]

# What an attention check shows: an image, and the same in blocks, so that there is one right answer.
CHECK = "intact"


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
        blocks = [f"blocks_{i}" for i in range(1, self.design.together)]
        return {**{name: name for name in (CHECK, *blocks)}, **{m: f"method_{i}" for i, m in enumerate(self.methods)}}

    def decoys(self) -> tuple[str, ...]:
        """What stands beside the intact image of a check."""
        return tuple(f"blocks_{i}" for i in range(1, self.design.together))

    def images(self, what: str) -> Path:
        """The folder of "lr", "hr" or a method's images, or of those of the checks."""
        return self.folder / "material" / "images" / self._folders.get(what, what)

    def image(self, what: str, context: int) -> Path:
        return self.images(what) / _name(context)

    def welcome(self) -> list[str]:
        """The paragraphs of the page of consent and instruction."""
        path = self.folder / "welcome.txt"
        if not path.is_file():
            raise MissingFile(f"expected what raters read before they agree at {path}, found nothing")
        return [" ".join(part.split()) for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _name(context: int) -> str:
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
    lists = (tuple(held[key]) for key in ("methods", "contexts", "checks"))
    return Study(place, Design(**held["design"]), *lists, held["has_hr"], held["record"])


def make_study(
    folder: Path,
    task: SRTask,
    methods: Mapping[str, Method],
    design: Design,
    indices: Sequence[int],
    *,
    welcome: str | None = None,
    record: Mapping[str, Any],
) -> Study:
    """Draw every method's image of every context, and write the study.

    Args:
        folder: holds no study yet.
        indices: of the contexts.
        welcome: what raters read and agree to; None: a page that suits most studies.
        record: what stands beside the numbers (see `evaluation_record`).

    Raises:
        Refusal: for fewer methods than are shown at once, or images of a context that differ in size, by which a
            rater could tell them apart.
    """
    check_room(folder, design, len(methods))
    if taken := sorted({CHECK, "lr", "hr"} & set(methods)):
        raise Refusal(f"'{taken[0]}' is a name of the study's own: give the method another")
    checks = tuple(spread_indices(len(indices), design.checks)) if design.checks else ()
    facts = {
        "design": asdict(design),
        "methods": list(methods),
        "contexts": [name for context in task.batches(indices, 1) for name in context.ids],
        "checks": checks,
        "has_hr": "hr" in task.provides,
        "record": record,
    }

    def write(draft: Path) -> None:
        write_json(draft / "study.json", facts)
        for place, index in enumerate(indices):
            (picture,) = draw(task, methods, [index], seed=design.seed)
            _check_sizes(picture, methods)
            images = {f"method_{i}": picture[name] for i, name in enumerate(methods)}
            images |= {what.lower(): picture[what] for what in ("LR", "HR") if what in picture}
            if place in checks:
                images |= _check_images(picture.get("HR", picture[next(iter(methods))]), design.together)
            for what, image in images.items():
                write_whole(draft / "images" / what / _name(place), to_png(image))

    folder.mkdir(parents=True, exist_ok=True)
    text = welcome or resources.files(__package__).joinpath("page/welcome.txt").read_text(encoding="utf-8")
    write_whole(folder / "welcome.txt", text.encode())
    write_folder(folder / "material", write)
    return open_study(folder)


def check_room(folder: Path, design: Design, methods: int) -> None:
    """Refuse a place that holds a study already, and fewer methods than are shown at once."""
    if design.together > methods:
        raise Refusal(f"expected at least {design.together} methods, as many as are shown at once, got {methods}")
    if (folder / "material").exists():
        raise Refusal(f"{folder} holds a study already: choose another place, or remove it")
    check_folder(folder)


def _check_sizes(picture: Mapping[str, Any], methods: Mapping[str, Method]) -> None:
    sizes = {name: tuple(picture[name].shape[-2:]) for name in methods}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
        raise Refusal(f"expected images of one size of '{picture['id']}', by which none can be told, got {listed}")


def _check_images(image: Tensor, together: int) -> dict[str, Tensor]:
    """An image, and the same in ever smaller blocks, the first of sixteen to its shorter side."""
    height, width = image.shape[-2:]
    images = {CHECK: image}
    for i in range(1, together):
        side = min(height, width) / (8 + 8 * i)
        cells = [max(1, round(length / side)) for length in (height, width)]
        small = F.interpolate(image[None], size=cells, mode="area")
        images[f"blocks_{i}"] = F.interpolate(small, size=(height, width), mode="nearest")[0]
    return images
