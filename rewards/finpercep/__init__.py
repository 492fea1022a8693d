"""FinPercep-RM: a reward model that says how good an image is, and where it is bad."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.rewards.finpercep.model import FinPercepRM as FinPercepRM
    from srgym.rewards.finpercep.model import load as load
    from srgym.rewards.finpercep.reward import FinPercep as FinPercep
    from srgym.rewards.finpercep.train import train as train

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model": ["FinPercepRM", "load"],
        "reward": ["FinPercep"],
        "train": ["train"],
    },
)
