"""Rewards by name: the built-in table, `register_reward`, entry points of other packages, dotted paths, composites.

Nothing here imports torch until a reward is made, so that listing them is instant.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from srgym.rewards.builtin import BUILTIN
from srgym.rewards.info import CONTEXT, RewardInfo, describe

if TYPE_CHECKING:
    from srgym.rewards.base import Reward

__all__ = ["ENTRY_POINTS", "available", "info_of", "listing", "make", "register_reward"]

ENTRY_POINTS = "srgym.rewards"

_Target = TypeVar("_Target", bound=Callable[..., Any])
_REGISTERED: dict[str, Callable[..., Any]] = {}


def register_reward(
    name: str,
    *,
    differentiable: bool = False,
    group: bool = False,
    range: tuple[float, float] = (-math.inf, math.inf),
    direction: str = "higher",
    licence: str = "Apache-2.0",
    weights: str = "none",
    variant: str = "",
    unit: str = "",
    colour_space: str = "RGB",
) -> Callable[[_Target], _Target]:
    """Make a reward known by name. Decorates a function `(sr, ...)`, or a class whose instances are called so.

    The argument names are the contract: `def mine(sr, hr)` needs ground truth, `def mine(sr, lr, text=None)` needs the
    LR image and uses a text where there is one. It returns [B] scores (higher is better), or a mapping of named ones.

    Args:
        differentiable: whether gradients reach `sr`.
        group: whether it must see a context's whole group; it then takes `group`, int64 [B].
        range: the closed interval of the scores.
        direction: "higher", or "none" for a control that follows no quality.
        licence, weights: told in the listing.
        variant: what its numbers must be quoted with, such as a training set.
        unit: of its numbers. colour_space: what of the image it looks at.

    Raises:
        ValueError: when another reward has the name.
        TypeError: when the first argument isn't `sr`.
    """

    def register(target: _Target) -> _Target:
        info = describe(
            target,
            name,
            differentiable=differentiable,
            group=group,
            range=range,
            direction=direction,
            licence=licence,
            weights=weights,
            variant=variant,
            unit=unit,
            colour_space=colour_space,
        )
        holder = BUILTIN[name].path if name in BUILTIN else None
        if name in _REGISTERED:
            holder = info_of(_REGISTERED[name], name).path
        # The same path again is a module that was loaded twice or a notebook cell that was run again.
        if holder is not None and holder != info.path:
            raise ValueError(f"the reward name '{name}' is taken by {holder}; {info.path} needs another")
        target.__reward__ = info  # type: ignore[attr-defined]
        _REGISTERED[name] = target
        return target

    return register


def info_of(target: Callable[..., Any], name: str) -> RewardInfo:
    """What a reward declared when it was registered, or what its signature says."""
    held = getattr(target, "__reward__", None)
    return held if isinstance(held, RewardInfo) else describe(target, name)


@cache
def _installed() -> dict[str, EntryPoint]:
    """The rewards that installed packages offer, by name."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in BUILTIN or entry.name in found:
            other = found[entry.name].value if entry.name in found else BUILTIN[entry.name].path
            warnings.warn(
                f"the reward '{entry.name}' of {entry.value} is hidden by {other}; name it as '{entry.value}'",
                stacklevel=2,
            )
        else:
            found[entry.name] = entry
    return found


def available() -> list[str]:
    """All names that `make` knows: built in, registered in this process, or offered by an installed package."""
    return sorted({*BUILTIN, *_REGISTERED, *_installed()})


def listing() -> list[dict[str, Any]]:
    """One row a reward, as plain values: the fields of `RewardInfo`, and `origin`.

    Only other packages' rewards are imported for it. One that can't be imported has its failure as `doc`.
    """
    rows = []
    for name in available():
        if name in _REGISTERED:
            rows.append(
                info_of(_REGISTERED[name], name).row() | {"origin": "built-in" if name in BUILTIN else "registered"}
            )
        elif name in BUILTIN:
            rows.append(BUILTIN[name].row() | {"origin": "built-in"})
        else:
            rows.append(_installed_row(name, _installed()[name]))
    return rows


def _installed_row(name: str, entry: EntryPoint) -> dict[str, Any]:
    origin = entry.dist.name if entry.dist is not None else "installed"
    try:
        info = info_of(entry.load(), name)
    except Exception as error:  # another package's code: its failure belongs in the table, not in the way of the rest
        info = RewardInfo(name, entry.value, doc=f"can't be imported: {type(error).__name__}: {error}")
    return info.row() | {"name": name, "origin": origin}


def make(spec: "str | Mapping[str, Any] | Reward | Callable[..., Any]", **kwargs: Any) -> "Reward":
    """Make a reward.

    Args:
        spec: a name (see `available`); `"package.module:object"`; `{"name": ..., **options}`; a composite
            `{"sum": {name: weight, ...}, "normalise": "none" | "per_component"}` (see `composite`); a callable
            `(sr, ...)` or a class of such; or a made reward, which is returned.
        kwargs: the reward's own options.

    Raises:
        ValueError: for an unknown name or option, with the nearest right one.
    """
    from srgym.rewards.base import Reward

    if isinstance(spec, Reward):
        if kwargs:
            raise ValueError(f"the reward '{spec.name}' is already made; it takes no options, got {_listed(kwargs)}")
        return spec
    if isinstance(spec, Mapping):
        options = {**_plain(spec), **kwargs}
        if "sum" in options:
            from srgym.rewards.composite import make_sum

            return make_sum(**options)
        if not isinstance(options.get("name"), str):
            raise ValueError(f"expected a reward as {{'name': ...}} or {{'sum': ...}}, got the keys {_listed(options)}")
        return make(options.pop("name"), **options)
    if isinstance(spec, str):
        return _build(_find(spec), spec, kwargs)
    if callable(spec):
        return _build(spec, getattr(spec, "__name__", type(spec).__name__), kwargs)
    raise TypeError(f"expected a reward's name, mapping or callable, got {spec!r}")


def _find(name: str) -> Callable[..., Any]:
    """The function or class that a name or a dotted path stands for."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in BUILTIN:
        return _load(BUILTIN[name].path)
    if name in _installed():
        return _callable(_installed()[name].load(), name)
    if ":" in name:
        return _load(name)
    near = get_close_matches(name, available(), 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(
        f"unknown reward '{name}': {hint}expected one of {', '.join(available())}, or 'package.module:object'"
    )


def _load(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports isn't
        raise ValueError(f"reward '{path}': there is no module '{module}' to import") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"reward '{path}': module '{module}' has no '{part}'{hint}")
        found = getattr(found, part)
    return _callable(found, path)


def _callable(found: Any, name: str) -> Callable[..., Any]:
    if not callable(found):
        raise TypeError(f"reward '{name}': expected a function or a class, got {found!r}")
    return found  # type: ignore[no-any-return]


def _build(target: Callable[..., Any], name: str, options: Mapping[str, Any]) -> "Reward":
    from srgym.rewards.base import Reward

    info = info_of(target, name)
    _check_options(target, name, options)
    if inspect.isclass(target):
        made: Any = target(**options)
        return made if isinstance(made, Reward) else Reward(made, info)
    if not options:
        return Reward(target, info)
    return Reward(partial(target, **options), replace(info, needs=info.needs - set(options)))


def _check_options(target: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that the reward hasn't got; a context isn't an option of a function."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known -= set() if inspect.isclass(target) else {"sr", *CONTEXT}
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            its = f"it takes {_listed(sorted(known))}" if known else "it takes none"
            raise ValueError(f"reward '{name}' has no option '{option}': {hint}{its}")


def _plain(value: Any) -> Any:
    """Configuration nodes as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(v) for v in value]
    return value


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
