"""Where a run's numbers and pictures go: a CSV file always, TensorBoard by default, wandb or trackio by one key."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgym.errors import Refusal
from srgym.files import naming, write_whole
from srgym.settings import leaves

# What TensorBoard sets beside the hyperparameters.
_RESULTS = ("eval/reward", "reward/mean", "loss")

__all__ = [
    "LOGGERS", "CSVLogger", "Logger", "PictureLogger", "TensorBoardLogger", "TrackerLogger", "check_loggers",
    "make_loggers",
]  # fmt: skip


class Logger(ABC):
    """Takes numbers and pictures, each at a step of the run."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers."""

    def image(self, step: int, name: str, image: Tensor) -> None:  # noqa: B027 - a logger needn't take pictures
        """Log a picture, float [3, H, W] in [0, 1]."""

    def close(self) -> None:  # noqa: B027 - nor hold anything open
        """Write what is left."""


class CSVLogger(Logger):
    """One row a step; a number that first comes up later gets a column then.

    Args:
        path: the file. What it holds of steps up to `after` stays, so that a resumed run's file has no step twice.
        after: the step that a resumed run goes on from; -1 of one that starts.
    """

    def __init__(self, path: Path, after: int = -1) -> None:
        self._path = path
        self._columns, rows = _read(path)
        kept = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= after]
        self._rewrite(kept)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        new = [name for name in values if name not in self._columns]
        if new:
            _, rows = _read(self._path)
            self._columns = [*self._columns, *new]
            self._rewrite(rows)
        row = {"step": step, **{name: f"{value:.8g}" for name, value in values.items()}}
        with naming(self._path), self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, file.getvalue().encode())


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A log's columns and rows; a last row that a crash cut short is left out."""
    if not path.is_file():
        return ["step"], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ["step"])
        rows = [row for row in reader if None not in row and None not in row.values()]
    return columns, rows


class PictureLogger(Logger):
    """Every picture as a PNG file: `folder/NAME_STEP.png`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers are the other loggers'."""

    def image(self, step: int, name: str, image: Tensor) -> None:
        from PIL import Image

        self._folder.mkdir(exist_ok=True)
        Image.fromarray(_pixels(image)).save(self._folder / f"{name.rpartition('/')[2]}_{step:06d}.png")


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """Float [3, H, W] in [0, 1] to uint8 [H, W, 3]."""
    array: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return array


class TensorBoardLogger(Logger):
    """TensorBoard event files in a folder; a resumed run hides the steps after the one it goes on from.

    The settings of `config` go in as text, and those of the agent, the runner and the LoRA as hyperparameters.
    """

    def __init__(self, folder: Path, after: int = -1, config: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        self._folder, self._writer = folder, cast(Any, SummaryWriter(str(folder), purge_step=after + 1))
        if config is None:
            return
        written = json.dumps(config, indent=2, default=str)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in written.splitlines()), after)
        sections = {section: config.get(section) for section in ("agent", "runner", "lora")}
        shown = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in leaves(sections)}
        for summary in hparams(shown, dict.fromkeys(_RESULTS)):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with naming(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Tensor) -> None:
        with naming(self._folder):
            self._writer.add_image(name, image.clamp(0, 1), step)

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()


class TrackerLogger(Logger):
    """wandb or trackio, which share one interface: `init`, `log`, `Image`, `finish`.

    Raises:
        ValueError: where the package isn't installed.
    """

    def __init__(self, package: str, run: str, config: Mapping[str, Any]) -> None:
        from importlib import import_module

        try:
            self._package: Any = import_module(package)
        except ImportError as error:
            raise Refusal(f'logger={package} needs the package {package}: pip install "srgym[track]"') from error
        self._package.init(project="srgym", name=run, config=dict(config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._package.log(dict(values), step=step)

    def image(self, step: int, name: str, image: Tensor) -> None:
        self._package.log({name: self._package.Image(_pixels(image))}, step=step)

    def close(self) -> None:
        self._package.finish()


LOGGERS = ("csv", "tensorboard", "wandb", "trackio")


def check_loggers(names: Iterable[str]) -> None:
    """Refuse a name that isn't in `LOGGERS`."""
    for name in names:
        if name not in LOGGERS:
            raise Refusal(f"logger is one of {', '.join(LOGGERS)} or a list of them, got '{name}'")


def make_loggers(
    names: str | Iterable[str], folder: Path, run: str, config: Mapping[str, Any], after: int = -1
) -> list[Logger]:
    """The loggers of one stage: `metrics.csv` and `pictures/` in `folder` always, and what `names` asks for beside.

    Args:
        run: what the trackers call it. config: the stage's settings, which they keep.
        after: the step that a resumed run goes on from; -1 of one that starts.

    Raises:
        ValueError: for a name that isn't in `LOGGERS`.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    check_loggers(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [CSVLogger(folder / "metrics.csv", after), PictureLogger(folder / "pictures")]
    for name in wanted:
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder / "tensorboard", after, config))
        elif name != "csv":
            loggers.append(TrackerLogger(name, run, config))
    return loggers
