"""One cell of a reproduction, a process of its own: `python -m srgym.runners.reproduce.cell FOLDER`.

Its `cell.json` asks for a cell of a comparison, or for a probe, which trains nothing (see `probes`).
"""

import sys
import time
from pathlib import Path

from srgym.files import locked, write_json
from srgym.runners.compare.cell import main, run_cell
from srgym.runners.compare.executor import DONE
from srgym.runners.measure.evaluation import save_evaluation
from srgym.runners.reproduce.probes import PROBES, Place
from srgym.runners.run.build import use_threads
from srgym.runners.run.config import compose, resolve
from srgym.sealed import read_object

__all__ = ["run"]


def run(folder: Path) -> None:
    """Do what `cell.json` in the folder asks: see `run_cell`, and of a probe

    - `probe`: its kind and options. `settings`: the overrides that say where.
    - `metrics`, `limit`, `steps`: see `Place`.
    """
    request = read_object(folder / "cell.json", {})
    if request.get("probe") is None:
        run_cell(folder)
        return
    started = time.monotonic()
    use_threads(1)
    sections = resolve(*compose(request["settings"])).stages[-1].sections
    place = Place(folder, sections["env"], sections["policy"], request["metrics"], request["limit"], request["steps"])
    options = dict(request["probe"])
    with locked(folder):
        frame = PROBES[options.pop("kind")](place, **options)
        save_evaluation(frame, {"probe": request["probe"], "env": sections["env"]}, folder)
        spent = {"seconds": time.monotonic() - started, "cpu": time.process_time()}
        write_json(folder / DONE, {"request": request, "cost": {}, **spent})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], run))
