"""RealSR-R1's rewards: of a reasoned text's format, degradation and understanding, and of the generated image."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.rewards.realsr_r1.degradation import degradation_reward as degradation_reward
    from srgym.rewards.realsr_r1.degradation import describe as describe
    from srgym.rewards.realsr_r1.format import format_reward as format_reward
    from srgym.rewards.realsr_r1.generation import Judge as Judge
    from srgym.rewards.realsr_r1.reward import RealSRR1 as RealSRR1
    from srgym.rewards.realsr_r1.understanding import understanding_reward as understanding_reward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "degradation": ["degradation_reward", "describe"],
        "format": ["format_reward"],
        "generation": ["Judge"],
        "reward": ["RealSRR1"],
        "understanding": ["understanding_reward"],
    },
)
