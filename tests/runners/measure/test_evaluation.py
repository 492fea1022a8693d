"""Evaluation: what is measured, on what, and how folders and the papers' figures come into it."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srgym.envs import SRTask
from srgym.envs.sources import Sample, Source
from srgym.rewards import Incompatible
from srgym.rewards.fidelity import psnr_chroma
from srgym.runners.commands.cli import main
from srgym.runners.measure.evaluation import (
    COLUMNS,
    draw,
    evaluate,
    read_evaluation,
    save_evaluation,
    split_id,
    spread_indices,
)
from srgym.runners.measure.methods import Bicubic, Samples, as_method, baselines
from srgym.runners.measure.metrics import make_metrics
from srgym.runners.measure.published import datasets, published_tables


@dataclass
class Contexts(Source):
    """Smooth pictures, the crops of one photograph alike."""

    scale, size = 4, None

    names: tuple[str, ...] = ("cat/0", "cat/1", "dog/0", "dog/1")
    provides: frozenset[str] = frozenset({"lr", "hr"})
    sizes: tuple[int, ...] = (16, 16, 16, 16)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        side = self.sizes[index]
        x = torch.linspace(0, 1, side)
        hr = torch.stack([x.repeat(side, 1), x.repeat(side, 1).T, torch.full((side, side), index / 10)])
        lr = torch.nn.functional.avg_pool2d(hr, 4)
        return Sample(self.names[index], lr, hr)


def upsample(lr: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(lr, scale_factor=4, mode="nearest")


def test_rows_say_method_photograph_crop_metric_value_validity_and_seed():
    frame = evaluate({"nearest": upsample}, Contexts(), ["psnr_y", "ssim_y"])
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 4 * 2
    assert set(frame["photograph"]) == {"cat", "dog"}
    assert frame["valid"].all()
    hr, sr = Contexts()[2].hr, upsample(Contexts()[2].lr[None])[0]
    luma = torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255
    mse = ((luma * (sr - hr)).sum(0) ** 2).mean()
    row = frame[(frame.photograph == "dog") & (frame.crop == "0") & (frame.metric == "psnr_y")]
    assert row["value"].item() == pytest.approx(-10 * math.log10(mse), abs=1e-3)


def test_results_depend_on_neither_the_batch_nor_other_sizes_beside(tiny_policy):
    mixed = Contexts(sizes=(16, 32, 32, 16))
    methods = {"policy": tiny_policy, "bicubic": Bicubic(4)}
    one, many = (evaluate(methods, mixed, ["psnr_y"], steps=2, seeds=(0, 1), batch=b) for b in (1, 8))
    assert one["value"].to_numpy() == pytest.approx(many["value"].to_numpy(), abs=1e-4)
    drawn = one[one.method == "policy"]
    assert set(drawn["seed"]) == {0, 1}
    assert not np.allclose(drawn[drawn.seed == 0]["value"], drawn[drawn.seed == 1]["value"])
    assert set(one[one.method == "bicubic"]["seed"]) == {0}  # nothing to draw again


def test_components_and_invalid_scores_have_their_rows():
    def partly(sr, hr):
        total = (sr - hr).abs().mean((1, 2, 3))
        return {"total": torch.where(torch.arange(len(sr)) == 1, torch.nan, total), "half": total / 2}

    frame = evaluate({"nearest": upsample}, Contexts(), {"mine": partly})
    assert set(frame["metric"]) == {"mine", "mine.half"}
    totals = frame[frame.metric == "mine"]
    assert list(totals["valid"]) == [True, False, True, True]
    assert totals["value"].isna().sum() == 1
    assert frame[frame.metric == "mine.half"]["valid"].all()


def test_a_metric_that_the_contexts_cannot_feed_is_refused():
    with pytest.raises(Incompatible, match="metric 'psnr_y' needs hr, which the source 'Contexts' doesn't give"):
        evaluate({"nearest": upsample}, Contexts(provides=frozenset({"lr"})), ["psnr_y"])
    with pytest.raises(ValueError, match="two metrics are labelled 'psnr_y'"):
        make_metrics(["psnr_y", {"name": "psnr_y"}])
    with pytest.raises(TypeError, match="expected a policy, or a function from LR to SR"):
        as_method(3)


def test_chroma_psnr_sees_colour_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    hr = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, generator=generator)
    assert psnr_chroma((hr + 0.1).clamp(0, 1), hr) == pytest.approx(100.0)  # grey moved: capped at 100 dB
    red = hr.clone()
    red[:, 0] += 0.1
    # Cb moves by -.299/1.772 of it, Cr by .701/1.402.
    mse = ((0.1 * 0.299 / 1.772) ** 2 + (0.1 * 0.701 / 1.402) ** 2) / 2
    assert psnr_chroma(red, hr).tolist() == pytest.approx([-10 * math.log10(mse)] * 2, abs=1e-3)


def test_the_baselines_of_a_policy(tiny_policy):
    found = baselines(tiny_policy, steps=6)
    assert list(found) == ["bicubic", "mean prediction", "1 step", "3 steps"]
    assert list(baselines(tiny_policy, steps=2)) == ["bicubic", "mean prediction", "1 step"]
    lr = Contexts()[0].lr[None]
    context = SimpleNamespace(lr=lr, index=torch.tensor([0]), prompt=None)
    expected = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert torch.allclose(found["bicubic"](context, 0).sr, expected)
    assert torch.equal(found["mean prediction"](context, 0).sr, tiny_policy.predict_mean(lr))


def test_a_sample_is_drawn_under_the_adapter_that_is_asked_for(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    with torch.no_grad():
        for _, parameter in tiny_policy.trainable_parameters():
            parameter.add_(0.3)
    context = SimpleNamespace(lr=Contexts()[0].lr[None], index=torch.tensor([0]), prompt=None)
    averaged, learner, base = (
        Samples(tiny_policy, 2, adapter=name)(context, 0).sr for name in ("ema", "default", None)
    )
    assert torch.allclose(averaged, base)  # the average hasn't followed yet
    assert not torch.allclose(learner, base)


def test_the_colour_fix_is_applied_and_recorded(tiny_policy):
    context = SimpleNamespace(lr=Contexts()[0].lr[None], index=torch.tensor([0]), prompt=None)
    fixed = Samples(tiny_policy, 2, colour_fix="adain")
    wanted = Bicubic(4)(context, 0).sr.mean((2, 3))
    assert torch.allclose(fixed(context, 0).sr.mean((2, 3)), wanted, atol=0.02)
    assert fixed.record["colour_fix"] == "adain"
    with pytest.raises(ValueError, match="colour_fix is one of none, adain, wavelet"):
        Samples(tiny_policy, colour_fix="sepia")


def test_ids_and_even_spreads():
    assert split_id("coffee.png/12") == ("coffee.png", "12")
    assert split_id("0014") == ("0014", "0")
    assert split_id("night/street") == ("night/street", "0")
    assert spread_indices(10, 4) == [0, 3, 6, 9]
    assert spread_indices(3, None) == [0, 1, 2]
    assert spread_indices(3, 1) == [0]


def test_an_evaluation_comes_back_from_disk(tmp_path: Path):
    frame = evaluate({"nearest": upsample}, Contexts(), ["psnr_y"])
    save_evaluation(frame, {"metrics": {}}, tmp_path)
    back, record = read_evaluation(tmp_path)
    pd.testing.assert_frame_equal(back, frame)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv", dtype={"crop": str}), frame)
    assert record == {"metrics": {}}
    with pytest.raises(FileNotFoundError, match="expected an evaluation"):
        read_evaluation(tmp_path / "nowhere")


def test_drawn_pictures_hold_every_method_between_lr_and_hr():
    (picture,) = draw(SRTask(Contexts()), {"nearest": as_method(upsample), "bicubic": Bicubic(4)}, [1])
    assert list(picture) == ["id", "LR", "nearest", "bicubic", "HR"]
    assert picture["nearest"].shape == (3, 16, 16)


# Folders, through the command itself


def folder_of(path: Path, images: dict[str, torch.Tensor]) -> Path:
    path.mkdir(parents=True)
    for name, image in images.items():
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        Image.fromarray(pixels).save(path / f"{name}.png")
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    truth = {f"im{i}": Contexts()[i].hr for i in range(3)}
    made = {name: (image * 0.9).clamp(0, 1) for name, image in truth.items()}
    return folder_of(tmp_path / "made", made), folder_of(tmp_path / "truth", truth)


def test_a_folder_of_images_is_scored_against_the_truth(folders, tmp_path: Path):
    made, truth = folders
    out = tmp_path / "out"
    assert main(["evaluate", f"pred={made}", f"hr={truth}", "metrics=[psnr_y,ssim_y]", f"out={out}", "threads=1"]) == 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"made"}
    read = {name: np.asarray(Image.open(folder / "im1.png"), dtype=float) / 255 for name, folder in
            (("sr", made), ("hr", truth))}  # fmt: skip
    luma = (read["sr"] - read["hr"]) @ np.array([65.481, 128.553, 24.966]) / 255
    value = next(float(r["value"]) for r in rows if r["photograph"] == "im1" and r["metric"] == "psnr_y")
    assert value == pytest.approx(-10 * math.log10((luma**2).mean()), abs=1e-3)
    record = json.loads((out / "results.json").read_text())
    assert record["metrics"]["psnr_y"]["colour_space"].startswith("Y of BT.601")
    assert record["methods"]["made"]["colour_fix"] == "unknown"
    assert (out / "report.html").is_file()
    assert (out / "report.md").is_file()


def test_folders_that_do_not_match_are_named(folders, tmp_path: Path, capsys):
    made, truth = folders
    (made / "im2.png").rename(made / "other.png")
    assert main(["evaluate", f"pred={made}", f"hr={truth}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert "other.png in pred (made)" in said
    assert "im2.png in hr" in said


def test_sizes_that_do_not_match_are_named(folders, tmp_path: Path, capsys):
    made, truth = folders
    Image.new("RGB", (20, 16)).save(made / "im0.png")
    assert main(["evaluate", f"pred={made}", f"hr={truth}", f"out={tmp_path / 'out'}"]) == 2
    assert "in the size of" in (said := capsys.readouterr().err)
    assert "16x16, got 20x16" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pred=X", "metrix=[psnr_y]"], "did you mean 'metrics'?"),
        (["metrics=[psnr_y]"], "expected either policy=FOLDER or pred=FOLDER"),
        (["policy=nowhere"], "policy=nowhere: expected the folder of a policy or of a run"),
        (["pred=X", "dataset=RealSr"], "did you mean 'RealSR'?"),
        (["pred=X", "metrics=[psnr]", "hr=X"], "unknown reward 'psnr'"),
        (["pred=X", "env.scale=4"], "brings its own contexts"),
    ],
)
def test_what_cannot_be_evaluated_gets_a_sentence(arguments: list[str], said: str, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


# The papers' figures


def test_published_tables_are_one_paper_each():
    tables = published_tables("RealSR")
    assert {table.source for table in tables} >= {"OARS, table 9", "RealSR-R1, table 1", "FinPercep-RM, table 1"}
    by_source = {table.source: table for table in tables}
    assert by_source["OARS, table 9"].rows["OSEDiff"]["psnr"] == "23.07"
    assert by_source["RealSR-R1, table 1"].rows["OSEDiff"]["psnr"] == "25.15"
    assert "RealLQ250" in datasets()
    with pytest.raises(ValueError, match="no published figures on 'Set5'"):
        published_tables("Set5")


def test_published_figures_stand_beside_ours_under_their_source(folders, tmp_path: Path):
    made, truth = folders
    out = tmp_path / "out"
    assert main(["evaluate", f"pred={{ours: {made}}}", f"hr={truth}", "dataset=DIV2K", f"out={out}", "threads=1"]) == 0
    text = (out / "report.md").read_text()
    assert "| ours | this evaluation |" in text.replace("**", "")
    assert "published (OARS, table 9)" in text
    for block in text.split("\n\n"):
        assert sum(f"published ({paper}" in block for paper in ("OARS", "RealSR-R1", "FinPercep-RM")) <= 1


class Corner:
    """A reward that finds the upper left quarter bad."""

    def __call__(self, sr):
        return sr.mean((1, 2, 3))

    def map(self, sr):
        fault = torch.zeros_like(sr[:, :1])
        fault[:, :, :8, :8] = 1
        return fault


def test_a_reward_with_a_map_adds_each_methods_faults_and_the_report_explains_them():
    from srgym import rewards
    from srgym.envs import sources
    from srgym.runners.measure.evaluation import draw, faulty, mapping_reward
    from srgym.runners.measure.metrics import make_metrics
    from srgym.runners.report.panels import FAULTS, make_panels

    task = SRTask(sources.make("photographs", split="validation", size=32))
    upscale = {"nearest": as_method(lambda lr: lr.repeat_interleave(4, 2).repeat_interleave(4, 3))}
    (picture,) = draw(task, upscale, [0], reward=rewards.make(Corner))
    assert list(picture) == ["id", "LR", "nearest", faulty("nearest"), "HR"]
    shown = picture[faulty("nearest")]
    assert shown.shape[1] == 32 and shown.shape[2] > 32
    assert (shown[0, :8, :8] > 0.85).all() and (shown[0, 8:, :32] == shown[2, 8:, :32]).all()
    assert FAULTS in make_panels([picture], "Crops.").caption
    assert FAULTS not in make_panels(draw(task, upscale, [0]), "Crops.").caption
    assert mapping_reward(make_metrics(["psnr_y"])) is None
