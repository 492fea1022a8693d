"""What a comparison runs: every agent and seed from the same start, and the same agent on a random reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Literal

from srgym.agents.base import Need
from srgym.agents.registry import agent_class
from srgym.rewards.kin import independent
from srgym.rewards.toys import CONTROLS
from srgym.runners.compare.entries import (
    Entry,
    addressed,
    budget_overrides,
    check_shared,
    exchanged,
    joined,
    make_entries,
    resolved,
)
from srgym.runners.compare.executor import Cell
from srgym.runners.measure.metrics import usual_metrics
from srgym.runners.run.config import ConfigError, StageConfig, compose
from srgym.runners.run.made_with import made_with
from srgym.runners.run.overrides import METRICS, defaults, merge_known, read_override, take_values
from srgym.settings import Count, Natural, Positive, leaves

__all__ = ["Plan", "make_plan", "tuned_plan"]

_KINDS = {
    "seed": int | Sequence[int], "budget.images": Count | None, "budget.iterations": Count | None,
    "budget.seconds": Positive | None, "jobs": Count | None, "executor": Literal["local", "slurm"],
    "devices": int | str | Sequence[int | str] | None, "gpus": Count, "trials": Count | None,
    "start": Sequence[str] | None,
    "controls": Natural, "evaluations": Count, "metrics": METRICS | None, "limit": Count | None, "steps": Count,
    "sweep": Mapping[str, Sequence[Any] | None], "entries": Mapping[str, Sequence[str]],
    "settings": Mapping[str, Mapping[str, Any]], "test": Mapping[str, Any],
    "seeds": Sequence[int], "targets": Sequence[float], "pictures": Natural, "picture_size": Count | None,
}  # fmt: skip
_GROUP = 8  # samples of a context where an agent decides by itself
_ALONE = ("runner.threads=1", "logger=csv")


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        arguments: the command line. settings: of `configs/compare.yaml`, complete. fixed: overrides of all runs.
        metrics: labels to reward specifications, the trained ones first; held_out: those that are kin to none of these.
        starts: the cells that others start from. trials: of the search, by entry; cells: the others.
    """

    arguments: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    fixed: tuple[str, ...]
    entries: list[Entry]
    metrics: dict[str, Any]
    held_out: list[str]
    starts: list[Cell]
    trials: dict[str, list[Cell]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    @property
    def trial_cells(self) -> list[Cell]:
        """The runs of the search, of all entries."""
        return [cell for cells in self.trials.values() for cell in cells]

    def as_json(self) -> dict[str, Any]:
        """What the report needs of it."""
        cells = [*self.starts, *self.cells]
        return {
            "command": ["srgym", "compare", *self.arguments], "made_with": made_with(), "settings": dict(self.settings),
            "fixed": list(self.fixed), "metrics": self.metrics, "held_out": self.held_out,
            "entries": {entry.label: entry.as_json() for entry in self.entries},
            "cells": {c.name: {"label": c.label, "role": c.role, "seed": c.seed} for c in cells},
        }  # fmt: skip


# The plan


def make_plan(arguments: Sequence[str]) -> Plan:
    """What a command line asks for, every run's settings checked, nothing run yet.

    Raises:
        ConfigError: for a setting that doesn't exist or can't be.
    """
    return _plan(arguments, {})


def tuned_plan(plan: Plan, winners: Mapping[str, Sequence[str]]) -> Plan:
    """The plan with what the search found best: overrides by the entries' labels."""
    return replace(_plan(plan.arguments, winners), trials={})


def _plan(arguments: Sequence[str], winners: Mapping[str, Sequence[str]]) -> Plan:
    base = defaults("compare")
    _, rest = take_values(arguments, base, ("*",), _KINDS)
    base = _with_experiment(base, rest)
    settings, rest = take_values(arguments, base, ("*",), _KINDS)
    swept = {override.key: list(override.swept) for override in map(read_override, rest) if override.swept}
    fixed = tuple(argument for argument in rest if argument.partition("=")[0] not in swept)
    named = {argument.partition("=")[0] for argument in rest}
    sweeps = {key: values for key, values in settings["sweep"].items() if values is not None and key not in named}
    axes = {key: [f"{key}={value}" for value in values] for key, values in sweeps.items()}
    axes |= {key: [text if "=" in text else f"{key}={text}" for text in values] for key, values in swept.items()}
    seeds = _seeds(settings)
    entries = make_entries(settings, fixed, axes, seeds[0], winners)
    check_shared(fixed, entries)
    metrics, held_out = _metrics(settings, entries)
    folder = Path(settings["out"])
    plan = Plan(tuple(arguments), folder, settings, fixed, entries, metrics, held_out, [])
    weights = _put_starts(plan, seeds[0])
    for entry in entries:
        plan.cells.extend(_cells(plan, entry, weights[entry.start], seeds))
    plan.trials.update(_trials(plan, weights, seeds[0]))
    return plan


def _with_experiment(base: Mapping[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    """The defaults with an experiment's `compare` section put in."""
    experiments = [
        argument for argument in rest if argument.startswith("experiment=") and not read_override(argument).swept
    ]
    if not experiments:
        return dict(base)
    tree, _ = compose(experiments[-1:])
    return merge_known(base, tree.get("compare") or {}, f"{experiments[-1]}'s compare section")


def _seeds(settings: Mapping[str, Any]) -> list[int]:
    seeds = settings["seed"] if isinstance(settings["seed"], list) else [settings["seed"]]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seed is a number or several different ones, as in seed=0,1,2; got {settings['seed']}")
    return seeds


def _metrics(settings: Mapping[str, Any], entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
    """Every entry's reward under its label, then the metrics; and which of these are kin to no reward."""
    metrics: dict[str, Any] = {}
    for entry in entries:
        spec = dict(entry.stage.sections["reward"])
        if metrics.setdefault(entry.reward, spec) != spec:
            raise ConfigError(f"'{entry.label}' is trained on another '{entry.reward}' than an entry before it")
    trained = list(metrics.values())
    asked = usual_metrics() if settings["metrics"] is None else settings["metrics"]
    pairs = asked.items() if isinstance(asked, Mapping) else ((_metric_label(spec), spec) for spec in asked)
    added = {label: spec for label, spec in pairs if label not in metrics}
    return {**metrics, **added}, [label for label, spec in added.items() if independent(spec, trained)]


def _metric_label(spec: Any) -> str:
    return str(spec.get("label", spec.get("name"))) if isinstance(spec, Mapping) else str(spec)


# The cells


def _request(
    plan: Plan, reward: str, overrides: Sequence[str] | None, *, settings: Sequence[str] = (), pictures: bool = False,
    baselines: bool = False, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """What a cell is asked, see `srgym.runners.compare.cell.run_cell`."""
    common = {key: plan.settings[key] for key in ("test", "limit", "steps", "seeds", "picture_size")}
    return {
        "metrics": dict(plan.metrics), "reward": reward, **common,
        "pictures": plan.settings["pictures"] if pictures else 0, "baselines": baselines,
        "overrides": None if overrides is None else list(overrides), "settings": list(settings), **changes,
    }  # fmt: skip


def _put_starts(plan: Plan, seed: int) -> dict[str, list[str]]:
    """Plan a starting policy for each policy that is compared; the overrides by which the others start from it."""
    weights: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    several = len({str(entry.stage.sections["policy"]) for entry in plan.entries}) > 1
    for i, entry in enumerate(plan.entries):
        policy = str(entry.stage.sections["policy"])
        if policy not in labels:
            label = f"start, {entry.policy}" if several else "start"
            labels[policy] = label if label not in labels.values() else f"{label} {len(labels)}"
            cell, weights[labels[policy]] = _start(plan, labels[policy], entry, seed)
            plan.starts.append(cell)
        plan.entries[i] = replace(entry, start=labels[policy])
    return weights


def _start(plan: Plan, label: str, entry: Entry, seed: int) -> tuple[Cell, list[str]]:
    """The cell of a starting policy, and the override by which the others start from it."""
    folder, weights, trained = plan.folder / "cells" / _slug(label), list[str](), None
    policy = [o for o in entry.overrides if o.partition("=")[0].partition(".")[0] == "policy"]
    if plan.settings["start"] is not None:
        trained = [*exchanged(joined(_ALONE, plan.fixed, policy), plan.settings["start"]), f"seed={seed}"]
        stage = resolved(trained).stages[-1]
        if stage.sections["lora"] is not None and stage.kind == "train":
            raise ConfigError("start= must leave a policy without a LoRA: add lora=null to it, or a merge")
        weights = [f"policy.weights={folder / 'run' / 'stages' / stage.name / 'policy'}"]
    settings = joined(_ALONE, plan.fixed, entry.overrides)
    request = _request(plan, entry.reward, trained, settings=settings, pictures=True, baselines=True)
    return Cell(folder, label, "start", seed, request), weights


def _common(plan: Plan, entry: Entry, weights: Sequence[str]) -> list[str]:
    return joined(
        _ALONE,
        plan.fixed,
        entry.overrides,
        weights,
        budget_overrides(plan.settings),
        _evaluations(plan.settings, entry.stage),
    )


def _cells(plan: Plan, entry: Entry, weights: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The runs of one entry, and its control unless another entry of the same settings has it already."""
    common = _common(plan, entry, weights)
    follows = Need.REWARD_GRADIENT in agent_class(entry.agent).needs
    random = exchanged(common, [f"reward={'random_network' if follows else 'random'}"])
    cells = []
    for seed in seeds:
        request = _request(plan, entry.reward, [*common, f"seed={seed}"], pictures=seed == seeds[0])
        cells.append(_cell(plan, entry.label, "agent", seed, request))
    if entry.reward in CONTROLS or not plan.settings["controls"]:
        return cells
    for seed in seeds[: int(plan.settings["controls"])]:
        overrides = [*random, f"seed={seed}"]
        known = next((c for c in plan.cells if c.role == "control" and c.request["overrides"] == overrides), None)
        label = known.label if known else f"{entry.label}, random reward"
        if known is None:
            cells.append(_cell(plan, label, "control", seed, _request(plan, entry.reward, overrides)))
        plan.entries[plan.entries.index(entry)] = entry = replace(entry, control=label)
    return cells


def _cell(plan: Plan, label: str, role: str, seed: int, request: Mapping[str, Any]) -> Cell:
    return Cell(plan.folder / "cells" / _slug(f"{label} seed {seed}"), label, role, seed, request)


def _trials(plan: Plan, weights: Mapping[str, Sequence[str]], seed: int) -> dict[str, list[Cell]]:
    """The runs of the search: as many settings of each entry, scored on validation."""
    search = plan.settings["search"]
    grids = {entry.label: _points(plan, entry, search) for entry in plan.entries} if search else {}
    numbers = {label: len(points) for label, points in grids.items()}
    if len(set(numbers.values())) > 1:
        counts = ", ".join(f"{label} {number}" for label, number in numbers.items())
        raise ConfigError(
            f"the search would try different numbers of settings ({counts}): give each agent as many, or trials=N to "
            "draw N of each"
        )
    cells: dict[str, list[Cell]] = {}
    for entry in plan.entries if search else ():
        common = _common(plan, entry, weights[entry.start])
        cells[entry.label] = []
        for i, point in enumerate(grids[entry.label]):
            overrides = [*joined(common, point), f"seed={seed}"]
            request = _request(plan, entry.reward, overrides, test={"split": "validation"}, point=list(point))
            folder = plan.folder / "search" / _slug(f"{entry.label} {i}")
            cells[entry.label].append(Cell(folder, f"{entry.label}: {' '.join(point)}", "trial", seed, request))
    return cells


def _points(plan: Plan, entry: Entry, search: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The settings that are tried for an entry: its own grid, or the one for all; at most `trials` of them, drawn."""
    labels = {other.label for other in plan.entries} | {other.agent for other in plan.entries}
    own = next((search[key] for key in (entry.label, entry.agent) if key in search), None)
    grid = own if own is not None else {key: values for key, values in search.items() if key not in labels}
    if not grid or not all(isinstance(values, list) and values for _, values in leaves(grid)):
        raise ConfigError(f"search expects lists of values for '{entry.label}', as in {{lr: [1e-3, 3e-3]}}, got {grid}")
    axes = []
    for key, values in leaves(grid):
        axes.append([next(addressed({key: value}, entry.stage, entry.label)) for value in values])
    points = list(product(*axes))
    trials = plan.settings["trials"]
    return points if trials is None or trials >= len(points) else Random(0).sample(points, int(trials))


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
