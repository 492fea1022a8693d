"""The loop that trains, its stages, checkpoints and logs, the reports, and the command line.

`make_runner(**overrides)` builds a run from Python as `srgym train key=value` does from the shell.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.runners.loop.collect import collect as collect
    from srgym.runners.loop.runner import Runner as Runner
    from srgym.runners.loop.settings import RunnerSettings as RunnerSettings
    from srgym.runners.measure.evaluation import evaluate as evaluate
    from srgym.runners.run.stages import Run as Run
    from srgym.runners.run.stages import make_runner as make_runner

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loop.collect": ["collect"],
        "loop.runner": ["Runner"],
        "loop.settings": ["RunnerSettings"],
        "measure.evaluation": ["evaluate"],
        "run.stages": ["Run", "make_runner"],
    },
)
