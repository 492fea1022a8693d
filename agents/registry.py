"""Agents by name."""

from typing import TYPE_CHECKING, Any

from srgym.registry import Registry, Spec, class_of

if TYPE_CHECKING:
    from srgym.agents.base import Agent
    from srgym.policies.base import Policy
    from srgym.rewards.base import Reward

__all__ = ["AGENTS", "agent_class", "available", "make"]

AGENTS: "Registry[type[Agent]]" = Registry(
    "agent",
    "a subclass of srgym.agents.Agent",
    class_of("srgym.agents.base:Agent"),
    "srgym.agents",
    {
        "awm": "srgym.agents.awm:AWM",
        "codec": "srgym.agents.codec:Codec",
        "cold_start": "srgym.agents.cold_start:ColdStart",
        "crd": "srgym.agents.crd:CRD",
        "dgpo": "srgym.agents.dgpo:DGPO",
        "diffusion_nft": "srgym.agents.diffusion_nft:DiffusionNFT",
        "dpo": "srgym.agents.dpo:DPO",
        "flow_dppo": "srgym.agents.flow_dppo:FlowDPPO",
        "flow_grpo": "srgym.agents.flow_grpo:FlowGRPO",
        "gdpo_sr": "srgym.agents.gdpo_sr:GDPOSR",
        "mapo": "srgym.agents.mapo:MaPO",
        "neighbor_grpo": "srgym.agents.neighbor_grpo:NeighborGRPO",
        "refl": "srgym.agents.refl:REFL",
        "token_cold_start": "srgym.agents.token_cold_start:TokenColdStart",
        "token_grpo": "srgym.agents.token_grpo:TokenGRPO",
    },
    aliases={"nft": "diffusion_nft"},
    supplied=("policy", "reward", "provides"),
)

available = AGENTS.names
agent_class = AGENTS.find


def make(name: Spec, policy: "Policy", reward: "Reward | None" = None, **hyperparameters: Any) -> "Agent":
    """An agent by its name (see `available`), `module:Class` or `{"name": ..., **hyperparameters}`.

    Args:
        policy: what it trains.
        reward: what it trains it for; agents that learn from pairs alone need none.

    Raises:
        Incompatible: for parts that can't work together, naming both.
        ValueError: for an unknown agent, or a hyperparameter that it hasn't got, with the nearest right one.
    """
    agent: Agent = AGENTS.make(name, policy, reward, **hyperparameters)
    return agent
