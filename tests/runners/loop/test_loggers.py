"""Logs: numbers to CSV and TensorBoard, pictures to files, trackers by one key."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from srgym.runners.loop.loggers import make_loggers
from srgym.runners.loop.progress import Display, duration


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_takes_new_columns_as_they_come(tmp_path: Path) -> None:
    (log, *_) = make_loggers("csv", tmp_path, "run", {})
    log.scalars(1, {"loss": 0.5})
    log.scalars(2, {"loss": 0.25, "reward/mean": 3.0})
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "0.5", "reward/mean": ""},
        {"step": "2", "loss": "0.25", "reward/mean": "3"},
    ]


def test_csv_and_pictures_are_always_written(tmp_path: Path) -> None:
    loggers = make_loggers([], tmp_path, "run", {})
    picture = torch.zeros(3, 4, 6)
    picture[0] = 1.0
    for log in loggers:
        log.scalars(1, {"loss": 1.0})
        log.image(7, "pictures/grid", picture)
    assert len(rows(tmp_path / "metrics.csv")) == 1
    with Image.open(tmp_path / "pictures" / "grid_000007.png") as image:
        assert image.size == (6, 4)
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_tensorboard_holds_numbers_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    settings = {"agent": {"name": "dpo", "beta": 50.0}, "runner": {"lr": 1e-3, "betas": [0.9, 0.99]}, "seed": 3}
    loggers = make_loggers("tensorboard", tmp_path, "run", settings)
    for log in loggers:
        log.scalars(3, {"reward/mean": 0.5})
        log.image(3, "pictures/grid", torch.rand(3, 8, 8))
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.5)]
    assert [event.step for event in events.Images("pictures/grid")] == [3]
    (written,) = events.Tensors("config/text_summary")
    text = written.tensor_proto.string_val[0].decode()
    assert json.loads(text.replace("\n    ", "\n")) == settings
    tags = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    read = HParamsPluginData.FromString(tags).session_start_info.hparams
    assert (read["agent.name"].string_value, read["agent.beta"].number_value) == ("dpo", 50.0)
    assert read["runner.betas"].string_value == "[0.9, 0.99]"


def test_a_tracker_by_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    tracker = SimpleNamespace(
        init=lambda **kwargs: calls.append(("init", kwargs)),
        log=lambda values, step: calls.append((step, values)),
        Image=lambda pixels: pixels.shape,
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    log = make_loggers("wandb", tmp_path, "mine", {"seed": 3})[-1]
    log.scalars(1, {"loss": 2.0})
    log.image(1, "grid", torch.rand(3, 5, 4))
    log.close()
    assert calls == [
        ("init", {"project": "srgym", "name": "mine", "config": {"seed": 3}}),
        (1, {"loss": 2.0}),
        (1, {"grid": (5, 4, 3)}),
        "finish",
    ]


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"logger=trackio needs the package trackio: pip install"):
        make_loggers("trackio", tmp_path, "run", {})


@pytest.mark.parametrize("seconds, text", [(0.4, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (7500, "2h05m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("cold start", live=False)
    display.update(5, 0.25, 10.0, {"loss": 0.5})
    display.update(6, 0.3, 12.0, {"loss": 0.4})  # too soon after the other for a line
    display.update(20, 1.0, 40.0, {"loss": 0.1})
    assert capsys.readouterr().err.splitlines() == [
        "cold start: iteration 5, 25%, 30s left  loss 0.5",
        "cold start: iteration 20, 100%, 0s left  loss 0.1",
    ]


def test_progress_bar_shows_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("reinforce", live=True)
    display.update(1, 0.5, 60.0, {"loss": 0.5})
    display.close()
    assert "1m00s left" in capsys.readouterr().err
