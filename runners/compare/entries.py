"""What a comparison compares: parts exchanged and hyperparameters set, entry by entry, from overrides to settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from srgym.agents.base import Agent
from srgym.agents.registry import AGENTS, agent_class
from srgym.runners.run.config import GROUPS, SECTIONS, ConfigError, RunConfig, StageConfig, compose, resolve
from srgym.settings import leaves

__all__ = ["Entry", "addressed", "budget_overrides", "check_shared", "exchanged", "joined", "make_entries", "resolved"]

# Hyperparameters that mean the same to every agent that has them.
_SHARED = {*(AGENTS.options(Agent) or ()), "steps", "std", "filter", "combine"}


@dataclass(frozen=True)
class Entry:
    """What is compared.

    Attributes:
        label: its name in tables. overrides: what distinguishes it on a command line.
        reward: the label of its reward. agent, policy: their names.
        stage: the settings of the stage that trains it, resolved.
        tuned: whether anybody set hyperparameters for this entry: the experiment's block for its agent, `settings`, or
            a search.
        start, control: the labels of the cells that it is held against; no control: None.
    """

    label: str
    overrides: tuple[str, ...]
    reward: str
    agent: str
    policy: str
    stage: StageConfig
    tuned: bool
    start: str = "start"
    control: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What the report needs of it."""
        hyperparameters = {key: self.stage.sections[key] for key in ("agent", "runner", "lora")}
        return {
            "overrides": list(self.overrides), "reward": self.reward, "agent": self.agent, "policy": self.policy,
            "tuned": self.tuned, "start": self.start, "control": self.control, "hyperparameters": hyperparameters,
        }  # fmt: skip


def make_entries(
    settings: Mapping[str, Any],
    fixed: Sequence[str],
    axes: Mapping[str, Sequence[str]],
    seed: int,
    winners: Mapping[str, Sequence[str]],
) -> list[Entry]:
    """What is compared, each with the settings of the stage that trains it."""
    named: Mapping[str, Sequence[str]] = settings["entries"] or {"": ()}
    entries: list[Entry] = []
    wanted = set(settings["settings"])
    for name, own in named.items():
        for point in product(*axes.values()):
            overrides = joined(own, point)
            config = resolved([*joined(fixed, overrides, budget_overrides(settings)), f"seed={seed}"])
            stage = _trained(config)
            agent, policy = str(stage.sections["agent"]["name"]), str(stage.sections["policy"]["name"])
            label = ", ".join(part for part in (name, *map(_short, point)) if part)
            label = label or _part("agent", fixed, overrides) or agent
            reward = _part("reward", fixed, overrides) or str(stage.sections["reward"]["name"])
            names = (label, _short_agent(fixed, overrides) or agent, agent)
            keys = [key for key in names if key in settings["settings"]]
            wanted -= set(keys)
            tuning = [o for key in dict.fromkeys(keys) for o in addressed(settings["settings"][key], stage, key)]
            tuning += winners.get(label, ())
            if tuning:
                overrides = joined(overrides, tuning)
                stage = _trained(resolved([*joined(fixed, overrides, budget_overrides(settings)), f"seed={seed}"]))
            tuned = bool(tuning) or f"agent={agent}" in (config.tree.get("when") or {})
            entries.append(Entry(label, tuple(overrides), reward, agent, policy, stage, tuned))
    labels = [entry.label for entry in entries]
    if len(set(labels)) != len(labels):
        raise ConfigError("two entries have the same label: expected every value once")
    if wanted:
        stray = sorted(wanted)[0]
        near = get_close_matches(stray, labels, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f": expected one of {', '.join(labels)}"
        raise ConfigError(f"settings.{stray} is for no entry of this comparison{hint}")
    return entries


def _trained(config: RunConfig) -> StageConfig:
    """The last stage that trains."""
    return next(stage for stage in reversed(config.stages) if stage.kind == "train")


def addressed(settings: Mapping[str, Any], stage: StageConfig, label: str) -> Iterator[str]:
    """An entry's own settings as overrides; a bare `lr` or `beta` is the runner's or the agent's, whichever has it."""
    agent, runner = AGENTS.options(agent_class(stage.sections["agent"]["name"])) or {}, stage.sections["runner"]
    for key, value in leaves(settings):
        first = key.partition(".")[0]
        if first in SECTIONS:
            path = key
        elif first in agent:
            path = f"agent.{key}"
        elif first in runner:
            path = f"runner.{key}"
        else:
            known = sorted({*agent, *runner})
            near = get_close_matches(first, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f": expected one of {', '.join(known)}"
            raise ConfigError(f"settings.{label}.{key}: neither the agent nor the runner has '{first}'{hint}")
        yield f"{path}={_written(value)}"


def _written(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_shared(fixed: Sequence[str], entries: Sequence[Entry]) -> None:
    """Refuse a hyperparameter for all, where it means different things to the agents that have it."""
    agents = {entry.agent: agent_class(entry.agent) for entry in entries}
    for override in fixed:
        key = override.partition("=")[0]
        name = key.removeprefix("agent.").partition(".")[0]
        if not key.startswith("agent.") or len(agents) < 2 or name in _SHARED:
            continue
        having = [agent for agent, kind in agents.items() if name in (AGENTS.options(kind) or ())]
        first = next((entry.label for entry in entries if entry.agent in having), entries[0].label)
        raise ConfigError(
            f"{key} is a hyperparameter of {' and '.join(having) or 'no agent here'}, and doesn't mean the same to all "
            f"agents of this comparison: give it to one, as in settings.{first}.{name}={override.partition('=')[2]}"
        )


def joined(*lists: Sequence[str]) -> list[str]:
    """Overrides one after the other; a later one of the same key takes the place of an earlier one."""
    latest: dict[str, str] = {}
    for override in (override for overrides in lists for override in overrides):
        key = override.partition("=")[0]
        latest.pop(key, None)
        latest[key] = override
    return list(latest.values())


def exchanged(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides with some parts exchanged (agent=, reward=): what was said of the old parts isn't said of the new."""
    parts = tuple(f"{change.partition('=')[0]}." for change in changes if change.partition("=")[0] in GROUPS)
    return joined([override for override in overrides if not override.startswith(parts)], changes)


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return value.rpartition(":")[2] if key in ("agent", "reward") else override  # of module:Class, the class


def _part(group: str, fixed: Sequence[str], overrides: Sequence[str]) -> str | None:
    """What a part is called on the command line."""
    return next((o.partition("=")[2] for o in joined(fixed, overrides) if o.startswith(f"{group}=")), None)


def _short_agent(fixed: Sequence[str], overrides: Sequence[str]) -> str | None:
    agent = _part("agent", fixed, overrides)
    return None if agent is None else agent.rpartition(":")[2]


def resolved(overrides: Sequence[str]) -> RunConfig:
    """A run's settings, checked."""
    return resolve(*compose(list(overrides)))


def budget_overrides(settings: Mapping[str, Any]) -> list[str]:
    """The comparison's budget as overrides; none where it is left open."""
    budget = settings["budget"]
    if all(limit is None for limit in budget.values()):
        return []
    return [f"runner.{key}={'null' if limit is None else limit}" for key, limit in budget.items()]
