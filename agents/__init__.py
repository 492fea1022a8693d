"""Agents: what turns contexts and scored rollouts into a loss on the policy.

One file an algorithm; what they share (groups, timesteps, averages, rows) lives once, beside them.
"""

from typing import TYPE_CHECKING

import lazy_loader

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
    from srgym.agents.registry import agent_class as agent_class
    from srgym.agents.registry import available as available

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Agent", "Need"],
        "cold_start": ["ColdStart"],
        "diffusion_nft": ["DiffusionNFT"],
        "dpo": ["DPO"],
        "flow_grpo": ["FlowGRPO"],
        "groups": ["Combine", "GroupFilter"],
        "refl": ["REFL"],
        "registry": ["agent_class", "available"],
    },
)
