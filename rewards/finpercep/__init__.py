"""FinPercep-RM: a reward model that says how good an image is, and where it is bad."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.rewards.finpercep.model import FinPercepRM as FinPercepRM
    from srgym.rewards.finpercep.model import load as load
    from srgym.rewards.finpercep.reward import FinPercep as FinPercep
    from srgym.rewards.finpercep.train import train as train

_EXPORTS = {"FinPercep": "reward", "FinPercepRM": "model", "load": "model", "train": "train"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
