"""A judge's training in its run's folder: claimed by its settings, resumed where it stopped, exported when done."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from srgym.errors import Refusal
from srgym.files import locked, write_json
from srgym.rewards.serving.server import model_folder
from srgym.runners.judges.exported import as_json, export, read_judge
from srgym.runners.judges.material import Material
from srgym.runners.judges.ranking import Readable, ranking_trainer
from srgym.runners.judges.sft import sft_trainer
from srgym.runners.judges.tiny import write_tiny
from srgym.runners.judges.trainer import JsonLines, TrainSettings, processor
from srgym.sealed import read_object

__all__ = ["TINY", "train"]

TINY = "tiny"


def train(
    settings: TrainSettings, material: Material, run: Path, command: Sequence[str], data: Path | None = None
) -> dict[str, Any]:
    """Train a judge on a set's material and export it to `run`; goes on where an earlier call was stopped.

    Args:
        material: to learn from. data: the set's folder, for the report. command: for the model card.

    `run`/training holds the trainer's checkpoints until it is done, and `log.jsonl`, a line a step.

    Returns:
        What `judge.json` records.

    Raises:
        Refusal: if the folder holds a run of other settings or of another set, or TRL isn't installed.
    """
    from accelerate import PartialState

    for package in ("trl", "datasets"):
        if find_spec(package) is None:
            raise Refusal(f'training a judge needs the package {package}: pip install "srgym[judge]"')
    state = PartialState()
    with locked(run) if state.is_main_process else nullcontext():
        if state.is_main_process:
            _claim(run, settings, material)
        state.wait_for_everyone()
        if (run / "judge.json").is_file():
            return read_judge(run)
        started = time.monotonic()
        start = _start(settings, run, state)
        trained = _fit(settings, material, start, run / "training", state)
        if state.is_main_process:
            record = {
                "recipe": settings.recipe, "start": settings.model, "set": material.described(),
                "settings": as_json(asdict(settings)), "command": " ".join(command),
                "seconds": round(time.monotonic() - started, 1), "data": str(data) if data else None,
            }  # fmt: skip
            export(trained, start, processor(settings, start), run, record)
            for path in (run / "training").iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        state.wait_for_everyone()
    return read_judge(run)


def _claim(run: Path, settings: TrainSettings, material: Material) -> None:
    now = as_json({"settings": asdict(settings), "set": material.described()})
    written = run / "training" / "run.json"
    if not written.is_file():
        write_json(written, now)
        return
    before = read_object(written, {"settings": dict, "set": dict})
    if before["set"] != now["set"]:
        raise Refusal(
            f"{run} holds a judge of another set, or of this one before its labels changed: name another out="
        )
    other = [key for key, value in now["settings"].items() if before["settings"].get(key) != value]
    if other:
        raise Refusal(
            f"{run} holds a run of other settings ({other[0]} was {before['settings'].get(other[0])!r}): name "
            "another folder with out=RUN"
        )


def _start(settings: TrainSettings, run: Path, state: Any) -> Path:
    """The folder of the model to start from."""
    if settings.model != TINY:
        return model_folder(settings.model)
    folder = run / "training" / TINY
    with state.main_process_first():
        if state.is_main_process and not (folder / "config.json").is_file():
            write_tiny(folder, pixels=settings.max_pixels, seed=settings.seed)
    return folder


def _fit(settings: TrainSettings, material: Material, start: Path, folder: Path, state: Any) -> Path:
    """Train, from the last whole checkpoint on; the folder that the trainer saved."""
    if settings.recipe != "refreward":
        rows = material.examples(settings.recipe, settings.labels)
        return _run(lambda at: sft_trainer(settings, start, rows, at), folder, "", state)
    preferences, steps = material.preferences(settings.labels), settings.ranking.warm_up
    if steps:
        first = replace(settings, steps=steps, lr=settings.ranking.warm_up_lr)
        readable, base = Readable(preferences, steps * first.batch, settings.seed), start
        start = _run(lambda at: sft_trainer(first, base, readable, at), folder, "warm_up_", state)
    return _run(lambda at: ranking_trainer(settings, start, preferences, at), folder, "", state)


def _run(make: Callable[[Path], Any], folder: Path, part: str, state: Any) -> Path:
    """One training of a run, unless it is done; checkpoints and the final weights lie in folders named after it."""
    final, working = folder / f"{part}final", folder / f"{part}checkpoints"
    if (final / "config.json").is_file() or (final / "adapter_config.json").is_file():
        return final
    trainer = make(working)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(JsonLines(folder / f"{part}log.jsonl"))
    trainer.train(resume_from_checkpoint=_last_whole(working))
    draft = folder / f".{part}final"
    trainer.save_model(str(draft))
    state.wait_for_everyone()
    if state.is_main_process:
        draft.rename(final)
    state.wait_for_everyone()
    return final


def _last_whole(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: the trainer's state is the last of its files."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda path: int(path.name.partition("-")[2]))) if whole else None
