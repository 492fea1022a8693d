"""Environments: sources of contexts, degradations, the bandit, and its faces for Gymnasium and TorchRL.

`SRTask` is the core; `SuperResolutionEnv`, `SuperResolutionVectorEnv` and `SuperResolutionTorchEnv` are thin faces of
it. `make_source(name, ...)` makes a source of contexts, `degrade(hr, ...)` an LR image.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.envs.degradation import degrade as degrade
    from srgym.envs.gym_env import SuperResolutionEnv as SuperResolutionEnv
    from srgym.envs.sources import Sample as Sample
    from srgym.envs.sources import Source as Source
    from srgym.envs.sources import make_source as make_source
    from srgym.envs.task import Context as Context
    from srgym.envs.task import SRTask as SRTask
    from srgym.envs.torchrl_env import SuperResolutionTorchEnv as SuperResolutionTorchEnv
    from srgym.envs.vector_env import SuperResolutionVectorEnv as SuperResolutionVectorEnv

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "degradation": ["degrade"],
        "gym_env": ["SuperResolutionEnv"],
        "sources": ["Sample", "Source", "make_source"],
        "task": ["Context", "SRTask"],
        "torchrl_env": ["SuperResolutionTorchEnv"],
        "vector_env": ["SuperResolutionVectorEnv"],
    },
)
