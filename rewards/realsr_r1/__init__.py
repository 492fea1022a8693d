"""RealSR-R1's rewards: of a reasoned text's format, degradation and understanding, and of the generated image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.rewards.realsr_r1.degradation import degradation_reward as degradation_reward
    from srgym.rewards.realsr_r1.degradation import describe as describe
    from srgym.rewards.realsr_r1.format import format_reward as format_reward
    from srgym.rewards.realsr_r1.generation import Judge as Judge
    from srgym.rewards.realsr_r1.reward import RealSRR1 as RealSRR1
    from srgym.rewards.realsr_r1.understanding import understanding_reward as understanding_reward

_EXPORTS = {
    "Judge": "generation",
    "RealSRR1": "reward",
    "degradation_reward": "degradation",
    "describe": "degradation",
    "format_reward": "format",
    "understanding_reward": "understanding",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
