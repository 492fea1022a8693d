"""What a reproduction runs: the cells of every claim's arms, those of equal settings once.

A cell's name holds a hash of its resolved settings, those of the cells that it builds on included, so that claims share
what they have in common and a changed setting is another cell. Names of folders are no part of it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from srgym.runners.compare.executor import Cell
from srgym.runners.reproduce.claims import Arm, Claim, Contrast, claim_names, read_claim, shared_arms
from srgym.runners.reproduce.probes import ON_TRAINING, PROBES
from srgym.runners.run.config import ConfigError, RunConfig, compose, resolve
from srgym.runners.run.groups import near
from srgym.runners.run.made_with import made_with
from srgym.runners.run.overrides import defaults, read_override, take_values
from srgym.settings import Count, Natural, Positive, Share

__all__ = ["DOSES", "Plan", "Planned", "make_plan"]

_KINDS = {
    "claim": str | Sequence[str] | None, "tier": str, "claims": str | None, "photos": str | None, "seeds": Count | None,
    "many": Count | None, "effort": Positive | None, "limit": Count | None, "steps": Count, "pictures": Natural,
    "precheck.contexts": Count, "precheck.samples": Count, "precheck.limit": Share,
    "jobs": Count | None, "executor": Literal["local", "slurm"], "devices": int | str | Sequence[int | str] | None,
    "gpus": Count, "metrics": Mapping[str, Any], "margins": Mapping[str, float],
}  # fmt: skip
_TIER = ("seeds", "many", "effort", "limit")
_ALONE = ("runner.threads=1", "logger=csv", "report=null")
_REFERENCE = re.compile(r"@([a-z0-9_]+)/")
_TEST = {"split": "test"}

# Weights of the LoRA at which a comparison at equal distance from the start looks.
DOSES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Planned:
    """A cell, and what it is for.

    Attributes:
        claim: that wanted it first.
        arm, seed: whose it is. Another arm of the same settings shares the cell.
        config: a run's settings, or where a probe looks.
    """

    cell: Cell
    claim: str
    arm: str
    seed: int
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """A reproduction.

    Attributes:
        arguments: the command line. settings: of `configs/reproduce.yaml`, the tier's put in.
        fixed: overrides of all runs.
        described: arms by name. known: cells by arm and seed.
        cells: in the order in which they are wanted, by name.
        arms: cells' names by arm and seed. doses: of the cells that scale an arm's LoRA.
        checks: cells' names by claim and pair of its `testable`.
    """

    arguments: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    fixed: tuple[str, ...]
    claims: list[Claim]
    described: dict[str, Arm] = field(default_factory=dict)
    known: dict[tuple[str, int], Planned] = field(default_factory=dict)
    cells: dict[str, Planned] = field(default_factory=dict)
    arms: dict[str, dict[int, str]] = field(default_factory=dict)
    doses: dict[str, dict[int, str]] = field(default_factory=dict)
    checks: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    def by_claim(self) -> dict[str, list[str]]:
        """The cells that each claim adds to those before it."""
        owners: dict[str, list[str]] = {claim.name: [] for claim in self.claims}
        for name, planned in self.cells.items():
            owners[planned.claim].append(name)
        return owners

    def cells_of(self, contrasts: Sequence[Contrast]) -> set[str]:
        """The cells that contrasts rest on, and all that those read."""
        arms = {arm for contrast in contrasts for arm in contrast.arms}
        by_seed = [own for arm in arms for own in (self.arms.get(arm, {}), self.doses.get(arm, {}))]
        names = {name for own in by_seed for name in own.values()}
        while more := {need for name in names for need in self.cells[name].cell.needs} - names:
            names |= more
        return names

    @property
    def checking(self) -> set[str]:
        """The cells that ask whether training could tell rewards apart."""
        return {name for own in self.checks.values() for name in own.values()}

    def as_json(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        return {
            "command": ["srgym", "reproduce", *self.arguments], "made_with": made_with(),
            "settings": dict(self.settings), "fixed": list(self.fixed), "claims": [claim.name for claim in self.claims],
            "arms": self.arms, "doses": self.doses,
            "checks": {claim: {" and ".join(pair): name for pair, name in own.items()}
                       for claim, own in self.checks.items()},
        }  # fmt: skip


def make_plan(arguments: Sequence[str]) -> Plan:
    """What a command line asks for, every run's settings checked, nothing run yet.

    Raises:
        ConfigError: for a claim or a setting that doesn't exist or can't be.
    """
    settings, rest = take_values(arguments, defaults("reproduce"), ("*",), _KINDS)
    tiers = settings["tiers"]
    if settings["tier"] not in tiers:
        raise ConfigError(f"tier={settings['tier']} doesn't exist: expected one of {', '.join(tiers)}"
                          f"{near(settings['tier'], list(tiers))}")  # fmt: skip
    own = tiers[settings["tier"]]
    settings |= {key: own[key] if settings[key] is None else settings[key] for key in _TIER}
    swept = next((text for text in rest if read_override(text).swept), None)
    if swept is not None:
        raise ConfigError(f"'{swept}' asks for several runs: a claim's arms say what is compared")
    named, folder = settings["claim"], None if settings["claims"] is None else Path(settings["claims"])
    names = claim_names(folder) if named is None else [named] if isinstance(named, str) else list(named)
    shared, claims, arms = shared_arms(), list[Claim](), dict[str, dict[str, Arm]]()
    for name in names:
        claim, arms[name] = read_claim(name, shared, folder)
        claims.append(claim)
    plan = Plan(tuple(arguments), Path(settings["out"]), settings, tuple(rest), claims)
    for claim in claims:
        _Planner(plan, claim, arms[claim.name]).put()
    return plan


class _Planner:
    """Puts one claim's cells into a plan."""

    def __init__(self, plan: Plan, claim: Claim, arms: Mapping[str, Arm]) -> None:
        self._plan, self._claim, self._arms = plan, claim, arms
        self._settings = plan.settings

    def put(self) -> None:
        claim = self._claim
        for pair, rewards in self._pairs(claim):
            self._plan.checks.setdefault(claim.name, {})[pair] = self._check(rewards).cell.name
        wanted = dict.fromkeys(arm for contrast in claim.contrasts for arm in contrast.arms)
        apart = {arm for c in claim.contrasts if c.at == "distance" for arm in c.arms}
        for arm in wanted:
            for seed in range(self._seeds(arm)):
                self._plan.arms.setdefault(arm, {})[seed] = self._cell(arm, seed).cell.name
                if arm in apart and self._arms[arm].doses:
                    self._plan.doses.setdefault(arm, {})[seed] = self._dosed(arm, seed).cell.name

    def _seeds(self, arm: str) -> int:
        counts: dict[str, int] = {"one": 1, "some": self._settings["seeds"], "many": self._settings["many"]}
        return counts[self._arms[arm].seeds]

    def _cell(self, name: str, seed: int) -> Planned:
        """The cell of an arm and a seed; cells that it reads come before it in the plan."""
        if name not in self._arms:
            raise ConfigError(f"no arm is called '{name}'{near(name, list(self._arms))}")
        arm = self._arms[name]
        if self._plan.described.setdefault(name, arm) != arm:
            raise ConfigError(f"two claims have an arm '{name}', and not the same: give one of them another name")
        seed = seed if self._seeds(name) > 1 else 0
        if (name, seed) not in self._plan.known:
            made = self._probe(name, arm, seed) if arm.probe is not None else self._run(name, arm, seed)
            self._plan.known[name, seed] = made
        return self._plan.known[name, seed]

    def _run(self, name: str, arm: Arm, seed: int) -> Planned:
        texts = [*_own(arm).chosen, *_ALONE, *self._evaluations(arm), *arm.overrides, *self._everywhere(arm)]
        texts += [f"effort={self._settings['effort']}", f"seed={seed}"]
        overrides, hashed, needs = self._referred(texts, seed)
        metrics, hashed_metrics, read = self._referred({**self._settings["metrics"], **arm.metrics}, seed)
        config = resolve(*compose(hashed))
        request = {
            **self._measured(), "metrics": metrics, "overrides": overrides, "settings": [], "test": self._test(arm),
            "seeds": [0], "reward": next(iter(self._settings["metrics"])), "baselines": False, "picture_size": None,
            "pictures": self._settings["pictures"] if seed == 0 else 0,
        }  # fmt: skip
        facts = {"stages": {stage.name: stage.as_json() for stage in config.stages}, "seed": seed}
        facts |= {key: request[key] for key in ("test", "limit", "steps")} | {"metrics": hashed_metrics}
        trained = [stage for stage in config.stages if stage.kind == "train"]
        kind = str(trained[-1].sections["agent"]["name"]) if trained else config.stages[-1].kind
        return self._put(kind, facts, request, [*needs, *read], name, seed, config)

    def _everywhere(self, arm: Arm) -> list[str]:
        """The overrides of all runs, and the further photographs, where an arm's contexts are photographs."""
        photos = self._settings["photos"]
        more = [f"env.more={photos}"] if photos is not None and _own(arm).photographs else []
        return [*more, *self._plan.fixed]

    def _test(self, arm: Arm) -> dict[str, Any]:
        """The contexts of an arm's final evaluation."""
        if "name" not in arm.test:
            return {**_TEST, **arm.test}
        photos = self._settings["photos"]
        return {**arm.test, **({"more": photos} if photos is not None and arm.test["name"] == "photographs" else {})}

    def _evaluations(self, arm: Arm) -> list[str]:
        """How often a run is evaluated: as often as its curve wants."""
        own = _own(arm)
        every = max(1, round(own.iterations * self._settings["effort"] / arm.curve)) if arm.curve else 0
        return [f"{key}={every}" for key in ("runner.eval_every", *own.evaluated)]

    def _probe(self, name: str, arm: Arm, seed: int) -> Planned:
        options, hashed, needs = self._referred(dict(arm.probe or {}), seed)
        if options.get("kind") not in PROBES:
            raise ConfigError(
                f"arms.{name}.probe.kind={options.get('kind')} doesn't exist: expected one of {', '.join(PROBES)}"
            )
        if options["kind"] not in ON_TRAINING:
            options["test"] = hashed["test"] = {**_TEST, **(options.get("test") or {})}
        return self._looked(name, arm, seed, options, hashed, needs)

    def _looked(
        self, name: str, arm: Arm, seed: int, options: Mapping[str, Any], hashed: Mapping[str, Any], needs: list[str]
    ) -> Planned:
        settings = [*_own(arm).chosen, *arm.overrides, *self._everywhere(arm)]
        config = resolve(*compose(settings))
        sections = config.stages[-1].sections
        metrics, hashed_metrics, read = self._referred({**self._settings["metrics"], **arm.metrics}, seed)
        request = {**self._measured(), "metrics": metrics, "probe": options, "settings": settings}
        facts = {**self._measured(), "metrics": hashed_metrics, "probe": hashed, "env": sections["env"],
                 "policy": sections["policy"]}  # fmt: skip
        needs = [*needs, *read]
        return self._put(str(options["kind"]), facts, request, needs, name, seed, config)

    def _dosed(self, name: str, seed: int) -> Planned:
        """The cell that scales the LoRA of an arm's last stage."""
        run = self._cell(name, seed)
        last = run.config.stages[-1].name
        start = next((text for text in self._arms[name].overrides if ".start_from=@" in text), None)
        probe = {"kind": "evaluate", "lora": f"@{name}/stages/{last}/policy", "weights": list(DOSES),
                 "policy": start and start.partition("=")[2]}  # fmt: skip
        arm = Arm(self._arms[name].experiment, probe=probe, metrics=self._arms[name].metrics)
        return self._probe(name, arm, seed)

    def _check(self, rewards: Sequence[Any]) -> Planned:
        """The cell that looks how far the advantages of two rewards agree."""
        of, over = rewards
        settings = self._settings["precheck"]
        options = {"kind": "agreement", "of": of, "over": over, "contexts": settings["contexts"],
                   "samples": settings["samples"]}  # fmt: skip
        return self._looked("check", Arm(), 0, options, options, [])

    def _pairs(self, claim: Claim) -> list[tuple[tuple[str, str], tuple[Any, Any]]]:
        """The pairs of `testable` that are asked about: of arms those that a contrast holds against each other."""
        held = [set(contrast.arms) for contrast in claim.contrasts]
        return [
            ((label, other), (spec, its))
            for (other, its), (label, spec) in combinations(claim.testable.items(), 2)
            if {label, other} in held or not {label, other} <= set(self._arms)
        ]

    def _measured(self) -> dict[str, Any]:
        return {key: self._settings[key] for key in ("metrics", "limit", "steps")}

    def _referred(self, value: Any, seed: int) -> tuple[Any, Any, list[str]]:
        """Settings with folders in place of `@ARM/`; the same with keys, which the hash sees; the cells read."""
        needs: list[str] = []

        def walked(inner: Any, folder: Callable[[str], str]) -> Any:
            if isinstance(inner, str):
                return _REFERENCE.sub(lambda match: folder(match[1]), inner)
            if isinstance(inner, Mapping):
                return {key: walked(each, folder) for key, each in inner.items()}
            return [walked(each, folder) for each in inner] if isinstance(inner, (list, tuple)) else inner

        def key(arm: str) -> str:
            needs.append(self._cell(arm, seed).cell.name)
            return f"{needs[-1]}/"

        hashed = walked(value, key)
        real = walked(value, lambda arm: f"{self._plan.folder}/cells/{self._cell(arm, seed).cell.name}/run/")
        return real, hashed, list(dict.fromkeys(needs))

    def _put(
        self, kind: str, facts: Mapping[str, Any], request: Mapping[str, Any], needs: Sequence[str], arm: str,
        seed: int, config: RunConfig,
    ) -> Planned:  # fmt: skip
        text = json.dumps(facts, sort_keys=True, default=str)
        name = f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if name not in self._plan.cells:
            cell = Cell(self._plan.folder / "cells" / name, arm, "agent", seed, request, tuple(needs))
            self._plan.cells[name] = Planned(cell, self._claim.name, arm, seed, config)
        return self._plan.cells[name]


@dataclass(frozen=True)
class _Own:
    """What an arm's experiment says before anything of the plan's: `chosen`, the overrides that choose it and leave out
    the stages that aren't kept; the last stage's iterations; the keys of its stages that set how often they are
    evaluated; whether its contexts are photographs of ours, to which others can be added."""

    chosen: tuple[str, ...]
    iterations: int
    evaluated: tuple[str, ...]
    photographs: bool


def _own(arm: Arm) -> _Own:
    # Where another arm's policy is started from, there may be no stage of one's own to start from.
    texts = [re.sub(r"(?<=\.start_from=)@.*", "base", text) for text in arm.overrides]
    plain = tuple(text for text in texts if not _REFERENCE.search(text))
    return _read(arm.experiment, None if arm.stages is None else tuple(arm.stages), plain)


@cache
def _read(experiment: str, stages: tuple[str, ...] | None, overrides: tuple[str, ...]) -> _Own:
    known = dict(compose([f"experiment={experiment}"])[0].get("stages") or {})
    for stage in stages or ():
        if stage not in known:
            raise ConfigError(f"experiment {experiment} has no stage '{stage}'{near(stage, list(known))}")
    kept = tuple(known) if stages is None else stages
    chosen = (f"experiment={experiment}", *(f"~stages.{stage}" for stage in known if stage not in kept))
    tree, line = compose([*chosen, *overrides])
    runner = resolve(tree, line).stages[-1].sections["runner"]
    evaluated = [stage for stage in kept if "eval_every" in ((known[stage] or {}).get("runner") or {})]
    keys = tuple(f"stages.{stage}.runner.eval_every" for stage in evaluated)
    return _Own(chosen, runner["iterations"] or 0, keys, "more" in tree["env"])
