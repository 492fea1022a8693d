"""The papers' claims as `configs/claims/NAME.yaml` states them: arms, contrasts, and what the paper printed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from srgym.errors import MissingFile, Refusal
from srgym.runners.measure.published import published_tables
from srgym.runners.reproduce.verdict import Expectation
from srgym.runners.run.groups import near
from srgym.runners.run.overrides import ConfigError
from srgym.settings import Natural, check_arguments, check_value, fill

__all__ = ["Arm", "Claim", "Contrast", "Printed", "claim_names", "read_claim", "shared_arms"]

Seeds = Literal["one", "some", "many"]
At = Literal["steps", "distance", "cost"]


@dataclass(frozen=True)
class Arm:
    """What is held against another: a run that trains, or a probe of something.

    Attributes:
        experiment, stages, overrides: of the run (stages: those that are kept; None: all), or where a probe finds its
            contexts and its base. `@ARM/` in a value is the folder of the run of another arm.
        probe: {kind: ..., options}, see `srgym.runners.reproduce.probes`; None: a run.
        seeds: of training: one, or the tier's `seeds` or `many`.
        test: changes of the env section for the final evaluation, or a section of its own.
        metrics: measured of it beside those of all.
        curve: evaluations during the run. doses: whether its LoRA is scaled for a comparison at equal distance.
        climbs: the metric that it is trained on, of which `wobble` is told.
        says: what it is called on the page; None: its name.
    """

    experiment: str = "oars"
    stages: Sequence[str] | None = None
    overrides: Sequence[str] = ()
    probe: Mapping[str, Any] | None = None
    seeds: Seeds = "some"
    test: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    curve: Natural = 0
    doses: bool = False
    climbs: str | None = None
    says: str | None = None

    def __post_init__(self) -> None:
        check_arguments(Arm, vars(self), "")


@dataclass(frozen=True)
class Contrast:
    """One difference that the claim says something of.

    Attributes:
        of, over: arms; over None: what `of` has by itself, against the line.
        metric: in which they differ; a component is `metric.component`.
        expect: see `srgym.runners.reproduce.verdict`. margin: None: of `margins` by the metric.
        primary: whether the verdict rests on it.
        at: after equal `steps`; at equal `distance` from the start; or the ratio of what both cost to reach a level.
        to: the level, as a share of the gain of `over`. unit: images, seconds or flops.
        line: what stands for no difference.
        says: in words.
    """

    of: str
    over: str | None
    metric: str
    expect: Expectation
    says: str
    margin: float | None = None
    primary: bool = True
    at: At = "steps"
    to: float = 0.5
    unit: Literal["images", "seconds", "flops"] = "images"
    line: float = 0.0

    def __post_init__(self) -> None:
        check_arguments(Contrast, vars(self), "")
        if self.over is None and self.at != "steps":
            raise Refusal(f"a contrast of '{self.of}' at equal {self.at} needs an arm to be held against: over")

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.of,) if self.over is None else (self.of, self.over)


@dataclass(frozen=True)
class Printed:
    """Rows of a published table that stand beside ours; in short, from the first to `to` (None: the last)."""

    table: str
    dataset: str
    rows: Sequence[str]
    metrics: Sequence[str]
    to: str | None = None

    def __post_init__(self) -> None:
        check_arguments(Printed, vars(self), "")


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        name: of its file. paper, source: where it stands. title: the claim in a few words. says: in a sentence.
        note: what a miniature can't say of it.
        command: another command of the library that this claim is left to; None: there are contrasts here.
        testable: rewards by arm, or by a label of their own, whose group advantages must differ for training to tell
            them apart; without contrasts that is all there is to it.
    """

    name: str
    paper: str
    source: str
    title: str
    says: str
    contrasts: tuple[Contrast, ...]
    testable: Mapping[str, Any] = field(default_factory=dict)
    printed: Printed | None = None
    note: str = ""
    command: str | None = None


_KEYS = ("paper", "source", "title", "says", "contrasts", "arms", "testable", "printed", "note", "command")


def claim_names(folder: Path | None = None) -> list[str]:
    """All claims, in the order in which they run: what matters most, first.

    Args:
        folder: with further claims, or others in their place.
    """
    known = _filed(folder)
    names = [name for name in _packaged("claims.yaml")["order"] if name in known]
    return [*names, *sorted(set(known) - set(names))]


def read_claim(name: str, shared: Mapping[str, Arm], folder: Path | None = None) -> tuple[Claim, dict[str, Arm]]:
    """A claim, and the arms that it names.

    Args:
        shared: arms of all claims; the file may have more of its own.
        folder: see `claim_names`.

    Raises:
        ConfigError: for a claim, an arm, or a key that there isn't, with the nearest.
    """
    known, where = _filed(folder), f"claims/{name}.yaml"
    if name not in known:
        raise ConfigError(f"claim={name} doesn't exist{near(name, list(known))}")
    tree = _loaded(known[name].read_text("utf-8"))
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"{where} has an unknown key '{key}'{near(key, _KEYS)}")
    arms = {**shared, **_read_arms(tree.get("arms") or {}, where)}
    contrasts = tuple(
        fill(Contrast, contrast, f"{where}: contrasts.{i}.") for i, contrast in enumerate(tree.get("contrasts") or [])
    )
    for contrast in contrasts:
        for arm in contrast.arms:
            if arm not in arms:
                raise ConfigError(f"{where}: no arm is called '{arm}'{near(arm, list(arms))}")
    said = [(contrast.says, contrast.metric) for contrast in contrasts]
    twice = next((says for says, metric in said if said.count((says, metric)) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: two contrasts say '{twice}' of one metric: let each say what it is")
    printed = None if tree.get("printed") is None else fill(Printed, tree["printed"], f"{where}: printed.")
    for key in ("paper", "source", "title", "says"):
        check_value(str, tree.get(key), f"{where}: {key}")
    _check_printed(printed, str(tree["paper"]), where)
    claim = Claim(
        name, tree["paper"], tree["source"], tree["title"], tree["says"], contrasts, tree.get("testable") or {},
        printed, tree.get("note") or "", tree.get("command"),
    )  # fmt: skip
    return claim, arms


def _read_arms(tree: Mapping[str, Any], where: str) -> dict[str, Arm]:
    """Arms by name.

    Raises:
        ConfigError, Refusal: for a key or a value that can't be.
    """
    for name in tree:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ConfigError(f"{where}: an arm's name has small letters, digits and underscores, got '{name}'")
    return {name: fill(Arm, own or {}, f"{where}: arms.{name}.") for name, own in tree.items()}


def shared_arms() -> dict[str, Arm]:
    """The arms of `configs/claims.yaml`, which any claim may name."""
    return _read_arms(_packaged("claims.yaml")["arms"], "claims.yaml")


def _check_printed(printed: Printed | None, paper: str, where: str) -> None:
    if printed is None:
        return
    tables = [t for t in published_tables(printed.dataset, [paper]) if t.table == printed.table]
    if not tables:
        raise Refusal(f"{where}: {paper} has no published table {printed.table} on {printed.dataset}")
    for row in [*printed.rows, *([printed.to] if printed.to is not None else [])]:
        if row not in tables[0].rows:
            raise ConfigError(f"{where}: that table has no row '{row}'{near(row, list(tables[0].rows))}")


def _filed(folder: Path | None) -> dict[str, Traversable]:
    """The claims' files by name."""
    if folder is not None and not folder.is_dir():
        raise MissingFile(f"expected a folder of claims at {folder}, found none")
    places = [resources.files("srgym.configs").joinpath("claims"), *([folder] if folder is not None else [])]
    files = [file for place in places for file in place.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name)}


def _packaged(name: str) -> dict[str, Any]:
    return _loaded(resources.files("srgym.configs").joinpath(name).read_text("utf-8"))


def _loaded(text: str) -> dict[str, Any]:
    import yaml

    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
