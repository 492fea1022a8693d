"""The pool: inputs, half of them made of pictures and half as they are, and what many methods make of them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from srgym.envs.sources import Source
from srgym.envs.sources import make as make_source
from srgym.errors import Refusal
from srgym.files import locked, to_png
from srgym.runners.judges.judge_set import SPLITS, JudgeSet, NewCandidate, NewInput
from srgym.runners.judges.methods import Method, make_methods
from srgym.runners.judges.sft import from_png
from srgym.settings import Count, Natural, Share, check_arguments

__all__ = ["PoolSettings", "build_pool"]

_SCALE = 4


@dataclass(frozen=True)
class PoolSettings:
    """What is in a pool.

    Attributes:
        inputs: a folder of pictures, of which inputs are cut and degraded; "photographs": those that ship.
        real: a folder of low-resolution pictures that are taken as they are; None: pieces of `inputs` as they are.
        methods: what makes candidates (see `make_methods`).
        size: side of HR in pixels. preset: the degradation.
        train, validation, test: how many inputs of each split. Splits are by picture: no two share one.
        share_real: of the inputs.
        seed: of places, degradations and samples.
        part: inputs in one file.
        more: further photographs beside those that ship (`tools/photographs.py`).
    """

    inputs: str = "photographs"
    real: str | None = None
    methods: Sequence[Any] = ("bicubic", "policy:compact")
    size: Count = 256
    preset: str = "realesrgan"
    train: Natural = 1920
    validation: Natural = 240
    test: Natural = 240
    share_real: Share = 0.5
    seed: int = 0
    part: Count = 64
    more: str | None = None

    def __post_init__(self) -> None:
        check_arguments(PoolSettings, vars(self), "")
        if self.size % _SCALE**2 or not self.train + self.validation + self.test:
            raise Refusal(
                f"expected size as a multiple of {_SCALE**2} and at least one input, got size={self.size} and "
                f"{self.train} + {self.validation} + {self.test} inputs"
            )

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Inputs by split and kind, of which there are any."""
        counts: dict[tuple[str, str], int] = {}
        for split in SPLITS:
            total = int(getattr(self, split))
            real = round(total * self.share_real)
            counts |= {(split, "synthetic"): total - real, (split, "real"): real}
        return {place: count for place, count in counts.items() if count}


def build_pool(folder: str, settings: PoolSettings, progress: Callable[[str, float], None] | None = None) -> JudgeSet:
    """Fill a set's folder with inputs and candidates; goes on where an earlier call was stopped.

    Raises:
        Refusal: for settings that can't be, a folder that holds another set, or a picture in two splits.
    """
    sources = {place: _source(settings, *place) for place in settings.counts}
    methods = make_methods(settings.methods, _SCALE)
    made = JudgeSet.create(folder, asdict(settings), {method.name: method.version for method in methods})
    tell = progress or (lambda what, share: None)
    parts = list(_parts(settings))
    with locked(made.folder):
        for i, (name, wanted) in enumerate(parts):
            if not made.has("inputs", name):
                made.add_inputs(name, [_input(settings, sources, *place) for place in wanted])
            tell("inputs", (i + 1) / len(parts))
        for j, method in enumerate(methods):
            for i, (name, wanted) in enumerate(parts):
                part = f"{j:02}-{name}"
                if not made.has("candidates", part):
                    names = [_name(*place) for place in wanted]
                    made.add_candidates(part, list(_candidates(made, method, names, settings)))
                tell(method.name, (i + 1) / len(parts))
    return made


_Place = tuple[str, str, int]  # split, kind, number


def _parts(settings: PoolSettings) -> Iterator[tuple[str, list[_Place]]]:
    """The inputs in files."""
    places = [(*place, number) for place, count in settings.counts.items() for number in range(count)]
    for i in range(0, len(places), settings.part):
        yield f"{i // settings.part:05}", places[i : i + settings.part]


def _name(split: str, kind: str, number: int) -> str:
    return f"{split}-{kind}-{number:05}"


def _source(settings: PoolSettings, split: str, kind: str) -> Source:
    """Where inputs come from; a real one of "photographs" is a piece of one at LR's size, and what is made of it is
    left alone."""
    count = settings.counts[split, kind]
    if settings.inputs == "photographs" and (kind == "synthetic" or settings.real is None):
        size = settings.size if kind == "synthetic" else settings.size // _SCALE
        options: dict[str, Any] = {
            "name": "photographs",
            "size": size,
            "preset": settings.preset,
            "more": settings.more,
        }
    elif kind == "real":
        options = {"name": "lr_folder", "path": settings.real or settings.inputs, "size": settings.size}
    else:
        options = {"name": "hr_folder", "path": settings.inputs, "size": settings.size, "preset": settings.preset}
    source = make_source({**options, "split": split, "seed": settings.seed, "crops": count})
    if len(source) < count:
        raise Refusal(f"{split}: expected at most {len(source)} {kind} inputs of {settings.inputs}, got {count}")
    return source


def _input(
    settings: PoolSettings, sources: Mapping[tuple[str, str], Source], split: str, kind: str, number: int
) -> NewInput:
    source, count = sources[split, kind], settings.counts[split, kind]
    # Evenly over the source, whose samples are ordered by picture; real ones half a step on, so that they differ.
    sample = source[int((number + (0.5 if kind == "real" else 0.0)) * len(source) / count)]
    name, picture = _name(split, kind, number), sample.id.split("/")[0]
    if kind == "synthetic":
        pngs = to_png(torch.as_tensor(sample.lr)), to_png(torch.as_tensor(sample.hr))
        return NewInput(name, split, "synthetic", *pngs, sample.degradation, picture)
    met = sample.lr if sample.hr is None else sample.hr
    return NewInput(name, split, "real", to_png(torch.as_tensor(met)), picture=picture)


def _candidates(made: JudgeSet, method: Method, names: Sequence[str], settings: PoolSettings) -> Iterator[NewCandidate]:
    own = {given.group: given for given in made.inputs}
    lr = {name: from_png(png) for name in names if (png := made.lr(own[name])) is not None}
    # A method's draws don't depend on which others there are.
    seed = settings.seed + int.from_bytes(hashlib.blake2b(method.name.encode(), digest_size=4).digest(), "big")
    for name, sample, sr in method.run(lr, seed):
        yield NewCandidate(name, method.name, method.version, sample, to_png(sr))
