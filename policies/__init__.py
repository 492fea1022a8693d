"""Flow policies: what turns a low-resolution image into super-resolved ones, and the adapters that are trained.

`make(name, **kwargs)` builds a policy by name, `load(folder)` brings back a saved one, `available()` lists the names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.policies.base import FlowPolicy as FlowPolicy
    from srgym.policies.base import Sampling as Sampling
    from srgym.policies.noise import Noise as Noise
    from srgym.policies.noise import derive_seeds as derive_seeds
    from srgym.policies.registry import available as available
    from srgym.policies.registry import load as load
    from srgym.policies.registry import make as make

_EXPORTS = {
    "FlowPolicy": "base",
    "Sampling": "base",
    "Noise": "noise",
    "derive_seeds": "noise",
    "available": "registry",
    "load": "registry",
    "make": "registry",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
