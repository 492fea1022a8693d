"""A judge's set on disk: parts that are whole, pictures to the byte, and no picture in two splits."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from srgym.errors import MissingFile, Refusal
from srgym.runners.judges.judge_set import JudgeSet, NewCandidate, NewInput
from srgym.runners.judges.phash import fingerprint


def photograph(seed: int, side: int = 64) -> Image.Image:
    """Something with slow and fast waves."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return Image.fromarray((0.9 * np.asarray(coarse) + 0.1 * rng.integers(0, 256, (side, side, 3))).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def made(tmp_path):
    return JudgeSet.create(tmp_path / "set", {"seed": 0}, {"bicubic": "1", "policy": "2"})


def given(name: str, split: str = "train", seed: int = 0) -> NewInput:
    return NewInput(name, split, "synthetic", png(photograph(seed, 16)), png(photograph(seed)), {"noise": 0.1})


def test_pictures_come_back_to_the_byte_and_candidates_in_order(made):
    made.add_inputs("0", [given("b", seed=1), given("a", seed=2)])
    rows = [("a", "policy", 1), ("a", "policy", 0), ("a", "bicubic", 0), ("b", "bicubic", 0)]
    files = {row: png(photograph(10 + i)) for i, row in enumerate(rows)}
    made.add_candidates(
        "0", [NewCandidate(group, method, "v", n, files[group, method, n]) for group, method, n in rows]
    )
    again = JudgeSet(made.folder)
    assert [own.group for own in again.inputs] == ["b", "a"]
    assert [(c.group, c.method, c.sample) for c in again.candidates] == [
        ("b", "bicubic", 0), ("a", "bicubic", 0), ("a", "policy", 0), ("a", "policy", 1),
    ]  # fmt: skip
    assert all(again.sr(c) == files[c.group, c.method, c.sample] for c in again.candidates)
    assert again.lr(again.inputs[0]) == given("b", seed=1).lr and again.hr(again.inputs[1]) == given("a", seed=2).hr


def test_a_part_is_what_the_library_datasets_reads_as_images(made):
    datasets = pytest.importorskip("datasets")
    made.add_inputs("0", [given("a"), NewInput("r", "train", "real", png(photograph(3, 16)))])
    (path,) = (made.folder / "inputs").glob("*.parquet")
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(made.folder / "cache"))
    assert rows.features["lr"] == datasets.Image() and rows[0]["hr"].size == (64, 64) and rows[1]["hr"] is None
    assert pq.ParquetFile(path).num_row_groups == 2  # one picture is read without the others


def test_the_same_rows_are_the_same_bytes(made, tmp_path):
    other = JudgeSet.create(tmp_path / "other", {"seed": 0}, {"bicubic": "1", "policy": "2"})
    for own in (made, other):
        own.add_inputs("0", [given("a"), given("b", seed=1)])
    first, second = (own.folder / "inputs" / "part-0.parquet" for own in (made, other))
    assert first.read_bytes() == second.read_bytes() and made.digest == other.digest


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image,
        lambda image: image.resize((96, 96), Image.Resampling.BICUBIC),
        lambda image: Image.open(io.BytesIO(_jpeg(image, 40))),
        lambda image: Image.fromarray((0.8 * np.asarray(image) + 20).astype(np.uint8)),
    ],
    ids=["the same", "larger", "JPEG", "darker"],
)
def test_a_picture_of_another_split_is_refused_by_what_it_looks_like(made, changed):
    made.add_inputs("0", [given("a", "train", seed=5)])
    twin = NewInput("twin", "test", "synthetic", None, png(changed(photograph(5))))
    with pytest.raises(Refusal, match=r"'twin' \(test\) and 'a' \(train\) are one picture"):
        made.add_inputs("1", [twin])
    assert not made.has("inputs", "1")


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_different_pictures_and_flat_ones_are_let_in(made):
    flat = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in (10, 200)]
    rows = [given("a", "train", 1), given("b", "test", 2)]
    rows += [
        NewInput(f"flat {i}", split, "real", png(image))
        for i, (split, image) in enumerate(zip(("train", "test"), flat))
    ]
    made.add_inputs("0", rows)
    assert len(made.inputs) == 4
    assert not fingerprint(png(photograph(1))).same_as(fingerprint(png(photograph(2))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (NewInput("x", "tets", "real", b"1"), "expected a split of train, validation, test"),
        (NewInput("x", "test", "fake", b"1"), "a kind of synthetic or real"),
        (NewInput("x", "test", "real", None), "expected a picture, of LR or of HR, got neither"),
    ],
)
def test_an_input_that_cannot_be_is_refused(made, row, message):
    with pytest.raises(Refusal, match=message):
        made.add_inputs("0", [row])


def test_names_are_unique_and_candidates_have_inputs(made):
    with pytest.raises(Refusal, match="got 'a' twice"):
        made.add_inputs("0", [given("a"), given("a", seed=3)])
    with pytest.raises(Refusal, match="got one of 'nobody'"):
        made.add_candidates("0", [NewCandidate("nobody", "bicubic", "1", 0, b"")])


def test_a_set_of_other_settings_is_not_gone_on_with(made, tmp_path):
    JudgeSet.create(made.folder, {"seed": 0}, {"bicubic": "1", "policy": "2"})  # the same: goes on
    with pytest.raises(Refusal, match="other settings: seed was 0, and is now 1"):
        JudgeSet.create(made.folder, {"seed": 1}, {"bicubic": "1", "policy": "2"})
    with pytest.raises(Refusal, match="other methods: policy was '2', and is now None"):
        JudgeSet.create(made.folder, {"seed": 0}, {"bicubic": "1"})
    with pytest.raises(MissingFile, match="found no set.json: `srgym judge pool"):
        JudgeSet(tmp_path)
