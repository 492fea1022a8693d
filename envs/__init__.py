"""Environments: sources of contexts, degradations, the bandit, and its faces for Gymnasium and TorchRL.

`SRTask` is the core; `SuperResolutionEnv`, `SuperResolutionVectorEnv` and `SuperResolutionTorchEnv` are thin faces of
it. `srgym.envs.sources.make(name, ...)` makes a source, `srgym.envs.degradation.degrade(hr, ...)` an LR image.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.envs.gym_env import SuperResolutionEnv as SuperResolutionEnv
    from srgym.envs.task import Context as Context
    from srgym.envs.task import SRTask as SRTask
    from srgym.envs.torchrl_env import SuperResolutionTorchEnv as SuperResolutionTorchEnv
    from srgym.envs.vector_env import SuperResolutionVectorEnv as SuperResolutionVectorEnv

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "gym_env": ["SuperResolutionEnv"],
        "task": ["Context", "SRTask"],
        "torchrl_env": ["SuperResolutionTorchEnv"],
        "vector_env": ["SuperResolutionVectorEnv"],
    },
)
