"""Settings of a command that isn't a run: defaults from a YAML file, values from the command line."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from importlib import resources
from typing import Any

from srgym.runners.run.config import ConfigError, flatten

__all__ = ["defaults", "merge_known", "sweep", "take_values", "words"]


def defaults(name: str) -> dict[str, Any]:
    """The settings of `configs/NAME.yaml`."""
    import yaml

    text = resources.files("srgym.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def take_values(
    arguments: Sequence[str], settings: Mapping[str, Any], others: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Read `key=value` arguments, values as Hydra reads them (`a,b` is a list, too).

    Args:
        settings: what there is, with its defaults; a key that is {} there may hold anything.
        others: first parts of keys that belong to someone else, or ("*",) for all.

    Returns:
        The settings with the values put in, and the arguments that belong to someone else.

    Raises:
        ConfigError: for a key that nobody has, with the nearest right one.
    """
    chosen, rest = deepcopy(dict(settings)), []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key.split(".")[0] in settings:
            if not equals:
                raise ConfigError(f"expected {key}=value, got '{argument}'")
            _put(chosen, settings, key, _value(argument))
        elif others == ("*",) or key.lstrip("+~").split(".")[0] in others:
            rest.append(argument)
        else:
            raise ConfigError(f"unknown setting '{key}'{_nearest(key, [*flatten(settings), *others])}")
    return chosen, rest


def _nearest(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    return f"; did you mean '{near[0]}'?" if near else f": expected one of {', '.join(known)}"


def _put(chosen: dict[str, Any], settings: Mapping[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    here, known, free = chosen, settings, False
    for part in path:
        if not (free or isinstance(known.get(part), Mapping)):
            raise ConfigError(f"unknown setting '{key}'{_nearest(key, list(flatten(settings)))}")
        here, known = here.setdefault(part, {}), known.get(part, {})
        free = free or not known  # below a key that is {}, anything goes
    if not free and last not in known:
        raise ConfigError(f"unknown setting '{key}'{_nearest(key, list(flatten(settings)))}")
    here[last] = value


def _parse(argument: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        hint = "; what holds an '=' inside a list needs quotes" if argument.count("=") > 1 else ""
        raise ConfigError(f"can't read '{argument}': {str(error).splitlines()[0]}{hint}") from error


def _value(argument: str) -> Any:
    parsed = _parse(argument)
    if parsed.is_sweep_override():
        return [_plain(value) for value in parsed.sweep_iterator()]
    return _plain(parsed.value())


def _plain(value: Any) -> Any:
    """Hydra's quoted strings and nested values as plain Python ones."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.text if hasattr(value, "text") else value


def sweep(argument: str) -> Iterator[str] | None:
    """The values of `key=a,b,...` as they would be written one at a time, or None where there is one."""
    parsed = _parse(argument)
    return parsed.sweep_string_iterator() if parsed.is_sweep_override() else None


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
