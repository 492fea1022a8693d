"""What a setting's group can be chosen from: the files of `configs/`, a user's files, and the parts that have none."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from srgym.agents.registry import AGENTS
from srgym.envs.sources import SOURCES
from srgym.policies.registry import POLICIES
from srgym.registry import Registry
from srgym.rewards.registry import REWARDS
from srgym.runners.run.overrides import ConfigError

__all__ = [
    "GROUPS", "PARTS", "SECTIONS", "choices", "constructor_section", "file_section", "named_part", "near", "options",
]  # fmt: skip

SECTIONS = ("env", "reward", "policy", "agent", "runner", "lora")
GROUPS = ("env", "reward", "policy", "agent", "runner", "experiment")
PARTS: dict[str, Registry[Any]] = {"env": SOURCES, "reward": REWARDS, "policy": POLICIES, "agent": AGENTS}


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The files of a config group: the package's and those in the user's folders."""
    places = [resources.files("srgym.configs"), *folders]
    names = set()
    for place in places:
        here = place.joinpath(group)
        if here.is_dir():
            names |= {item.name.removesuffix(".yaml") for item in here.iterdir() if item.name.endswith(".yaml")}
    return sorted(names)


def choices(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """What a group can be set to by name."""
    return sorted({*options(group, folders), *(PARTS[group].names() if group in PARTS else ())})


def constructor_section(group: str, name: str) -> dict[str, Any]:
    """The section of a part without a file: the defaults of its constructor, and what our files add to that."""
    section = {"name": name, **PARTS[group].defaults(name)}
    if group == "env":
        section |= {"prompts": False, "descriptions": None}
    if group == "policy" and "scale" in section:
        section["scale"] = None  # that of the contexts
    return section


def file_section(group: str, name: str) -> dict[str, Any]:
    """What the package's file of a part says; nothing for a part without one."""
    import yaml

    path = resources.files("srgym.configs").joinpath(group, f"{name}.yaml")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded


def named_part(section: str, value: str) -> dict[str, Any]:
    """A stage's own part that is said by its name alone, `stages.NAME.reward=dists`, as the group's file has it."""
    value = PARTS[section].aliases.get(value, value)  # a short name's file only names the long one's
    filed = file_section(section, value)
    if filed:
        return {"name": filed["name"]} if section == "env" else filed  # its size and scale are the run's
    if not PARTS[section].knows(value):
        known = choices(section)
        raise ConfigError(f"{section}={value} doesn't exist: expected one of {', '.join(known)}{near(value, known)}")
    return constructor_section(section, PARTS[section].full_name(value))


def near(name: str, known: Sequence[str]) -> str:
    """Ends an error message with the nearest name there is."""
    by_leaf = {key.rpartition(".")[2]: key for key in sorted(known, key=len, reverse=True)}
    match = [by_leaf[name]] if name in by_leaf else get_close_matches(name, known, 1, 0.6)
    if not match:
        match = [by_leaf[leaf] for leaf in get_close_matches(name.rpartition(".")[2], list(by_leaf), 1, 0.6)]
    return f"; did you mean '{match[0]}'?" if match else ""
