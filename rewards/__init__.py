"""Rewards: functions of images (and text) to scores, by name, by dotted path, or from another package.

`make(spec)` builds one, `register_reward(name)` adds one, `available()` and `listing()` tell which there are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.rewards.base import Incompatible as Incompatible
    from srgym.rewards.base import Reward as Reward
    from srgym.rewards.base import RewardOutput as RewardOutput
    from srgym.rewards.registry import available as available
    from srgym.rewards.registry import listing as listing
    from srgym.rewards.registry import make as make
    from srgym.rewards.registry import register_reward as register_reward

_EXPORTS = {
    "Incompatible": "base",
    "Reward": "base",
    "RewardOutput": "base",
    "available": "registry",
    "listing": "registry",
    "make": "registry",
    "register_reward": "registry",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
