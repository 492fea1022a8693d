"""Settings of a command that isn't a run: defaults from a YAML file, values from the command line."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from srgym.errors import Refusal
from srgym.files import check_folder
from srgym.settings import check_plain, check_value, leaves

__all__ = [
    "METRICS", "ConfigError", "Override", "defaults", "flatten", "merge_known", "read_override", "take_values", "words",
]  # fmt: skip


# What metrics may be: rewards by name or mapping, or labels to these.
METRICS = str | Sequence[str | Mapping[str, Any]] | Mapping[str, str | Mapping[str, Any]]


class ConfigError(Refusal):
    """A setting that doesn't exist or can't be; the message names it, and the nearest that exists."""


def flatten(tree: Any, path: str = "") -> Iterator[str]:
    """Every key of a nested mapping, dotted, inner ones too."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            here = f"{path}.{key}" if path else str(key)
            yield here
            yield from flatten(value, here)


def defaults(name: str) -> dict[str, Any]:
    """The settings of `configs/NAME.yaml`."""
    import yaml

    text = resources.files("srgym.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def take_values(
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    others: Sequence[str] = (),
    kinds: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], list[str]]:
    """Read `key=value` arguments, values as Hydra reads them (`a,b` is a list, too).

    Args:
        settings: what there is, with its defaults; a key that is {} there may hold anything.
        others: first parts of keys that belong to someone else, or ("*",) for all.
        kinds: annotations of what values may be, by dotted key, of a mapping too; without one, a number, a text, a
            truth value or a mapping stays what its default is.

    Returns:
        The settings with the values put in, and the arguments that belong to someone else.

    Raises:
        ConfigError: for a key that nobody has, with the nearest right one.
        Refusal: for a value of another kind, or an `out` (of a command that has one by default) that can't be made.
    """
    values, rest = deepcopy(dict(settings)), []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key.split(".")[0] in settings:
            if not equals:
                raise ConfigError(f"expected {key}=value, got '{argument}'")
            _put(values, settings, key, read_override(argument).value)
        elif others == ("*",) or key.lstrip("+~").split(".")[0] in others:
            rest.append(argument)
        else:
            raise ConfigError(f"unknown setting '{key}'{_nearest(key, [*flatten(settings), *others])}")
    for key, default in leaves(settings):
        path = key.split(".")
        known = next((k for i in range(len(path)) if (k := ".".join(path[: i + 1])) in kinds), key)
        check_value(kinds.get(known, _kind(default)), _at(values, known), known)
    if isinstance(settings.get("out"), str):
        check_folder(Path(values["out"]))
    return values, rest


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; refuses what has taken the place of a mapping on the way."""
    here: Any = values
    for i, part in enumerate(path := key.split(".")):
        where = ".".join(path[:i])
        if i:
            check_value(Mapping[str, Any], here, where)
        if part not in here:
            raise ConfigError(f"{where}: expected '{part}' in it, got {', '.join(map(repr, here)) or 'nothing'}")
        here = here[part]
    return here


def _kind(default: Any) -> Any:
    if isinstance(default, Mapping):
        return Mapping[str, Any]
    return type(default) if isinstance(default, (bool, int, float, str)) else Any


def _nearest(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    return f"; did you mean '{near[0]}'?" if near else f": expected one of {', '.join(known)}"


def _put(values: dict[str, Any], settings: Mapping[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    here, known, free = values, settings, False
    for part in path:
        if not (free or isinstance(known.get(part), Mapping)):
            raise ConfigError(f"unknown setting '{key}'{_nearest(key, list(flatten(settings)))}")
        here, known = here.setdefault(part, {}), known.get(part, {})
        free = free or not known  # below a key that is {}, anything goes
    if not free and last not in known:
        raise ConfigError(f"unknown setting '{key}'{_nearest(key, list(flatten(settings)))}")
    here[last] = value


@dataclass(frozen=True)
class Override:
    """One argument of a command line, as Hydra reads it.

    Attributes:
        text: as it was written. key: what stands before the "=".
        how: "set" (key=value), "add" (+key=value) or "delete" (~key).
        value: None of a deleted key; where several are said, `key=a,b`, all of them.
        swept: those values as they would be written one at a time; empty where one is said.
    """

    text: str
    key: str
    how: str
    value: Any
    swept: tuple[str, ...] = ()


def read_override(text: str) -> Override:
    """Read `key=value`.

    Raises:
        ConfigError: for what Hydra's grammar doesn't know.
        Refusal: for a secret, or a reference that does more than refer (see `check_plain`).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        hint = "; what holds an '=' inside a list needs quotes" if text.count("=") > 1 else ""
        raise ConfigError(f"can't read '{text}': {str(error).splitlines()[0]}{hint}") from error
    key, kind = parsed.key_or_group, parsed.type
    if kind is OverrideType.DEL:
        return Override(text, key, "delete", None)
    how = "set" if kind is OverrideType.CHANGE else "add"
    if not parsed.is_sweep_override():
        check_plain(parsed.value(), key)
        return Override(text, key, how, parsed.value())
    swept = tuple(parsed.sweep_string_iterator())
    return Override(text, key, how, [read_override(f"{key}={value}").value for value in swept], swept)


def merge_known(settings: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings with changes from a file put in; the file may not bring a key that there isn't.

    Raises:
        ConfigError: naming the file's key.
    """
    merged = deepcopy(dict(settings))
    for key, value in changes.items():
        if key not in merged:
            raise ConfigError(f"{where} sets '{key}', which isn't there{_nearest(key, list(merged))}")
        inner = merged[key]
        known = isinstance(inner, Mapping) and inner and isinstance(value, Mapping)
        merged[key] = merge_known(inner, value, f"{where}.{key}") if known else deepcopy(value)
    return merged


def words(value: Any) -> Iterator[str]:
    """Every string in nested settings, keys and values: all names that they mention."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)
