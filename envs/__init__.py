"""Environments: sources of contexts, degradations, the bandit, and its faces for Gymnasium and TorchRL.

`SRTask` is the core; `SuperResolutionEnv`, `SuperResolutionVectorEnv` and `SuperResolutionTorchEnv` are thin faces of
it. `srgym.envs.sources.make(name, ...)` makes a source, `srgym.envs.degradation.degrade(hr, ...)` an LR image.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.envs.gym_env import SuperResolutionEnv as SuperResolutionEnv
    from srgym.envs.task import Context as Context
    from srgym.envs.task import SRTask as SRTask
    from srgym.envs.torchrl_env import SuperResolutionTorchEnv as SuperResolutionTorchEnv
    from srgym.envs.vector_env import SuperResolutionVectorEnv as SuperResolutionVectorEnv

_EXPORTS = {
    "Context": "task",
    "SRTask": "task",
    "SuperResolutionEnv": "gym_env",
    "SuperResolutionTorchEnv": "torchrl_env",
    "SuperResolutionVectorEnv": "vector_env",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
