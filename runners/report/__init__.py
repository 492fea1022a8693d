"""Reports: documents with tables, figures and pictures, as self-contained HTML and as its Markdown twin.

`write_report(run_dir, section)` writes the one that a run's settings ask for; `write_oars_report(run_dir)` reports the
stages of a run, `write_compare_report(folder)` a comparison, and `write_evaluation_report(folder)` an evaluation.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from srgym.runners.report.comparison_report import write_compare_report as write_compare_report
    from srgym.runners.report.evaluation_report import write_evaluation_report as write_evaluation_report
    from srgym.runners.report.oars_report import check_report as check_report
    from srgym.runners.report.oars_report import write_oars_report as write_oars_report
    from srgym.runners.report.oars_report import write_report as write_report

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparison_report": ["write_compare_report"],
        "evaluation_report": ["write_evaluation_report"],
        "oars_report": ["check_report", "write_oars_report", "write_report"],
    },
)
