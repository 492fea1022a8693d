"""srgym compare [agent=A,B,...] [seed=0,1,2] [key=value ...]: put algorithms side by side, with intervals.

  srgym compare agent=nft,flow_grpo,dpo,refl seed=0,1,2 budget.images=2000 reward=ssim_y out=runs/four
  srgym compare experiment=nft_vs_grpo               the committed comparison
  srgym compare experiment=hacking_demo              the gain in quality alone, beside COMPASS

Every key of training may be given; one with several values makes a run for each. Its own settings and their defaults:
configs/compare.yaml. Runs are processes of one thread, as many at a time as there are cores. Stopped (Ctrl-C) and
started again, it goes on where it was; runs that are done aren't run again.

Writes into out=: report.html and report.md, results.csv and results.parquet (one row a number), curves.csv and
curves.parquet (the evaluations during the runs), and cells/, the runs themselves.
"""

import signal
from types import FrameType

from srgym.runners.commands.arguments import take_flag

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    show = take_flag(arguments, "--print")
    from srgym.runners.compare.plan import make_plan

    plan = make_plan(arguments)
    if show:
        for cell in (plan.start, *plan.cells):
            print(f"{cell.name}: srgym train {' '.join(cell.request['overrides'] or ['(nothing)'])}")
        return 0
    from srgym.runners.compare.comparison import compare

    # A polite kill ends the runs as Ctrl-C does: each saves what it has.
    signal.signal(signal.SIGTERM, _interrupt)
    page, outcomes = compare(plan)
    print(f"done: {page}")
    return 1 if any(outcome.error and outcome.cell.role == "agent" for outcome in outcomes) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
