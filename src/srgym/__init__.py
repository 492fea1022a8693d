"""srgym: reinforcement-learning post-training of image super-resolution.

Super-resolution is framed as a contextual bandit: the observation is a low-resolution image, the action a
super-resolved image, the reward whatever function of the two a researcher plugs in. Importing this package is cheap
and registers ``srgym/SuperResolution-v0`` with Gymnasium; everything heavy is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srgym.envs.registration import register_envs

if TYPE_CHECKING:
    from srgym.rewards.base import Incompatible as Incompatible
    from srgym.runners import make_runner as make_runner

__version__ = "0.1.0"

_EXPORTS = {"Incompatible": "srgym.rewards.base", "make_runner": "srgym.runners"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'srgym' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


register_envs()
