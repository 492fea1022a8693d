"""Making a study: every method's image of every context, drawn as an evaluation draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from srgym.envs.task import SRTask
from srgym.errors import Refusal
from srgym.files import check_folder, to_png, write_json, write_whole
from srgym.runners.arena.study import CHECK, Design, Study, image_name, open_study
from srgym.runners.measure.evaluation import draw, spread_indices
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
                write_whole(draft / "images" / what / image_name(place), to_png(image))

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
