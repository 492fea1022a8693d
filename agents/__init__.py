"""Agents: what turns contexts and scored rollouts into a loss on the policy.

`make(name, policy, reward, **hyperparameters)` makes one by name. One file an algorithm, whose mathematics is a pure
function (`nft_loss`, ...); what they share (groups, timesteps, averages, rows) lives once, beside them.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.agents.awm import AWM as AWM
    from srgym.agents.awm import awm_loss as awm_loss
    from srgym.agents.base import Agent as Agent
    from srgym.agents.base import Need as Need
    from srgym.agents.codec import Codec as Codec
    from srgym.agents.cold_start import ColdStart as ColdStart
    from srgym.agents.crd import CRD as CRD
    from srgym.agents.crd import crd_loss as crd_loss
    from srgym.agents.dgpo import DGPO as DGPO
    from srgym.agents.dgpo import dgpo_weight as dgpo_weight
    from srgym.agents.diffusion_nft import DiffusionNFT as DiffusionNFT
    from srgym.agents.diffusion_nft import nft_loss as nft_loss
    from srgym.agents.dpo import DPO as DPO
    from srgym.agents.dpo import dpo_loss as dpo_loss
    from srgym.agents.flow import FlowAgent as FlowAgent
    from srgym.agents.flow_dppo import FlowDPPO as FlowDPPO
    from srgym.agents.flow_dppo import dppo_loss as dppo_loss
    from srgym.agents.flow_grpo import FlowGRPO as FlowGRPO
    from srgym.agents.flow_grpo import grpo_loss as grpo_loss
    from srgym.agents.forward import ForwardAgent as ForwardAgent
    from srgym.agents.gdpo_sr import GDPOSR as GDPOSR
    from srgym.agents.gdpo_sr import gdpo_loss as gdpo_loss
    from srgym.agents.grouped import GroupedAgent as GroupedAgent
    from srgym.agents.groups import Combine as Combine
    from srgym.agents.groups import Comparison as Comparison
    from srgym.agents.groups import GroupFilter as GroupFilter
    from srgym.agents.groups import group_advantage as group_advantage
    from srgym.agents.mapo import MaPO as MaPO
    from srgym.agents.mapo import mapo_margin as mapo_margin
    from srgym.agents.neighbor_grpo import NeighborGRPO as NeighborGRPO
    from srgym.agents.paired import PairAgent as PairAgent
    from srgym.agents.ratio import RatioAgent as RatioAgent
    from srgym.agents.refl import REFL as REFL
    from srgym.agents.refl import refl_loss as refl_loss
    from srgym.agents.registry import agent_class as agent_class
    from srgym.agents.registry import available as available
    from srgym.agents.registry import make as make
    from srgym.agents.token_cold_start import TokenColdStart as TokenColdStart
    from srgym.agents.token_grpo import TokenGRPO as TokenGRPO
    from srgym.agents.trajectory import TrajectoryAgent as TrajectoryAgent

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "awm": ["AWM", "awm_loss"],
        "base": ["Agent", "Need"],
        "codec": ["Codec"],
        "cold_start": ["ColdStart"],
        "crd": ["CRD", "crd_loss"],
        "dgpo": ["DGPO", "dgpo_weight"],
        "diffusion_nft": ["DiffusionNFT", "nft_loss"],
        "dpo": ["DPO", "dpo_loss"],
        "flow": ["FlowAgent"],
        "flow_dppo": ["FlowDPPO", "dppo_loss"],
        "flow_grpo": ["FlowGRPO", "grpo_loss"],
        "forward": ["ForwardAgent"],
        "gdpo_sr": ["GDPOSR", "gdpo_loss"],
        "grouped": ["GroupedAgent"],
        "groups": ["Combine", "Comparison", "GroupFilter", "group_advantage"],
        "mapo": ["MaPO", "mapo_margin"],
        "neighbor_grpo": ["NeighborGRPO"],
        "paired": ["PairAgent"],
        "ratio": ["RatioAgent"],
        "refl": ["REFL", "refl_loss"],
        "registry": ["agent_class", "available", "make"],
        "token_cold_start": ["TokenColdStart"],
        "token_grpo": ["TokenGRPO"],
        "trajectory": ["TrajectoryAgent"],
    },
)
