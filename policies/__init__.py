"""Policies: what turns a low-resolution image into super-resolved ones, and the adapters that are trained.

`make(name, **kwargs)` builds a policy by name, `load(folder)` brings back a saved one, `available()` lists the names.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.policies.base import Policy as Policy
    from srgym.policies.flow import FlowPolicy as FlowPolicy
    from srgym.policies.flow import Sampling as Sampling
    from srgym.policies.noise import Noise as Noise
    from srgym.policies.noise import derive_seeds as derive_seeds
    from srgym.policies.registry import available as available
    from srgym.policies.registry import load as load
    from srgym.policies.registry import make as make
    from srgym.policies.registry import policy_folder as policy_folder

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Policy"],
        "flow": ["FlowPolicy", "Sampling"],
        "noise": ["Noise", "derive_seeds"],
        "registry": ["available", "load", "make", "policy_folder"],
    },
)
