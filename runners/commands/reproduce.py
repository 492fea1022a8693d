"""srgym reproduce [claim=A,B,...] [tier=quick] [photos=FOLDER] [key=value ...]: the papers' claims, with verdicts.

  srgym reproduce                                    all claims, in at most 45 minutes of two idle cores
  srgym reproduce claim=oars_table5,finpercep_ccl tier=full photos=FOLDER
  srgym reproduce --list                             the claims
  srgym reproduce --print claim=oars_table5          what would run, and for how long
  srgym reproduce --page ...                         the page of what has ended so far, nothing run
  srgym reproduce claim=oars_table5 policy=sd3 policy.path=MODEL env=hr_folder env.path=HR env.size=512 runner.lr=3e-4

Its own settings and their defaults: configs/reproduce.yaml; every other key goes to all runs, as in `srgym train`. The
claims: configs/claims/. Arms run as cells of `srgym compare` do, those of equal settings once; whether training could
tell two rewards apart at all is asked beside it. Stopped or killed, and started again, it goes on where it was.

Writes into out=: report.html and report.md, results.csv and results.parquet, and cells/, the runs themselves.
"""

import signal
from types import FrameType

from srgym.runners.commands.arguments import take_flag

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    listing, show, page_alone = (take_flag(arguments, flag) for flag in ("--list", "--print", "--page"))
    if listing:
        return _list()
    from srgym.runners.reproduce.plan import make_plan

    plan = make_plan(arguments)
    from srgym.runners.reproduce.reproduction import estimate_text, failures, reproduce

    if show:
        for planned in plan.cells.values():
            asked = planned.cell.request
            said = f"srgym train {' '.join(asked['overrides'])}" if "overrides" in asked else asked["probe"]
            print(f"{planned.cell.name} ({planned.arm}, seed {planned.seed}): {said}")
        print(estimate_text(plan))
        return 0
    if page_alone:
        from srgym.runners.reproduce.page import write_page

        print(f"done: {write_page(plan, failures(plan))}")
        return 0
    # A polite kill ends the runs as Ctrl-C does: each saves what it has.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    page, outcomes = reproduce(plan)
    print(f"done: {page}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _list() -> int:
    from srgym.runners.reproduce.claims import claim_names, read_claim, shared_arms

    arms = shared_arms()
    for name in claim_names():
        claim, _ = read_claim(name, arms)
        print(f"{name}: {claim.paper}, {claim.source}. {claim.title}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
