"""Contexts (data, degradation), the bandit, and its Gymnasium and TorchRL faces."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.envs.sources import Sample as Sample
    from srgym.envs.sources import Source as Source
    from srgym.envs.task import Context as Context
    from srgym.envs.task import SRTask as SRTask

_EXPORTS = {"Context": "task", "SRTask": "task", "Sample": "sources", "Source": "sources"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
