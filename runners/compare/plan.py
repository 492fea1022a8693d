"""What a comparison runs: every agent and seed from the same start, and the same agent on a random reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from srgym.runners.compare.executor import Cell
from srgym.runners.run.config import GROUPS, ConfigError, RunConfig, StageConfig, compose, resolve
from srgym.runners.run.overrides import defaults, merge_known, sweep, take_values, words

__all__ = ["Entry", "Plan", "make_plan"]

RANDOM = "random"
_GROUP = 8  # samples of a context where an agent decides by itself


@dataclass(frozen=True)
class Entry:
    """What is compared: a label, its overrides, the label of its reward, and its agent's name."""

    label: str
    overrides: tuple[str, ...]
    reward: str
    agent: str


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        settings: of `configs/compare.yaml`, complete. fixed: overrides of all runs.
        metrics: labels to reward specifications, the trained ones first; held_out: those that nothing is trained on.
        start: the cell that all others start from; cells: the others.
    """

    folder: Path
    settings: Mapping[str, Any]
    fixed: tuple[str, ...]
    entries: list[Entry]
    metrics: dict[str, Any]
    held_out: list[str]
    start: Cell
    cells: list[Cell] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """What the report needs of it."""
        cells = [self.start, *self.cells]
        return {
            "settings": dict(self.settings), "fixed": list(self.fixed), "metrics": self.metrics,
            "held_out": self.held_out,
            "entries": {e.label: {"overrides": list(e.overrides), "reward": e.reward, "agent": e.agent}
                        for e in self.entries},
            "cells": {c.name: {"label": c.label, "role": c.role, "seed": c.seed} for c in cells},
        }  # fmt: skip


# The plan


def make_plan(arguments: Sequence[str]) -> Plan:
    """What a command line asks for, every run's settings checked, nothing run yet.

    Raises:
        ConfigError: for a setting that doesn't exist or can't be.
    """
    base = defaults("compare")
    _, rest = take_values(arguments, base, ("*",))
    base = _with_experiment(base, rest)
    settings, rest = take_values(arguments, base, ("*",))
    swept = {argument.partition("=")[0]: list(values) for argument in rest if (values := sweep(argument)) is not None}
    fixed = tuple(argument for argument in rest if argument.partition("=")[0] not in swept)
    given = {argument.partition("=")[0] for argument in rest}
    sweeps = {key: values for key, values in settings["sweep"].items() if values is not None and key not in given}
    axes = {key: [f"{key}={value}" for value in values] for key, values in sweeps.items()}
    axes |= {key: [text if "=" in text else f"{key}={text}" for text in values] for key, values in swept.items()}
    seeds = _seeds(settings)
    entries, resolved = _entries(settings, fixed, axes, seeds[0])
    metrics, held_out = _metrics(settings, entries, resolved)
    folder = Path(settings["out"])
    start, weights = _start(folder, settings, fixed, metrics, entries[0], seeds[0])
    cells = [
        cell
        for entry in entries
        for cell in _cells(folder, settings, fixed, entry, resolved[entry.label], metrics, weights, seeds)
    ]
    return Plan(folder, settings, fixed, entries, metrics, held_out, start, cells)


def _with_experiment(base: Mapping[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    """The defaults with an experiment's `compare` section put in."""
    chosen = [argument for argument in rest if argument.startswith("experiment=") and sweep(argument) is None]
    if not chosen:
        return dict(base)
    tree, _ = compose(chosen[-1:])
    return merge_known(base, tree.get("compare") or {}, f"{chosen[-1]}'s compare section")


def _seeds(settings: Mapping[str, Any]) -> list[int]:
    given = settings["seed"]
    seeds = list(given) if isinstance(given, list) else [given]
    if not seeds or any(not isinstance(seed, int) for seed in seeds) or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seed is a number or several different ones, as in seed=0,1,2; got {given}")
    return seeds


def _joined(*lists: Sequence[str]) -> list[str]:
    """Overrides one after the other; a later one of the same key takes the place of an earlier one."""
    found: dict[str, str] = {}
    for override in (override for one in lists for override in one):
        key = override.partition("=")[0]
        found.pop(key, None)
        found[key] = override
    return list(found.values())


def _exchanged(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides with some parts exchanged (agent=, reward=): what was said of the old parts isn't said of the new."""
    parts = tuple(f"{change.partition('=')[0]}." for change in changes if change.partition("=")[0] in GROUPS)
    return _joined([override for override in overrides if not override.startswith(parts)], changes)


def _entries(
    settings: Mapping[str, Any], fixed: Sequence[str], axes: Mapping[str, Sequence[str]], seed: int
) -> tuple[list[Entry], dict[str, StageConfig]]:
    """What is compared, and the settings of the stage that trains it."""
    named: Mapping[str, Sequence[str]] = settings["entries"] or {"": ()}
    entries, resolved = [], {}
    for name, own in named.items():
        for point in product(*axes.values()):
            overrides = tuple(_joined(own, point))
            config = _resolved([*_joined(fixed, overrides, _budget(settings)), f"seed={seed}"])
            stage = next(s for s in reversed(config.stages) if s.kind == "train")
            agent = str(stage.sections["agent"]["name"])
            label = ", ".join(part for part in (name, *map(_short, point)) if part)
            label = label or _chosen("agent", fixed, overrides) or agent
            reward = _chosen("reward", fixed, overrides) or str(stage.sections["reward"]["name"])
            entries.append(Entry(label, overrides, reward, agent))
            resolved[label] = stage
    if len(resolved) != len(entries):
        raise ConfigError("two entries have the same label: expected every value once")
    return entries, resolved


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return value.rpartition(":")[2] if key in ("agent", "reward") else override  # of module:Class, the class


def _chosen(group: str, fixed: Sequence[str], overrides: Sequence[str]) -> str | None:
    """What a part is called on the command line."""
    return next((o.partition("=")[2] for o in _joined(fixed, overrides) if o.startswith(f"{group}=")), None)


def _resolved(overrides: Sequence[str]) -> RunConfig:
    return resolve(*compose(list(overrides)))


def _budget(settings: Mapping[str, Any]) -> list[str]:
    budget = settings["budget"]
    if all(limit is None for limit in budget.values()):
        return []
    return [f"runner.{key}={'null' if limit is None else limit}" for key, limit in budget.items()]


def _metrics(
    settings: Mapping[str, Any], entries: Sequence[Entry], resolved: Mapping[str, StageConfig]
) -> tuple[dict[str, Any], list[str]]:
    """Every entry's reward under its label, then the metrics; and which of these nothing is trained on."""
    metrics: dict[str, Any] = {}
    for entry in entries:
        spec = dict(resolved[entry.label].sections["reward"])
        if metrics.setdefault(entry.reward, spec) != spec:
            raise ConfigError(f"'{entry.label}' is trained on another '{entry.reward}' than an entry before it")
    used = {*metrics, *(word for spec in metrics.values() for word in words(spec))}
    asked = settings["metrics"]
    pairs = asked.items() if isinstance(asked, Mapping) else ((_metric_label(spec), spec) for spec in asked)
    added = {label: spec for label, spec in pairs if label not in metrics}
    return {**metrics, **added}, [label for label in added if label not in used]


def _metric_label(spec: Any) -> str:
    return str(spec.get("label", spec.get("name"))) if isinstance(spec, Mapping) else str(spec)


# The cells


def _request(settings: Mapping[str, Any], metrics: Mapping[str, Any], reward: str, pictures: bool) -> dict[str, Any]:
    kept = ("test", "limit", "steps", "seeds", "picture_size")
    shown = settings["pictures"] if pictures else 0
    return {"metrics": dict(metrics), "reward": reward, **{key: settings[key] for key in kept}, "pictures": shown}


_ALONE = ["runner.threads=1", "logger=csv"]


def _start(
    folder: Path,
    settings: Mapping[str, Any],
    fixed: Sequence[str],
    metrics: Mapping[str, Any],
    entry: Entry,
    seed: int,
) -> tuple[Cell, list[str]]:
    """The cell of the starting policy, and the override by which the others start from it."""
    cell_folder, weights, trained = folder / "cells" / "start", list[str](), None
    request = {**_request(settings, metrics, entry.reward, True), "baselines": True}
    if settings["start"] is not None:
        trained = [*_exchanged(_joined(_ALONE, fixed), settings["start"]), f"seed={seed}"]
        stage = _resolved(trained).stages[-1]
        if stage.sections["lora"] is not None and stage.kind == "train":
            raise ConfigError("start= must leave a policy without a LoRA: add lora=null to it, or a merge")
        weights = [f"policy.weights={cell_folder / 'run' / 'stages' / stage.name / 'policy'}"]
    request |= {"overrides": trained, "settings": [*_joined(_ALONE, fixed, entry.overrides)]}
    return Cell(cell_folder, "start", "start", seed, request), weights


def _cells(
    folder: Path,
    settings: Mapping[str, Any],
    fixed: Sequence[str],
    entry: Entry,
    stage: StageConfig,
    metrics: Mapping[str, Any],
    weights: Sequence[str],
    seeds: Sequence[int],
) -> list[Cell]:
    """The runs of one entry and of its control."""
    common = _joined(_ALONE, fixed, entry.overrides, weights, _budget(settings), _evaluations(settings, stage))
    controls = 0 if entry.reward == RANDOM else int(settings["controls"])
    cells = []
    for role, used in (("agent", seeds), ("control", seeds[:controls])):
        for seed in used:
            overrides = [*(common if role == "agent" else _exchanged(common, [f"reward={RANDOM}"])), f"seed={seed}"]
            label = entry.label if role == "agent" else f"{entry.label}, random reward"
            request = {**_request(settings, metrics, entry.reward, role == "agent" and seed == seeds[0]),
                       "baselines": False, "overrides": overrides, "settings": []}  # fmt: skip
            cells.append(Cell(folder / "cells" / _slug(f"{label} seed {seed}"), label, role, seed, request))
    return cells


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text).replace("__", "_")


def _evaluations(settings: Mapping[str, Any], stage: StageConfig) -> list[str]:
    """How often a run is evaluated, where its settings leave that open."""
    runner, agent = stage.sections["runner"], stage.sections["agent"]
    if runner["eval_every"]:
        return []
    each = runner["contexts"] * (agent.get("group_size") or _GROUP)
    lengths = [runner["iterations"], runner["images"] and runner["images"] / each]
    known = [length for length in lengths if length]
    every = max(1, round(min(known) / settings["evaluations"])) if known else 10
    return [f"runner.eval_every={every}"]
