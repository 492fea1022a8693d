"""Rewards by name: the built-in table, `register_reward`, entry points of other packages, dotted paths, composites.

Names are known without torch; a reward's module is imported when it is made, or described in a listing.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from srgym.errors import Refusal
from srgym.registry import Registry, Spec, plain, quoted
from srgym.rewards.builtin import BUILTIN
from srgym.rewards.info import CONTEXT, RewardInfo, describe, takes_sr

if TYPE_CHECKING:
    from srgym.rewards.base import Reward

__all__ = ["REWARDS", "available", "info_of", "listing", "make", "register_reward"]

_Target = TypeVar("_Target", bound=Callable[..., Any])


class _Rewards(Registry[Callable[..., Any]]):
    def options(self, maker: Callable[..., Any]) -> dict[str, Any] | None:
        """A function's contexts come with every call, so they are no options of it."""
        known = super().options(maker)
        if known is None or inspect.isclass(maker):
            return known
        return {key: default for key, default in known.items() if key not in ("sr", *CONTEXT)}


REWARDS = _Rewards(
    "reward",
    "a function whose first argument is 'sr', or a class whose instances are called so",
    lambda maker: callable(maker) and takes_sr(maker),
    "srgym.rewards",
    BUILTIN,
)

available = REWARDS.names


def register_reward(
    name: str,
    *,
    differentiable: bool = False,
    group: bool = False,
    range: tuple[float, float] = (-math.inf, math.inf),
    direction: str = "higher",
    licence: str = "",
    weights: str = "none",
    variant: str = "",
    unit: str = "",
    colour_space: str = "RGB",
    purpose: str = "",
    kin: Iterable[str] = (),
) -> Callable[[_Target], _Target]:
    """Make a reward known by name. Decorates a function `(sr, ...)`, or a class whose instances are called so.

    The argument names are the contract: `def mine(sr, hr)` needs ground truth, `def mine(sr, lr, text=None)` needs the
    LR image and uses a text where there is one. It returns [B] scores (higher is better), or a mapping of named ones.

    Args:
        differentiable: whether gradients reach `sr`.
        group: whether it must see a context's whole group; it then takes `group`, int64 [B].
        range: the closed interval of the scores.
        direction: "higher", or "none" for a control that follows no quality.
        licence, weights: told in the listing; "not stated" where another package's reward has no licence.
        variant: what its numbers must be quoted with, such as a training set.
        unit: of its numbers. colour_space: what of the image it looks at.
        purpose: "fidelity" or "perceptual", where it is a judge of one of these.
        kin: the rewards and data sets that it was trained on or labels, so that no report takes it for independent.

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
            purpose=purpose,
            kin=frozenset(kin),
        )
        holder = BUILTIN.get(name)
        if name in REWARDS.registered:
            holder = info_of(REWARDS.registered[name], name).path
        # The same path again is a module that was loaded twice or a notebook cell that was run again.
        if holder is not None and holder != info.path:
            raise Refusal(f"the reward name '{name}' is taken by {holder}; {info.path} needs another")
        target.__reward__ = info  # type: ignore[attr-defined]
        REWARDS.registered[name] = target
        return target

    return register


def info_of(target: Callable[..., Any], name: str) -> RewardInfo:
    """What a reward declared when it was registered, or what its signature says."""
    held = getattr(target, "__reward__", None)
    return held if isinstance(held, RewardInfo) else describe(target, name)


def listing() -> list[dict[str, Any]]:
    """One row a reward, as plain values: the fields of `RewardInfo`, and `origin`.

    Their modules are imported for it. Another package's that can't be has its failure as `doc`.
    """
    return [_info(name).row() | {"name": name, "origin": REWARDS.origin(name)} for name in available()]


def _info(name: str) -> RewardInfo:
    try:
        return info_of(REWARDS.find(name), name)
    except Exception as error:  # another package's code: its failure belongs in the table, not in the way of the rest
        if name not in REWARDS.installed:
            raise
        path = REWARDS.installed[name].value
        return RewardInfo(name, path, doc=f"can't be imported: {type(error).__name__}: {error}")


def make(spec: "Spec | Reward | Callable[..., Any]", **options: Any) -> "Reward":
    """Make a reward.

    Args:
        spec: a name (see `available`); `"package.module:object"`; `{"name": ..., **options}`; a composite
            `{"sum": {name: weight, ...}, "normalise": "none" | "per_component"}` (see `composite`); a callable
            `(sr, ...)` or a class of such; or a made reward, which is returned.
        options: the reward's own.

    Raises:
        ValueError: for an unknown name or option, with the nearest right one; for a path to something else.
    """
    from srgym.rewards.base import Reward

    if isinstance(spec, Reward):
        if options:
            raise Refusal(f"the reward '{spec.name}' is already made; it takes no options, got {quoted(options)}")
        return spec
    if isinstance(spec, Mapping) and "sum" in spec:
        from srgym.rewards.composite import make_sum

        return make_sum(**plain(spec), **options)
    if callable(spec):
        return _build(spec, getattr(spec, "__name__", type(spec).__name__), options)
    name, options = REWARDS.read(spec, options)
    return _build(REWARDS.find(name), name, options)


def _build(target: Callable[..., Any], name: str, options: Mapping[str, Any]) -> "Reward":
    from srgym.rewards.base import Reward

    info = info_of(target, name)
    REWARDS.check(target, name, options)
    if inspect.isclass(target):
        made: Any = target(**options)
        return made if isinstance(made, Reward) else Reward(made, info)
    if not options:
        return Reward(target, info)
    return Reward(partial(target, **options), replace(info, needs=info.needs - set(options)))
