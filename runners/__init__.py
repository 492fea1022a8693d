"""The loop that trains, its stages, checkpoints and logs, the reports, and the command line.

`make_runner(**overrides)` builds a run from Python as `srgym train key=value` does from the shell.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.runners.build import make_runner as make_runner
    from srgym.runners.runner import Runner as Runner
    from srgym.runners.settings import RunnerSettings as RunnerSettings
    from srgym.runners.stages import Run as Run

_EXPORTS = {"Run": "stages", "Runner": "runner", "RunnerSettings": "settings", "make_runner": "build"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
