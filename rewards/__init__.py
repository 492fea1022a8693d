"""Rewards: functions of images (and text) to scores, by name, by dotted path, or from another package.

`make(spec)` builds one, `register_reward(name)` adds one, `available()` and `listing()` tell which there are.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.rewards.base import Incompatible as Incompatible
    from srgym.rewards.base import Reward as Reward
    from srgym.rewards.base import RewardOutput as RewardOutput
    from srgym.rewards.registry import available as available
    from srgym.rewards.registry import listing as listing
    from srgym.rewards.registry import make as make
    from srgym.rewards.registry import register_reward as register_reward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Incompatible", "Reward", "RewardOutput"],
        "registry": ["available", "listing", "make", "register_reward"],
    },
)
