"""COMPASS, the reward of OARS: its formula, its scorers, and the labels that a scorer is trained on."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.rewards.compass.formula import FORMS as FORMS
    from srgym.rewards.compass.formula import MODES as MODES
    from srgym.rewards.compass.formula import Compass as Compass
    from srgym.rewards.compass.formula import compass as compass
    from srgym.rewards.compass.formula import gated_gain as gated_gain
    from srgym.rewards.compass.formula import group_median as group_median
    from srgym.rewards.compass.formula import linear as linear
    from srgym.rewards.compass.formula import lowest as lowest

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "formula": ["FORMS", "MODES", "Compass", "compass", "gated_gain", "group_median", "linear", "lowest"],
    },
)
