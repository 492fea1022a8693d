"""Agents: what turns contexts and scored rollouts into a loss on the policy.

One file an algorithm; what they share (groups, timesteps, averages, rows) lives once, beside them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.agents.base import Agent as Agent
    from srgym.agents.base import Need as Need
    from srgym.agents.cold_start import ColdStart as ColdStart
    from srgym.agents.diffusion_nft import DiffusionNFT as DiffusionNFT
    from srgym.agents.dpo import DPO as DPO
    from srgym.agents.flow_grpo import FlowGRPO as FlowGRPO
    from srgym.agents.groups import Combine as Combine
    from srgym.agents.groups import GroupFilter as GroupFilter
    from srgym.agents.refl import REFL as REFL

AGENTS = {
    "cold_start": "ColdStart",
    "diffusion_nft": "DiffusionNFT",
    "flow_grpo": "FlowGRPO",
    "dpo": "DPO",
    "refl": "REFL",
}

_EXPORTS = {
    "Agent": "base",
    "Need": "base",
    "Combine": "groups",
    "GroupFilter": "groups",
    **{class_name: module for module, class_name in AGENTS.items()},
}


def available() -> list[str]:
    """The names that `agent_class` knows."""
    return sorted(AGENTS)


def agent_class(name: str) -> "type[Agent]":
    """The class of an agent by its name.

    Raises:
        ValueError: for a name that isn't one, with the nearest that is.
    """
    if name not in AGENTS:
        from difflib import get_close_matches

        near = get_close_matches(name, AGENTS, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown agent '{name}': expected one of {', '.join(available())}{hint}")
    found: type[Agent] = getattr(import_module(f"{__name__}.{name}"), AGENTS[name])
    return found


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
