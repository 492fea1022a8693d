"""Reports: self-contained pages and their Markdown twins, verdicts that follow the numbers, the main job's report."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srgym.runners.measure.statistics import Band, Interval
from srgym.runners.report import write_report
from srgym.runners.report.document import Callout, Document, Figures, Heading, Table, Text
from srgym.runners.report.numbers import amount, interval_text, signed
from srgym.runners.report.oars_report import oars_document
from srgym.runners.report.panels import make_panels, strip
from srgym.runners.report.plots import curves, forest, plane
from srgym.runners.report.run_folder import read_log, read_run
from srgym.runners.report.summary import difference, level
from srgym.runners.report.tables import wins_table
from srgym.runners.report.verdicts import alerts, claim
from srgym.runners.report.writing import write

PARTS = (
    "compass",
    "compass.fidelity",
    "compass.q_lr",
    "compass.q_sr",
    "psnr_y",
    "ssim_y",
    "lite0_features",
    "ssimulacra2",
)
START = {
    "compass": 2.6,
    "compass.fidelity": 0.8,
    "compass.q_lr": 2.0,
    "compass.q_sr": 2.9,
    "psnr_y": 25.0,
    "ssim_y": 0.7,
    "lite0_features": 0.5,
    "ssimulacra2": 0.6,
}


def scores(
    gains: dict[str, dict[str, float]], photographs: int = 4, crops: int = 6, noise: float = 0.02
) -> pd.DataFrame:
    """An evaluation in which every method differs from SFT by its gains, with noise."""
    generator = np.random.default_rng(0)
    spread = {name: generator.normal(0, 0.3, (photographs, crops)) for name in PARTS}
    rows = []
    for method, gain in gains.items():
        for metric in PARTS:
            values = (
                START[metric]
                + spread[metric]
                + gain.get(metric, 0.0)
                + generator.normal(0, noise, spread[metric].shape)
            )
            for p in range(photographs):
                for c in range(crops):
                    rows.append((method, f"photo{p}", str(c), metric, values[p, c], True, 0))
    return pd.DataFrame(rows, columns=["method", "photograph", "crop", "metric", "value", "valid", "seed"])


JUDGES = {"fidelity": ["psnr_y"], "perceptual": ["lite0_features"]}
GOOD = {
    "bicubic": {"psnr_y": -0.5, "compass": -0.4}, "base": {"compass": -0.2}, "cold_start": {},
    "full_reference": {"compass": 0.1},
    "oars": {"compass": 0.2, "compass.q_sr": 0.3, "psnr_y": 0.1, "lite0_features": 0.05},
    "random": {"compass": -0.05}, "random_oars": {"compass": 0.01},
}  # fmt: skip


def run_folder(path: Path) -> Path:
    """The folder of a finished run: cold start, two stages of RL, the transplant, and the same with a random reward."""
    sections = {"env": {"name": "photographs", "scale": 4}, "policy": {"name": "compact"}, "runner": {"eval_steps": 6}}
    compass = {"name": "compass", "mode": "non_reference"}
    full = {"name": "compass", "mode": "full_reference", "fidelity": "structure_texture"}
    nft = {"name": "diffusion_nft"}
    merged = {"kind": "merge", "start_from": "cold_start", "agent": nft, "reward": compass}
    stages = {
        "cold_start": {"start_from": "base", "agent": {"name": "cold_start"}, "reward": {"name": "psnr_y"}},
        "full_reference": {"start_from": "base", "agent": nft, "reward": full},
        "non_reference": {"start_from": "full_reference", "agent": nft, "reward": compass},
        "oars": {**merged, "lora_from": "non_reference"},
        "random": {"start_from": "base", "agent": nft, "reward": {"name": "random"}},
        "random_oars": {**merged, "lora_from": "random"},
    }
    config = {"name": "oars", "seed": 3, "tree": {"name": "oars"},
              "stages": {name: {"kind": "train", **sections, **own} for name, own in stages.items()}}  # fmt: skip
    cost = {"seconds": 72.4, "images": 1536, "updates": 40, "forwards": 54321, "flops": 3.4e13}
    record = {"stages": dict.fromkeys(stages, cost), "policy": "stages/oars/policy", "complete": True,
              "command": ["srgym", "train", "experiment=oars"],
              "made_with": {"torch": "2.13.0", "date": "2025-11-02"}}  # fmt: skip
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "run.json").write_text(json.dumps(record))
    for name in ("full_reference", "non_reference"):
        (path / "stages" / name).mkdir(parents=True)
        (path / "stages" / name / "metrics.csv").write_text(
            "step,reward/mean,reward/fidelity,cost/images,eval/reward\n0,,,,2.5\n1,2.51,0.80,24,\n2,2.55,0.79,48,2.6\n2,,,,2.7\n"
        )
    return path


RECORD: dict[str, Any] = {
    "metrics": {name: {"reward": name, "unit": "dB" if name == "psnr_y" else "", "variant": "v", "colour_space": "RGB",
                       "weights": "none"} for name in ("compass", "psnr_y", "ssim_y", "lite0_features", "ssimulacra2")},
    "methods": {"oars": {"kind": "samples", "steps": 6, "colour_fix": "none"}},
}  # fmt: skip


# Numbers and statistics of frames


def test_numbers_are_written_to_the_digit_their_interval_supports():
    assert interval_text(Interval(27.4123, 27.0211, 27.8034, 4)) == "27.41 [27.02, 27.80]"
    assert interval_text(Interval(0.81234, 0.81201, 0.81267, 4)) == "0.81234 [0.81201, 0.81267]"
    assert signed(Interval(0.02, -0.01, 0.05, 4)) == "+0.020 [−0.010, +0.050]"
    assert interval_text(Interval(1.5, float("nan"), float("nan"), 1)) == "1.500"
    assert interval_text(Interval(float("nan"), float("nan"), float("nan"), 0)) == "-"
    assert [amount(v) for v in (950, 12345, 4.5e6, 3.4e13)] == ["950", "12.3 k", "4.5 M", "34 T"]


def test_levels_and_differences_are_paired_by_crop_and_averaged_over_noise():
    frame = scores({"a": {}, "b": {"psnr_y": 0.5}}, noise=0.0)
    assert level(frame, "a", "psnr_y").units == 4
    gain = difference(frame, "b", "a", "psnr_y")
    assert gain.value == pytest.approx(0.5)
    assert gain.low != gain.low  # all crops gain the same: nothing to make an interval of
    again = frame.assign(seed=1, value=frame["value"] + 1.0)
    both = pd.concat([frame, again])
    assert level(both, "a", "psnr_y").value == pytest.approx(level(frame, "a", "psnr_y").value + 0.5)
    assert difference(frame, "b", "nobody", "psnr_y").units == 0


# Verdicts


def test_the_claim_holds_when_every_part_of_it_does():
    holds, said = claim(scores(GOOD), "compass", "oars", "cold_start", "random_oars", ["compass.fidelity"], JUDGES)
    assert holds
    assert [callout.kind for callout in said] == ["good"] * 6
    assert "The claim holds on these 4 photographs" in said[0].text


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"oars": {}}, "oars over cold_start"),
        ({"random_oars": {"compass": 0.25}}, "oars over the random-reward control random_oars"),
        ({"oars": {"compass": 0.2, "compass.fidelity": -0.1}}, "**compass.fidelity**"),
        ({"oars": {"compass": 0.2, "lite0_features": -0.1}}, "**lite0_features**"),
    ],
)
def test_the_claim_fails_plainly_with_any_part_of_it(changes: dict[str, dict[str, float]], failing: str):
    holds, said = claim(
        scores({**GOOD, **changes}), "compass", "oars", "cold_start", "random_oars", ["compass.fidelity"], JUDGES
    )
    assert not holds
    assert "The claim does not hold" in said[0].text
    bad = [callout.text for callout in said[1:] if callout.kind == "bad"]
    assert any(failing in text for text in bad)


def test_a_loss_that_every_judge_sees_supports_no_claim_though_none_is_significant():
    gains = {**GOOD, "oars": {"compass": 0.2, "psnr_y": 0.1, "lite0_features": -0.045}}
    frame = scores(gains, noise=0.05)
    change = difference(frame, "oars", "cold_start", "lite0_features")
    assert change.value < 0 and not change.below_zero
    holds, said = claim(frame, "compass", "oars", "cold_start", "random_oars", [], JUDGES)
    assert not holds
    bad = [callout.text for callout in said[1:] if callout.kind == "bad"]
    assert len(bad) == 1 and bad[0].startswith("Every independent perceptual judge sees oars below cold_start")


def test_without_a_control_nothing_is_claimed():
    holds, said = claim(scores(GOOD), "compass", "oars", "cold_start", None, [], JUDGES)
    assert not holds
    assert any("no run with a random reward" in callout.text for callout in said)


@pytest.mark.parametrize("kind", ["fidelity", "perceptual"])
def test_without_an_independent_judge_of_either_kind_nothing_is_claimed(kind: str):
    holds, said = claim(scores(GOOD), "compass", "oars", "cold_start", "random_oars", [], {**JUDGES, kind: []})
    assert not holds
    assert any(f"No {kind} metric was measured that is independent" in callout.text for callout in said)


def test_one_photograph_supports_no_claim():
    holds, said = claim(scores(GOOD, photographs=1), "compass", "oars", "cold_start", "random_oars", [], JUDGES)
    assert not holds
    assert "there is no interval from 1 photograph" in said[1].text


def test_an_alert_when_the_reward_rises_and_a_held_out_metric_falls():
    frame = scores({"start": {}, "gamed": {"compass": 0.3, "psnr_y": -0.4}, "fine": {"compass": 0.3, "psnr_y": 0.1}})
    (alert,) = alerts(frame, ["gamed", "fine"], "start", "compass", ["psnr_y", "ssim_y"])
    assert alert.kind == "warning"
    assert alert.text.startswith("**gamed**")
    assert "psnr_y" in alert.text


# Pages


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements close."""

    VOID = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sample_document() -> Document:
    band = Band(np.arange(5.0), np.arange(5.0), np.arange(5.0) - 1, np.arange(5.0) + 1, 3)
    picture = {"id": "cat/0", "LR": torch.rand(3, 8, 8), "SR <1>": torch.rand(3, 32, 32), "HR": torch.rand(3, 32, 32)}
    document = Document("A <report> & more", "Of `4` crops.")
    document.add(
        Heading("Claim"), Callout("bad", "It **does not**."), Text("a < b & `code`"),
        Table(["method", "psnr (dB)"], [["a|b", "1.0 [0.5, 1.5]"], ["ours", "**2.0**"]], "A caption.", frozenset({1})),
        Figures([curves({"nft": band}, "images scored", "reward", "Learning")]), make_panels([picture], "Full size."),
    )  # fmt: skip
    return document


def test_the_page_needs_nothing_from_outside(tmp_path: Path):
    text = write(sample_document(), tmp_path).read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert "A &lt;report&gt; &amp; more" in text
    assert "SR &lt;1&gt;" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    for address in page.addresses:
        Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).verify()


def test_the_markdown_twin_shows_the_same(tmp_path: Path):
    write(sample_document(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "> **Does not hold.** It **does not**." in text
    assert "| a\\|b | 1.0 [0.5, 1.5] |" in text
    assert "| **ours** |" in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    assert all((tmp_path / path).is_file() for path in pictures)


def test_how_often_a_method_is_better_is_counted_by_photograph_and_by_image():
    rows = [
        (method, photograph, str(crop), metric, value, True, seed)
        for photograph, gains in {"cat": (1.0, 1.0, -1.0), "dog": (-3.0, 1.0), "owl": (2.0,)}.items()
        for crop, gain in enumerate(gains)
        for seed in (0, 1)
        for metric in ("psnr_y", "lpips.distance")
        for method, value in (("bicubic", 0.0), ("ours", gain + (0.1 if seed else -0.1)))
    ]
    frame = pd.DataFrame(rows, columns=["method", "photograph", "crop", "metric", "value", "valid", "seed"])
    table = wins_table(frame, ["bicubic", "ours", "none"], "bicubic", ["psnr_y", "lpips.distance"])
    assert list(table.rows) == [["ours", "2 of 3, 67%", "1 of 3, 33%"], ["none", "—", "—"]]


def test_a_file_name_is_shown_as_it_is(tmp_path: Path):
    """Names come from folders of strangers: neither page takes them for marks of its own."""
    name = "a|b<script>alert(1)</script>`x`[y](javascript:z)*\n# heading"
    panels = make_panels([{"id": name, "LR": torch.rand(3, 8, 8), f"{name}2": torch.rand(3, 8, 8)}])
    table = Table(["image", "value"], [[name, "1"]], caption=name)
    write(Document(name, "", [Heading(name), panels, table, Text(f"worst: {name}")]), tmp_path)
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "<script>alert" not in text and 'href="javascript' not in text
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert not any(line.startswith("# heading") for line in lines)
    assert [line.count(" | ") for line in lines if line.startswith("| a")] == [1]


def test_panels_are_at_full_size_and_lr_is_enlarged():
    panels = make_panels([{"id": "x/0", "LR": torch.rand(3, 8, 10), "SR": torch.rand(3, 32, 40)}])
    (_, row), *_ = panels.rows
    assert [(p.label, p.width, p.height) for p in row] == [("LR", 40, 32), ("SR", 40, 32)]
    assert Image.open(io.BytesIO(strip(row))).size == (40 + 6 + 40, 32)


def test_a_table_of_uneven_rows_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table(["a", "b"], [["only one"]])


def test_plots_are_drawn_for_light_and_dark_paper():
    figure = forest({"a": Interval(1, 0.5, 1.5, 3), "b": Interval(0.1, -1, 1, 3)}, "gain (dB)", "Gains")
    light, dark = (np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in (figure.light, figure.dark))
    assert light.mean() > 200
    assert dark.mean() < 80
    path = plane({"nft": ([0.8, 0.7], [2.0, 3.0])}, {"bicubic": (0.9, 1.5)}, "fidelity", "quality", "Plane")
    assert Image.open(io.BytesIO(path.light)).size[0] > 600


# The main job


def test_the_stages_play_their_parts(tmp_path: Path):
    run = read_run(run_folder(tmp_path / "run"))
    roles = run.roles()
    assert (roles.sft, roles.final, roles.control) == ("cold_start", "oars", "random_oars")
    assert run.under_control() == {"random", "random_oars"}
    assert list(run.rewards()) == ["compass", "compass (full_reference)"]
    assert "structure_texture" in run.trained_on()
    assert run.roles({"final": "full_reference"}).final == "full_reference"
    with pytest.raises(ValueError, match="the report's sft is 'sft', which is no stage"):
        run.roles({"sft": "sft"})
    with pytest.raises(FileNotFoundError, match=r"with config.json"):
        read_run(tmp_path)


def test_a_log_has_its_costs_on_every_row(tmp_path: Path):
    log = read_log(run_folder(tmp_path / "run") / "stages" / "full_reference")
    assert list(log["cost/images"]) == [0, 24, 48, 48]
    assert read_log(tmp_path / "nowhere").empty


def test_the_report_says_what_it_must(tmp_path: Path):
    run = read_run(run_folder(tmp_path / "run"))
    document = oars_document(run, run.roles(), scores(GOOD), {**RECORD, "seen": True}, seconds=12.0)
    write(document, run.folder)
    text = (run.folder / "report.md").read_text()
    assert "Seed 3; finished 2025-11-02." in text
    assert "The claim holds on these 4 photographs" in text
    beside = "> **Without RL.** **compass**, oars. Over the best that costs no reinforcement learning (bicubic): "
    assert 0.58 < float(text.split(beside)[1].split()[0]) < 0.62  # 0.2 and 0.4, but for the noise
    assert "oars − cold_start" in text
    kin, witnesses = (text.split(caption)[0].split("\n\n")[-2] for caption in ("Kin to what", "Independent of what"))
    assert "ssimulacra2" in kin and "lite0_features" not in kin
    assert "lite0_features" in witnesses and "ssimulacra2" not in witnesses
    assert "oars − random_oars" in text
    assert "| psnr_y (dB) |" in text
    assert "| bicubic |" in text
    assert "Learning curves" in text
    assert "srgym train experiment=oars" in text
    assert "1m12s" in text
    assert "34 T" in text
    assert "24 test crops of 4 photographs" in text
    assert "These are the contexts that were trained on" in text


def test_write_report_evaluates_and_writes(tmp_path: Path, tiny_policy: Any):
    """End to end, on the shipped photographs: every stage left the same policy, so nothing can be claimed."""
    sections = {"env": {"name": "photographs", "split": "train", "scale": 4, "size": 32, "prompts": False},
                "policy": {"name": "compact", **tiny_policy.config},
                "runner": {"eval_steps": 2}, "agent": {"name": "diffusion_nft"}, "kind": "train"}  # fmt: skip
    stages = {
        "sft": {**sections, "start_from": "base", "agent": {"name": "cold_start"}, "reward": {"name": "psnr_y"}},
        "final": {**sections, "start_from": "sft", "reward": {"name": "ssim_y"}},
        "control": {**sections, "start_from": "sft", "reward": {"name": "random"}},
    }
    folder = tmp_path / "run"
    for name in stages:
        tiny_policy.save(folder / "stages" / name / "policy")
    (folder / "config.json").write_text(json.dumps({"seed": 0, "tree": {"name": "tiny"}, "stages": stages}))
    (folder / "run.json").write_text(json.dumps({"stages": {}, "policy": "stages/final/policy"}))
    options = {"metrics": ["psnr_y"], "pictures": 2, "picture_size": 64, "limit": 8}
    page = write_report(folder, {"kind": "oars", **options})
    assert page == folder / "report.html"
    frame = pd.read_parquet(folder / "evaluation" / "results.parquet")
    assert set(frame["photograph"]) == {"chelsea", "china", "coffee", "rocket"}
    assert set(frame["method"]) == {"bicubic", "mean prediction", "1 step", "base", *stages}
    record = json.loads((folder / "evaluation" / "results.json").read_text())
    assert record["env"]["split"] == "test"
    text = (folder / "report.md").read_text()
    assert "The claim does not hold on these 4 photographs" in text
    assert "| ssim_y | 0.000 |" in text  # the same images: no spread to make an interval of
    assert "Independent of what was trained on" in text
    (panel, *_) = sorted((folder / "report_files").glob("panel_*.png"))
    assert Image.open(panel).size == (5 * 64 + 4 * 6, 64)  # LR, base, SFT, final, HR


def test_an_unknown_report_or_option_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="report.kind is oars or realsr_r1, got 'oar'"):
        write_report(tmp_path, {"kind": "oar"})
    with pytest.raises(ValueError, match=r"report.metrix is no option of the oars report"):
        write_report(tmp_path, {"kind": "oars", "metrix": 1})
