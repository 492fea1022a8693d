"""Settings: composed by Hydra, checked against what exists, and resolved into stages.

Imports no heavy library, but for a part that has no file: its constructor says what settings it has.

From weakest to strongest: a group's file (`configs/agent/diffusion_nft.yaml`), the experiment's `when` blocks, the
stage's `when` blocks, the command line, the stage's own sections, the command line's `stages.NAME...`.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from srgym.errors import MissingFile
from srgym.files import check_folder
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.run.groups import (
    GROUPS,
    PARTS,
    SECTIONS,
    choices,
    constructor_section,
    file_section,
    named_part,
    near,
    options,
)
from srgym.runners.run.overrides import ConfigError, flatten, read_override
from srgym.settings import Count, Natural, Positive, check_arguments, check_plain, check_value, fill

__all__ = [
    "GROUPS", "SECTIONS", "ConfigError", "RunConfig", "StageConfig", "choices", "compose", "flatten", "is_folder",
    "options", "resolve",
]  # fmt: skip

_OPTIONS = {"train": (), "merge": ("lora_from", "adapter", "weight"), "scorer": ("scorer",)}
_STAGE_KEYS = ("kind", "start_from", "when", *(key for keys in _OPTIONS.values() for key in keys))


@dataclass(frozen=True)
class StageConfig:
    """One stage, every section complete.

    Attributes:
        name: the stage's.
        kind: "train"; "merge" (add the LoRA of stage `lora_from` to the weights of stage `start_from`); or "scorer"
            (train the compact COMPASS scorer on candidates of the policy).
        start_from: "base" (the run's policy), "previous", a stage's name, or the folder of a saved policy.
        sections: `env`, `reward`, `policy`, `agent`, `runner` and `lora` (None: all weights are trained); a merge
            learns nothing, so it has `env`, `policy` and `runner` alone, which its evaluation follows.
        options: `lora_from`, `adapter` and `weight` of a merge; `scorer`'s settings.
    """

    name: str
    kind: str
    start_from: str
    sections: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"kind": self.kind, "start_from": self.start_from, **self.options, **self.sections}


# What the settings beside the sections are.
_TOP = {
    "name": str, "seed": Natural, "out": str, "logger": str | Sequence[str] | None, "effort": Positive,
    "heldout": Mapping[str, Any] | None, "report": Mapping[str, Any] | None, "when": Mapping[str, Any] | None,
    "stages": Mapping[str, Any] | None,
}  # fmt: skip


_SECTION_KINDS = {"reward": str | Mapping[str, Any], "lora": Mapping[str, Any] | None}  # the others: a mapping


@dataclass(frozen=True)
class RunConfig:
    """A run: its name, seed, folder, loggers and stages; the settings they came from, and the command line's share.

    Attributes:
        overrides, config_dirs: the command line that it came from, and the folders of configs that were searched.
    """

    name: str
    seed: int
    out: Path
    logger: list[str]
    stages: list[StageConfig]
    tree: dict[str, Any]
    overrides: list[str]
    config_dirs: list[Path] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """The words of the command line that makes it again."""
        return ["srgym", "train", *(f"--config-dir={folder}" for folder in self.config_dirs), *self.overrides]


@dataclass(frozen=True)
class LoraSection:
    """The section `lora`: adapters of this rank, `alpha` (the update is scaled by alpha / rank), on modules that are
    named `targets` or end so; None: the policy's own choice.
    """

    rank: Count
    alpha: Positive
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_arguments(LoraSection, vars(self), "lora.")


@dataclass(frozen=True)
class CommandLine:
    """A command line, sorted: choices of groups for Hydra, choices without a file, and values."""

    given: list[str]
    folders: list[Path]
    groups: list[str]
    unfiled: dict[str, str]
    values: list[tuple[str, Any, str]]  # key, value, "set" | "add" | "delete"


def _parse(overrides: Sequence[str], folders: Sequence[Path]) -> CommandLine:
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"expected key=value, got '{text}'{near(text, [f'{group}=...' for group in GROUPS])}")
    groups, unfiled, parts, values = [], {}, [], []
    for override in map(read_override, overrides):
        key, value = override.key, override.value
        section = key.rpartition(".")[2]
        if override.swept:
            raise ConfigError(f"'{override.text}' asks for several runs; a command runs one: quote a list as [a,b]")
        if key.startswith("stages.") and key.count(".") == 2 and section in PARTS and isinstance(value, str):
            parts.append((key, named_part(section, value), override.how))  # before what is said of it
        elif key not in GROUPS or not isinstance(value, str):
            values.append((key, value, override.how))
        elif value in options(key, folders):
            groups.append(override.text.lstrip("+"))
        elif key in PARTS and PARTS[key].knows(value):
            unfiled[key] = PARTS[key].full_name(value)
        else:
            known = choices(key, folders)
            raise ConfigError(f"{key}={value} doesn't exist: expected one of {', '.join(known)}{near(value, known)}")
    return CommandLine(list(overrides), [folder.absolute() for folder in folders], groups, unfiled, [*parts, *values])


def compose(overrides: Sequence[str], folders: Sequence[Path] = ()) -> tuple[dict[str, Any], CommandLine]:
    """Compose the groups that are chosen, and check every other override against the keys there are.

    Args:
        overrides: `key=value`, `group=file`, `+new=value`, `~key`, as Hydra reads them.
        folders: config folders of the user's, laid out as `configs/` is.

    Returns:
        The tree before values are set, and the command line, for `resolve`.

    Raises:
        ConfigError: naming what doesn't exist, and the nearest that does.
    """
    for folder in folders:
        if not folder.is_dir():
            raise MissingFile(f"expected a folder of configs at {folder}, found none")
    line = _parse(overrides, folders)
    tree = deepcopy(_composed(tuple(line.groups), tuple(folder.resolve() for folder in folders)))
    for group, name in line.unfiled.items():
        tree[group] = constructor_section(group, name)
    _check_keys(tree, line)
    return tree, line


@cache
def _composed(groups: tuple[str, ...], folders: tuple[Path, ...]) -> dict[str, Any]:
    """The chosen groups' files, put together by Hydra; a comparison asks for the same ones many times."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    extra = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []
    GlobalHydra.instance().clear()
    with initialize_config_module("srgym.configs", version_base="1.3"):
        try:
            composed = hydra_compose("config", overrides=[*groups, *extra])
        except HydraException as error:
            raise ConfigError(str(error).splitlines()[0]) from error
    tree: dict[str, Any] = OmegaConf.to_container(composed, resolve=False)
    check_plain(tree)
    return tree


def _check_keys(tree: Mapping[str, Any], line: CommandLine) -> None:
    known = {*flatten(tree), *GROUPS}
    anything: list[str] = []
    for group, name in line.unfiled.items():
        its = PARTS[group].options(PARTS[group].find(name))
        known |= {f"{group}.{option}" for option in its or ()}  # some have no default that YAML can hold
        anything += [group] if its is None else []
    for block in (tree.get("when") or {}).values():
        known |= set(flatten(block))
    for stage, own in (tree.get("stages") or {}).items():
        here = f"stages.{stage}"
        for block in ((own or {}).get("when") or {}).values():
            known |= set(flatten(block))
        known |= {f"{here}.{key}" for key in (*_STAGE_KEYS, *SECTIONS)}
        for section in SECTIONS:
            known |= {f"{here}.{section}.{key}" for key in flatten(tree.get(section))}
        for section in PARTS:
            part: dict[str, Any] = next((value for key, value, _ in line.values if key == f"{here}.{section}"), {})
            named = [value for key, value, _ in line.values if key == f"{here}.{section}.name"]
            named = named or [part.get("name")]
            filed = file_section(section, named[0]) if isinstance(named[0], str) else {}
            known |= {f"{here}.{section}.{key}" for key in flatten({**part, **filed})}
    for key, _, how in line.values:
        if key in known or how == "add" or key.split(".")[0] in anything:
            continue
        raise ConfigError(f"unknown setting '{key}'{near(key, sorted(known))}")


def _set(tree: dict[str, Any], key: str, value: Any, how: str) -> None:
    *path, last = key.split(".")
    here = tree
    for part in path:
        if not isinstance(here.get(part), dict):
            here[part] = {}
        here = here[part]
    if how == "delete":
        here.pop(last, None)
    else:
        here[last] = value


def _merge(base: dict[str, Any], extra: Mapping[str, Any], where: str) -> None:
    """Put `extra` into `base`, whose keys are all there are."""
    for key, value in extra.items():
        if key not in base:
            raise ConfigError(f"{where} sets '{key}', which isn't there{near(key, list(base))}")
        if isinstance(value, Mapping) and isinstance(base[key], dict):
            _merge(base[key], value, f"{where}.{key}")
        else:
            base[key] = deepcopy(value)


def resolve(tree: Mapping[str, Any], line: CommandLine) -> RunConfig:
    """Give every stage its complete sections.

    Raises:
        ConfigError: for a section that sets a key its part hasn't got, or a stage that starts from no stage.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    settings = deepcopy(dict(tree))
    for key, value, how in line.values:
        if key.split(".")[0] not in SECTIONS:
            _set(settings, key, value, how)
    try:
        settings = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    except OmegaConfBaseException as error:
        reason, part = str(error).partition("\n")[0], ".".join(str(error.full_key).split(".")[:3])
        raise ConfigError(
            f"{error.full_key} follows another setting, which isn't there ({reason}): choose its part as well, "
            f"{part}=NAME"
        ) from error
    for key, annotation in _TOP.items():
        check_value(annotation, settings.get(key), key)
    check_folder(Path(settings["out"]))
    listed: dict[str, Any] = settings.get("stages") or {"main": {}}
    stages: list[StageConfig] = []
    for name, stage in listed.items():
        if stage is None:
            raise ConfigError(
                f"stages.{name} is null: ~stages.{name} on the command line leaves a stage out, and {{}} is one with "
                "the run's own settings"
            )
        stages.append(_stage(name, stage, settings, line, [done.name for done in stages]))
    logger = settings["logger"]
    return RunConfig(
        name=str(settings["name"]),
        seed=settings["seed"],
        out=Path(settings["out"]),
        logger=[logger] if isinstance(logger, str) else list(logger or []),
        stages=stages,
        tree=settings,
        overrides=line.given,
        config_dirs=line.folders,
    )


def _stage(
    name: str, stage: Mapping[str, Any], tree: Mapping[str, Any], line: CommandLine, before: Sequence[str]
) -> StageConfig:
    unknown = [key for key in stage if key not in (*_STAGE_KEYS, *SECTIONS)]
    if unknown:
        raise ConfigError(
            f"stage '{name}' has an unknown key '{unknown[0]}'{near(unknown[0], [*_STAGE_KEYS, *SECTIONS])}"
        )
    for section in [section for section in SECTIONS if section in stage]:
        check_value(_SECTION_KINDS.get(section, Mapping[str, Any]), stage[section], f"stages.{name}.{section}")
        if section in PARTS and isinstance(stage[section], Mapping):
            check_value(str, stage[section].get("name", ""), f"stages.{name}.{section}.name")
    kind = stage.get("kind", "train")
    check_value(Literal[*_OPTIONS], kind, f"stages.{name}.kind")
    check_value(str, stage.get("start_from", ""), f"stages.{name}.start_from")
    start = stage.get("start_from", "base")
    if start == "previous":
        start = before[-1] if before else "base"
    if start != "base" and start not in before and not is_folder(start):
        raise ConfigError(
            f"stage '{name}' has start_from={start}: expected base, previous, a stage before it, or a policy's folder"
        )
    if kind == "merge":
        for key, source in (("start_from", start), ("lora_from", stage.get("lora_from"))):
            if source not in before:
                raise ConfigError(f"stage '{name}' merges and has {key}={source}: expected a stage before it")
    sections = _sections(name, stage, tree, line)
    _check_sections(sections, stage)
    _scale_budget(sections["runner"], tree["effort"])
    if kind == "merge":
        sections = {section: sections[section] for section in ("env", "policy", "runner")}
    return StageConfig(name, kind, start, sections, {key: stage[key] for key in _OPTIONS[kind] if key in stage})


def is_folder(start: str) -> bool:
    """Whether a stage starts from a saved policy: a path has a slash."""
    return "/" in start


def _check_sections(sections: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    """Refuse sections that aren't what they are for, before anything heavy is imported."""
    for section in ("env", "policy", "agent"):
        check_value(str, sections[section].get("name"), f"{section}.name")
    if sections["lora"] is not None:
        fill(LoraSection, sections["lora"], "lora.")
    settings = fill(RunnerSettings, sections["runner"], "runner.")
    if stage.get("kind", "train") == "train":
        _ = settings.budget
    check_value(float, stage.get("weight", 1.0), "weight")
    check_value(Literal["default", "old", "ema"], stage.get("adapter", "ema"), "adapter")


def _sections(name: str, stage: Mapping[str, Any], tree: Mapping[str, Any], line: CommandLine) -> dict[str, Any]:
    """A stage's sections, from the weakest of what sets them to the strongest."""
    sections = {section: _own_section(section, stage, tree) for section in SECTIONS}
    names = {section: value["name"] for section, value in sections.items() if value and "name" in value}
    for where, block in (("when", tree.get("when")), (f"stages.{name}.when", stage.get("when"))):
        _apply_when(sections, names, block or {}, where)
    replaced = _replaced(stage)
    for key, value, how in line.values:
        section = key.split(".")[0]
        if key in SECTIONS and how != "delete":
            check_value(_SECTION_KINDS.get(key, Mapping[str, Any]), value, key)
        if section in SECTIONS and section not in replaced:
            _set(sections, key, value, how)
    for section in SECTIONS:
        if section in stage and section not in replaced:
            _merge(sections[section], stage[section], f"stages.{name}.{section}")
    return sections


def _replaced(stage: Mapping[str, Any]) -> list[str]:
    """The sections that a stage doesn't take from the run: those it gives a name, and a `lora` that it sets to null."""
    return [key for key in SECTIONS if key in stage and (stage[key] is None or "name" in stage[key])]


def _own_section(section: str, stage: Mapping[str, Any], tree: Mapping[str, Any]) -> Any:
    own: dict[str, Any] | None = deepcopy(stage[section] if section in _replaced(stage) else tree.get(section))
    if section == "env" and own is not None and section in _replaced(stage):
        # Another source for a stage: its file's defaults, and the run's size and scale, unless the stage says more.
        filed = file_section("env", own["name"])
        shared = {key: value for key, value in (tree.get("env") or {}).items() if key in ("size", "scale")}
        own = {**filed, **{key: value for key, value in shared.items() if key in filed}, **own}
    if section in PARTS and own and "name" in own:
        own["name"] = PARTS[section].full_name(own["name"])
    return own


def _apply_when(sections: dict[str, Any], names: Mapping[str, str], block: Mapping[str, Any], where: str) -> None:
    """Apply blocks such as `agent=diffusion_nft: {runner: {lr: 3e-3}}` whose condition holds in this stage."""
    for condition, settings in block.items():
        section, _, name = condition.partition("=")
        if section not in SECTIONS:
            raise ConfigError(f"{where} has the condition '{condition}': expected section=name, as in agent=flow_grpo")
        if names.get(section) != (PARTS[section].full_name(name) if section in PARTS else name):
            continue
        for target, values in settings.items():
            if target not in SECTIONS:
                raise ConfigError(f"{where} sets '{target}': expected one of {', '.join(SECTIONS)}")
            if sections[target] is not None:
                _merge(sections[target], values, f"{where}.{condition}.{target}")


def _scale_budget(runner: dict[str, Any], share: float) -> None:
    """Shorten (or lengthen) a stage: `effort=0.1` is a tenth of every stage."""
    for key in ("iterations", "images"):
        if runner.get(key) is not None:
            runner[key] = max(1, round(runner[key] * share))
    if runner.get("seconds") is not None:
        runner["seconds"] = runner["seconds"] * share
