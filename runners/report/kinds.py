"""Which report a run asks for: its settings' `report` section, `kind` and that report's own options."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "write_report"]

KINDS = {"oars": "srgym.runners.report.oars_report:write_oars_report"}


def write_report(run_dir: str | Path, section: Mapping[str, Any]) -> Path:
    """Write the report that a run's `report` section asks for, and return its path.

    Raises:
        ValueError: for an unknown kind or option.
    """
    options = dict(section)
    kind = str(options.pop("kind", ""))
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"report.kind is one of {', '.join(KINDS)}, got '{kind}'{hint}")
    module, _, name = KINDS[kind].partition(":")
    write: Callable[..., Path] = getattr(import_module(module), name)
    known = set(write.__annotations__) - {"run_dir", "return"}
    for option in options:
        if option not in known:
            raise ValueError(f"report.{option} is no option of the {kind} report: expected one of {sorted(known)}")
    return write(run_dir, **options)
