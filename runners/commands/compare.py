"""srgym compare [agent=A,B,...] [seed=0,1,2] [key=value ...]: put algorithms side by side, with intervals.

  srgym compare agent=nft,flow_grpo,dpo,refl seed=0,1,2 budget.images=2000 reward=ssim_y out=runs/four
  srgym compare experiment=nft_vs_grpo               the committed comparison
  srgym compare experiment=hacking_demo              the gain in quality alone, beside COMPASS
  srgym compare agent=nft,mine.agents:RWR settings.nft.lr=2e-3 settings.RWR.temperature=0.3
  srgym compare agent=nft,dpo search='{lr: [3e-4, 1e-3, 3e-3]}'    as many settings of each tried on validation
  srgym compare experiment=compare_small executor=slurm slurm.slurm_partition=gpu

Every key of training may be given; one with several values makes a run for each. Its own settings and their defaults:
configs/compare.yaml. Runs are processes of one thread, as many at a time as there are cores or GPUs, or jobs of SLURM.
Stopped (Ctrl-C) and started again, it goes on where it was; runs that are done aren't run again. A run that fails
doesn't stop the others; the exit code is then 1.

Writes into out=: report.html and report.md, results.csv and results.parquet (one row a number), curves.csv and
curves.parquet (the evaluations during the runs), and cells/, the runs themselves.
"""

import signal
from types import FrameType

from srgym.runners.commands.arguments import take_flag

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    show = take_flag(arguments, "--print")
    from srgym.runners.compare.plan import make_plan

    plan = make_plan(arguments)
    if show:
        for cell in (*plan.starts, *plan.trial_cells, *plan.cells):
            print(f"{cell.name}: srgym train {' '.join(cell.request['overrides'] or ['(nothing)'])}")
        return 0
    from srgym.runners.compare.comparison import compare

    # A polite kill ends the runs as Ctrl-C does: each saves what it has.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    page, outcomes = compare(plan)
    print(f"done: {page}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
