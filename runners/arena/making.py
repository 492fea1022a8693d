"""Making a study: every method's image of every context, drawn as an evaluation draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from srgym.envs.images import read_image, to_float
from srgym.envs.task import SRTask
from srgym.errors import Refusal
from srgym.files import check_folder, to_png, write_json, write_whole
from srgym.runners.arena.study import CHECK, Design, Study, decoys, image_name, open_study
from srgym.runners.measure.evaluation import draw
from srgym.runners.measure.methods import Method
from srgym.sealed import write_folder

__all__ = ["check_room", "make_study"]


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
    if taken := sorted({CHECK, "lr", "hr", *decoys(design.together)} & set(methods)):
        raise Refusal(f"'{taken[0]}' is a name of the study's own: give the method another")

    def write(draft: Path) -> None:
        ids, clarity = [], []
        for place, index in enumerate(indices):
            (picture,) = draw(task, methods, [index], seed=design.seed)
            _check_sizes(picture, methods)
            images = {f"method_{i}": picture[name] for i, name in enumerate(methods)}
            images |= {what.lower(): picture[what] for what in ("LR", "HR") if what in picture}
            _write_images(draft, place, images)
            ids.append(picture["id"])
            clarity.append(_clarity(draft, place))
        checks = sorted(range(len(ids)), key=lambda place: -clarity[place])[: design.checks]
        for place in checks:
            _write_images(draft, place, _check_images(_intact(draft, place), design.together))
        facts = {"design": asdict(design), "methods": list(methods), "contexts": ids, "checks": checks,
                 "has_hr": "hr" in task.provides, "record": record}  # fmt: skip
        write_json(draft / "study.json", facts)

    text = welcome or resources.files(__package__).joinpath("page/welcome.txt").read_text(encoding="utf-8")
    write_folder(folder / "material", write)
    write_whole(folder / "welcome.txt", text.encode())
    return open_study(folder)


def _write_images(draft: Path, place: int, images: Mapping[str, Tensor]) -> None:
    for what, image in images.items():
        write_whole(draft / "images" / what / image_name(place), to_png(image))


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


# Attention checks


def _intact(draft: Path, place: int) -> Tensor:
    """What a check shows whole: the truth, or the first method's image where there is none."""
    truth = draft / "images" / "hr" / image_name(place)
    return to_float(read_image(truth if truth.is_file() else draft / "images" / "method_0" / image_name(place)))


def _clarity(draft: Path, place: int) -> float:
    """How far an image in blocks is from itself: one of a plain sky would be no check."""
    intact = _intact(draft, place)
    return float((intact - _in_blocks(intact, 1)).abs().mean())


def _check_images(image: Tensor, together: int) -> dict[str, Tensor]:
    return {CHECK: image} | {name: _in_blocks(image, i) for i, name in enumerate(decoys(together), 1)}


def _in_blocks(image: Tensor, number: int) -> Tensor:
    """An image [3, H, W] in blocks, of which 8 + 8 `number` go to the shorter side."""
    height, width = image.shape[-2:]
    side = min(height, width) / (8 + 8 * number)
    cells = [max(1, round(length / side)) for length in (height, width)]
    small = F.interpolate(image[None], size=cells, mode="area")
    return F.interpolate(small, size=(height, width), mode="nearest")[0]
