"""`srgym arena` from the command line: from images to pairs, and mistakes at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srgym.files import to_png, write_whole
from srgym.runners.arena.study import open_study
from srgym.runners.commands.cli import main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """lr/ and hr/ of three images, and another method's images of them, named as it names them."""
    chance = torch.Generator().manual_seed(0)
    for name in ("anna", "ben", "cleo"):
        hr = torch.rand(3, 32, 32, generator=chance)
        lr = torch.nn.functional.avg_pool2d(hr[None], 4)[0]
        for part, image in (("lr", lr), ("hr", hr), ("theirs", hr.flip(2))):
            write_whole(tmp_path / part / f"{name}.png", to_png(image))
    return tmp_path


def _make(folders: Path, *more: str) -> int:
    env = ["env=paired_folders", f"env.lr={folders / 'lr'}", f"env.hr={folders / 'hr'}"]
    methods = f"methods={{bicubic: bicubic, theirs: {folders / 'theirs'}}}"
    return main(["arena", "make", f"out={folders / 'study'}", methods, *env, *more])


def test_from_folders_to_a_study_and_its_report(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _make(folders, "checks=1", "repeats=0") == 0
    assert "3 contexts, 2 methods, 4 trials for each rater" in capsys.readouterr().out
    study = open_study(folders / "study")
    assert study.contexts == ("anna/0", "ben/0", "cleo/0") and study.has_hr
    assert study.image("theirs", 1).read_bytes() == (folders / "theirs" / "ben.png").read_bytes()
    vote = {"kind": "vote", "shown": ["theirs", "bicubic"], "choice": "theirs", "seconds": 1}
    rows = [{**vote, "rater": rater, "id": name} for rater in ("r", "s", "t") for name in study.contexts]
    (study.folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["arena", "report", str(study.folder), "metrics=[psnr_y]"]) == 0
    assert main(["arena", "export", str(study.folder), "pairs", f"out={folders / 'pairs.parquet'}"]) == 0
    assert "3 pairs" in capsys.readouterr().out
    assert _make(folders) == 2
    assert "holds a study already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sevre"], "did you mean 'serve'? srgym arena expects one of make, serve, report, export, plan, got 'sevre'"),
        (["serve"], "srgym arena serve expects the study's folder first"),
        (["serve", "nowhere"], "expected a study in nowhere, found none"),
        (["serve", "nowhere", "prot=80"], "unknown setting 'prot'; did you mean 'port'?"),
        (["serve", "nowhere", "token=secret"], "unknown setting 'token'"),
        (["report", "nowhere", "metrics=3"], "metrics: expected"),
        (["export", "nowhere", "pears"], "expects pairs or annotations next, got 'pears'"),
        (["export", "nowhere", "pairs"], "out: expected a text, got None"),
        (["make", "out=x", "methods={a: bicubic}"], "expected at least 2 methods, as many as are shown at once, got 1"),
        (["make", "out=x", "methds={a: bicubic}"], "unknown setting 'methds'; did you mean 'methods'?"),
        (["make", "out=x", "methods={a: bicubic, b: bicubic}", "lr=middle"], "lr: expected"),
        (["make", "out=x", "methods={a: bicubic, b: bicubic}", "welcome=no.txt"], "expected a text file, found none"),
        (["plan", "share=1.5"], "share: expected at most 1"),
        (["plan", "raters=[0]"], "raters: expected at least 1"),
    ],
)
def test_mistakes_get_a_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["arena", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_lacks_an_image_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "theirs" / "ben.png").unlink()
    assert _make(folders) == 2
    assert "expected an image of every context" in (told := capsys.readouterr().err) and "ben/0" in told
    assert not (folders / "study").exists()


def test_images_that_can_be_told_by_their_size_are_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_whole(folders / "theirs" / "ben.png", to_png(torch.zeros(3, 16, 16)))
    assert _make(folders) == 2
    assert "expected images of one size of 'ben/0'" in capsys.readouterr().err
    assert not (folders / "study" / "material").exists()


def test_others_need_a_token_and_a_second_server_is_refused(folders: Path) -> None:
    assert _make(folders) == 0
    study, told = folders / "study", {}
    command = [sys.executable, "-m", "srgym", "arena", "serve", str(study), "host=0.0.0.0", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        told["first"] = process.stdout.readline()
        assert "/?token=" in told["first"] and len(told["first"].split("token=")[1].split()[0]) >= 24
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and f"{study} is in use by process {process.pid}" in second.stderr
        weak = {**os.environ, "SRGYM_ARENA_TOKEN": "short"}
        refused = subprocess.run(command, capture_output=True, text=True, check=False, env=weak)
        assert refused.returncode == 2 and "expected at least 12 letters" in refused.stderr
    finally:
        process.kill()
        process.communicate()
