"""Agents by name."""

import inspect
from collections.abc import Collection
from difflib import get_close_matches
from pkgutil import resolve_name

from srgym.agents.base import Agent

__all__ = ["AGENTS", "agent_class", "available", "check_options", "hyperparameters"]

AGENTS = {
    "cold_start": "srgym.agents.cold_start:ColdStart",
    "diffusion_nft": "srgym.agents.diffusion_nft:DiffusionNFT",
    "dpo": "srgym.agents.dpo:DPO",
    "flow_grpo": "srgym.agents.flow_grpo:FlowGRPO",
    "refl": "srgym.agents.refl:REFL",
}


def available() -> list[str]:
    """The names that `agent_class` knows."""
    return sorted(AGENTS)


def agent_class(name: str) -> type[Agent]:
    """The class of an agent by its name (see `available`), or by `module:Class`.

    Raises:
        ValueError: for a name that isn't one, with the nearest that is; for a path to something else than an agent.
    """
    path = AGENTS.get(name, name)
    if ":" not in path:
        near = get_close_matches(name, AGENTS, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown agent '{name}': expected one of {', '.join(available())}, or module:Class{hint}")
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected a subclass of srgym.agents.Agent at '{path}', got none: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ValueError(f"expected a subclass of srgym.agents.Agent at '{path}', got {found!r}")
    return found


def hyperparameters(kind: type[object]) -> set[str]:
    """The keyword arguments that an agent's constructor takes, those of its base classes where it passes them on."""
    known: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters.values()
        known |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break  # what it doesn't know it doesn't pass on
    return known - {"provides"}


def check_options(name: str, options: Collection[str]) -> None:
    """Refuse a hyperparameter that the agent of this name hasn't got.

    Raises:
        ValueError: naming it, the nearest that there is, and all that there are; for an unknown agent.
    """
    known = hyperparameters(agent_class(name))
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"agent '{name}' has no option '{option}': {hint}it takes {', '.join(sorted(known))}")
