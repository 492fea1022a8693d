"""Reports: documents with tables, figures and pictures, as self-contained HTML and as its Markdown twin.

`write_report(run_dir, section)` writes the one that a run's settings ask for; `write_oars_report(run_dir)` reports the
stages of a run, `write_compare_report(folder)` a comparison, and `write_evaluation_report(folder)` an evaluation.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgym.runners.report.compare import write_compare_report as write_compare_report
    from srgym.runners.report.evaluation import write_evaluation_report as write_evaluation_report
    from srgym.runners.report.kinds import write_report as write_report
    from srgym.runners.report.oars import write_oars_report as write_oars_report

_EXPORTS = {
    "write_compare_report": "compare",
    "write_evaluation_report": "evaluation",
    "write_oars_report": "oars",
    "write_report": "kinds",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(sorted(_EXPORTS))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
