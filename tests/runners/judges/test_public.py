"""Public data sets in their own layouts, on small ones made here."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from srgym.errors import Refusal
from srgym.runners.commands.cli import main
from srgym.runners.judges.benchmark import accuracy, method_mean, pairs_in
from srgym.runners.judges.judge_set import JudgeSet
from srgym.runners.judges.leakage import shared_methods
from srgym.runners.judges.public import import_set
from srgym.runners.judges.rating import truths
from srgym.runners.judges.set_material import read_material

METHODS = ["SwinIR", "RealESRNet", *(f"G{i}" for i in range(8)), "Original"]


def picture(path, seed, side=32):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def sriqa(tmp_path):
    """Five scenes of eleven pictures; scores are the method's, and a little of the scene's own."""
    folder, rng, lines = tmp_path / "SRIQA", np.random.default_rng(0), []
    for s in range(5):
        for m, method in enumerate(METHODS):
            name = f"images/{s:03}" + ("" if method == "Original" else f"_{method}x4") + ".png"
            picture(folder / name, 100 * s + m)
            lines.append(f"images/{s:03}.png,{name},{10 * m + rng.normal():.3f}")
    (folder / "MOS").mkdir()
    (folder / "MOS" / "all.txt").write_text("\n".join(lines).replace(",", ", "))
    return folder


def test_sriqa_has_its_pairs_and_its_baseline(sriqa, tmp_path):
    import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    material = read_material(tmp_path / "set", "test")
    truth = truths(material.groups)
    # Of eleven pictures: 55 pairs, 3 of them among regression and the original, 36 among generation and the original.
    assert [pairs_in(truth, subset) for subset in ("Reg", "Gen", "All")] == [5 * 3, 5 * 36, 5 * 55]
    assert accuracy(truth, method_mean(truth)).interval.value == 1.0  # methods lie ten apart, scenes move them by one
    assert list(material.groups[0].quality) == sorted(material.groups[0].quality)
    labels = pd.read_parquet(tmp_path / "set" / "labels.parquet")
    assert labels["quality"].min() == 1.0 and labels["quality"].max() == 5.0 and labels["fidelity"].isna().all()


def test_pictures_are_taken_over_to_the_byte(sriqa, tmp_path):
    made = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    own = next(c for c in made.of_group("002") if c.method == "SwinIR")
    assert made.sr(own) == (sriqa / "images" / "002_SwinIRx4.png").read_bytes()
    assert made.lr(made.inputs[2]) == (sriqa / "images" / "002.png").read_bytes()


def test_diffiqa_counts_majorities_and_infers_through_the_original(tmp_path):
    folder = tmp_path / "DiffIQA"
    votes = {
        "01": ["Positive", "Positive", "Negative"],
        "02": ["Negative"] * 3,
        "03": ["Similar"] * 3,
        "04": ["Positive"] * 3,
    }
    votes["05"] = ["Positive", "Similar", "Negative"]  # no majority: left out
    for kind in ("Original", *votes):
        picture(folder / "images" / kind / "a.png", len(kind) + sum(map(ord, kind)))
    for kind, own in votes.items():
        for who, label in zip("ABC", own):
            path = folder / "labels" / who / kind / "a.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"Picture_AI": {"Label": label}}))
    import_set("diffiqa", str(folder), str(tmp_path / "set"))
    (group,) = read_material(tmp_path / "set", "train").groups
    at = {method: i for i, method in enumerate(group.methods)}
    assert set(at) == {"Original", "01", "02", "03", "04"}
    better = group.better.numpy()
    assert better[at["01"], at["Original"]] == 1 and better[at["02"], at["Original"]] == 0
    assert better[at["03"], at["Original"]] == 0.5
    assert better[at["01"], at["02"]] == 1 and better[at["02"], at["04"]] == 0
    assert np.isnan(better[at["01"], at["04"]])  # both are better than the original: nobody says


@pytest.mark.parametrize(("layout", "header"), [("pipal", ""), ("kadid", "dist_img,ref_img,dmos,var\n")])
def test_tables_of_pictures_references_and_scores(tmp_path, layout, header):
    folder = tmp_path / layout
    lines = []
    for r in range(2):
        picture(folder / "images" / f"I{r}.png", r)
        for d in range(3):
            picture(folder / "images" / f"I{r}_{d:02}.png", 10 * r + d + 5)
            lines.append(f"I{r}_{d:02}.png,I{r}.png,{d + r},0.1")
    (folder / "scores.csv").write_text(header + "\n".join(lines))
    made = import_set(layout, str(folder), str(tmp_path / "set"))
    assert [own.kind for own in made.inputs] == ["synthetic"] * 2
    groups = read_material(tmp_path / "set", "train").groups
    assert [group.methods for group in groups] == [("00", "01", "02")] * 2
    assert groups[0].quality == pytest.approx((1, 1 + 4 / 3, 1 + 8 / 3)) and groups[0].fidelity is None


def test_what_is_missing_is_named(sriqa, tmp_path, capsys):
    (sriqa / "images" / "003_G4x4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"all\.txt names images/003_G4x4\.png, and it isn't in"):
        import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    (sriqa / "MOS" / "all.txt").write_text("a b")
    with pytest.raises(Refusal, match=r"all\.txt, line 1: expected a reference, a picture and a score"):
        import_set("sriqa", str(sriqa), str(tmp_path / "other"))
    assert main(["judge", "import", "sriqua", str(sriqa), f"out={tmp_path / 'x'}"]) == 2
    assert "did you mean 'sriqa'?" in capsys.readouterr().err
    assert main(["judge", "import", "diffiqa", str(sriqa), f"out={tmp_path / 'x'}"]) == 2
    assert "expected DiffIQA's labels" in capsys.readouterr().err


def test_an_import_goes_on(sriqa, tmp_path):
    first = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").rglob("*.parquet")}
    again = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    assert JudgeSet(first.folder).digest == again.digest
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").rglob("*.parquet")} == before


def test_methods_that_a_pool_shares_with_a_benchmark_are_found():
    theirs = ["SwinIR", "Real-ESRGAN", "StableSR", "Original"]
    assert shared_methods(["realesrgan-x4plus", "span", "swinir", "compact"], theirs) == ["realesrgan-x4plus", "swinir"]
