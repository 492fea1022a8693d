"""Public data sets in their own layouts, on small ones made here."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from srgym.errors import Refusal
from srgym.runners.commands.cli import main
from srgym.runners.judges.benchmark import accuracy, method_mean, pairs_in
from srgym.runners.judges.judge_set import JudgeSet
from srgym.runners.judges.leakage import SRIQA, shared_methods
from srgym.runners.judges.public import import_set
from srgym.runners.judges.rating import truths
from srgym.runners.judges.set_material import read_material

METHODS = [*SRIQA, "Original"]


def picture(path, seed, side=32):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def sriqa(tmp_path):
    """Five scenes of eleven pictures; scores are the method's, and a little of the scene's own."""
    folder, rng = tmp_path / "SRIQA", np.random.default_rng(0)
    (folder / "MOS").mkdir(parents=True)
    for s in range(5):
        lines = []
        for m, method in enumerate(METHODS):
            name = f"online{s}_{method}" + ("" if method == "Original" else "x4") + ".png"
            picture(folder / "images" / method / name, 100 * s + m)
            lines.append(f"{name},{8 * m + rng.normal():.3f}")
        picture(folder / "LRImages" / f"online{s}_Original.png", s, side=8)
        text = "\n".join(reversed(lines))
        (folder / "MOS" / f"online{s}.txt").write_text(text.replace(",", " ") if s % 2 else text)
    return folder


def test_sriqa_has_its_pairs_and_its_baseline(sriqa, tmp_path):
    import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    material = read_material(tmp_path / "set", "test")
    truth = truths(material.groups)
    # Of eleven pictures: 55 pairs, 3 of them among regression and the original, 36 among generation and the original.
    assert [pairs_in(truth, subset) for subset in ("Reg", "Gen", "All")] == [5 * 3, 5 * 36, 5 * 55]
    assert accuracy(truth, method_mean(truth)).interval.value == 1.0  # methods lie eight apart, scenes move them by one
    assert material.groups[0].methods == tuple(METHODS)  # in no order of scores
    assert list(material.groups[0].quality) == sorted(material.groups[0].quality)
    labels = pd.read_parquet(tmp_path / "set" / "labels.parquet")
    assert labels["quality"].min() == 1.0 and labels["quality"].max() == 5.0 and labels["fidelity"].isna().all()


def test_pictures_are_taken_over_to_the_byte(sriqa, tmp_path):
    made = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    own = next(c for c in made.of_group("online2") if c.method == "SwinIR")
    assert made.sr(own) == (sriqa / "images" / "SwinIR" / "online2_SwinIRx4.png").read_bytes()
    assert made.lr(made.inputs[2]) == (sriqa / "LRImages" / "online2_Original.png").read_bytes()


def test_folders_of_sriqa_may_be_named_with_their_scale(sriqa, tmp_path):
    (sriqa / "images" / "SwinIR").rename(sriqa / "images" / "SwinIRx4")
    assert len(import_set("sriqa", str(sriqa), str(tmp_path / "set")).candidates) == 5 * 11


VOTES = {
    "01": ["Positive", "Positive", "Negative"],
    "02": ["Negative"] * 3,
    "03": ["Similar"] * 3,
    "04": ["Positive"] * 3,
    "05": ["Positive", "Similar", "Negative"],  # no majority: left out
    "06": ["Similar", "Similar", "Positive"],
}


@pytest.fixture
def diffiqa(tmp_path):
    """A scene of each split, of six pictures."""
    for seed, split in enumerate(("Train", "Validation", "Test")):
        place, scene = tmp_path / "DiffIQA" / split, f"00000{seed}x0y32"
        picture(place / "images" / "Original" / f"{scene}.png", 10 * seed)
        for kind, own in VOTES.items():
            picture(place / "images" / kind / f"{scene}_{kind}.png", 10 * seed + int(kind))
            for who, label in zip("ABC", own):
                path = place / "labels" / who / kind / f"{scene}_{kind}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"Picture_AI": {"Label": label}}))
    return tmp_path / "DiffIQA"


def test_diffiqa_counts_majorities_and_infers_through_the_original(diffiqa, tmp_path):
    made = import_set("diffiqa", str(diffiqa), str(tmp_path / "set"))
    assert [own.split for own in made.inputs] == ["train", "validation", "test"]
    (group,) = read_material(tmp_path / "set", "validation").groups
    at = {method: i for i, method in enumerate(group.methods)}
    assert set(at) == {"Original", "01", "02", "03", "04", "06"}
    better = group.better.numpy()
    assert better[at["01"], at["Original"]] == 1 and better[at["02"], at["Original"]] == 0
    assert better[at["03"], at["Original"]] == 0.5 and better[at["03"], at["06"]] == 0.5
    assert better[at["01"], at["02"]] == 1 and better[at["02"], at["04"]] == 0
    assert np.isnan(better[at["01"], at["04"]])  # both are better than the original: nobody says


def test_diffiqa_without_splits_is_for_training(diffiqa, tmp_path):
    made = import_set("diffiqa", str(diffiqa / "Test"), str(tmp_path / "set"))
    assert [own.split for own in made.inputs] == ["train"]


def table(folder, splits, ending, extra=""):
    """Two references a split and three pictures of each, in a file a reference, or one for all."""
    for s, split in enumerate(splits):
        for r in range(2 * s, 2 * s + 2):
            picture(folder / "images" / f"I{r}{ending}", r)
            lines = []
            for d in range(3):
                picture(folder / "images" / f"I{r}_{d:02}{ending}", 10 * r + d + 5)
                lines.append(f"I{r}_{d:02}{ending},I{r}{ending},{d + r}{extra}\n")
            place = folder / split / "MOS" / f"I{r}.txt" if split else folder / "dmos.csv"
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("a") as file:
                file.write("".join(lines))


def test_pipal_has_a_table_for_every_reference_and_splits(tmp_path):
    table(tmp_path / "PIPAL", ("Train", "Test"), ".bmp")
    made = import_set("pipal", str(tmp_path / "PIPAL"), str(tmp_path / "set"))
    assert [(own.split, own.kind) for own in made.inputs] == [("train", "synthetic")] * 2 + [("test", "synthetic")] * 2
    groups = read_material(tmp_path / "set", "train").groups
    assert [group.methods for group in groups] == [("00", "01", "02")] * 2
    assert groups[0].quality == pytest.approx((1, 1 + 4 / 5, 1 + 8 / 5)) and groups[0].fidelity is None
    with Image.open(tmp_path / "PIPAL" / "images" / "I0_01.bmp") as image:
        own = next(c for c in made.of_group("I0") if c.method == "01")
        assert (np.asarray(image) == np.asarray(Image.open(io.BytesIO(made.sr(own))))).all()


def test_kadid_is_one_table_with_a_header_or_one_for_every_reference(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "dmos.csv").write_text("dist_img,ref_img,dmos,var\n")
    table(tmp_path / "one", ("",), ".png", ",0.8")
    table(tmp_path / "split", ("Train",), ".png", ",0.8")
    for name in ("one", "split"):
        import_set("kadid", str(tmp_path / name), str(tmp_path / f"set-{name}"))
    one, split = (read_material(tmp_path / f"set-{name}", "train").groups for name in ("one", "split"))
    assert [group.quality for group in one] == [group.quality for group in split]
    assert [group.methods for group in one] == [("00", "01", "02")] * 2


def test_names_may_differ_in_case(tmp_path):
    table(tmp_path / "TID", ("Train",), ".png")
    (tmp_path / "TID" / "images" / "I1_02.png").rename(tmp_path / "TID" / "images" / "i1_02.PNG")
    assert len(import_set("pipal", str(tmp_path / "TID"), str(tmp_path / "set")).candidates) == 6


@pytest.mark.parametrize(
    ("layout", "file", "text", "message"),
    [
        (
            "sriqa",
            "images/HGGT/online3_HGGTx4.png",
            None,
            r"expected an image file at .*online3_HGGTx4\.png, got nothing",
        ),
        ("sriqa", "images/HGGT/online3_HGGTx4.png", "torn", r"online3_HGGTx4\.png: expected an image file"),
        ("sriqa", "LRImages/online1_Original.png", None, r"LRImages/online1_Original\.png, got nothing"),
        ("sriqa", "MOS/online1.txt", "online1_HGGTx4.png", r"online1\.txt, line 1: expected 2 columns, got"),
        ("sriqa", "MOS/online1.txt", "online1_HGGTx4.png 3", r"online1\.txt: expected 11 pictures, got 1 \('SwinIR', "),
        ("sriqa", "MOS/online1.txt", "online1_HGGTx4.png,good", r"online1\.txt, line 1: expected a score, got 'good'"),
        ("sriqa", "MOS/online1.txt", "online2_HGGTx4.png,3", r"line 1: expected another picture of 'online1', got"),
        ("diffiqa", "Train/labels/B/02/000000x0y32_02.json", None, r"three labels of 000000x0y32_02, 'B' gave none"),
        ("diffiqa", "Train/labels/B/02/000000x0y32_02.json", "{}", r"B/02/000000x0y32_02\.json: expected JSON with"),
        (
            "diffiqa",
            "Test/labels/A/01/other_02.json",
            "{}",
            r"other_02\.json: expected the label of a picture SCENE_01",
        ),
        ("diffiqa", "Test/images/Original/000002x0y32.png", None, r"Original/000002x0y32\.png, got nothing"),
    ],
)
def test_what_is_missing_or_malformed_is_named(layout, file, text, message, tmp_path, request):
    folder = request.getfixturevalue(layout)
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(Refusal, match=message):
        import_set(layout, str(folder), str(tmp_path / "set"))


def test_a_table_is_held_against_its_pictures(tmp_path):
    folder = tmp_path / "KADID"
    table(folder, ("Train",), ".png")
    rows = folder / "Train" / "MOS" / "I1.txt"
    rows.write_text(rows.read_text() + "I1_00.png,I1.png,3\n")
    with pytest.raises(Refusal, match=r"I1\.txt, line 4: 'I1_00\.png' has a score already"):
        import_set("kadid", str(folder), str(tmp_path / "set"))
    rows.write_text("I1_07.png,I1.png,3\n")
    with pytest.raises(FileNotFoundError, match=r"I1\.txt, line 1: .*I1_07\.png isn't there"):
        import_set("kadid", str(folder), str(tmp_path / "other"))


def test_another_layout_is_refused(sriqa, tmp_path, capsys):
    assert main(["judge", "import", "sriqua", str(sriqa), f"out={tmp_path / 'x'}"]) == 2
    assert "did you mean 'sriqa'?" in capsys.readouterr().err
    assert main(["judge", "import", "diffiqa", str(sriqa), f"out={tmp_path / 'x'}"]) == 2
    assert "expected DiffIQA's labels A|B|C/NN/*.json, found none" in capsys.readouterr().err


def test_an_import_goes_on(sriqa, tmp_path):
    first = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").rglob("*.parquet")}
    again = import_set("sriqa", str(sriqa), str(tmp_path / "set"))
    assert JudgeSet(first.folder).digest == again.digest
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").rglob("*.parquet")} == before


def test_methods_that_a_pool_shares_with_a_benchmark_are_found():
    pool = ["realesrgan-x4plus", "span", "swinir", "compact", "RRDB", "realesrgan-anime", "OSEDiff"]
    assert shared_methods(pool, SRIQA) == ["realesrgan-x4plus", "swinir", "RRDB", "OSEDiff"]
