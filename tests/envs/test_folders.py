"""Folders as sources: pairs by name, whatever the order; nothing unusable passes unnamed."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from srgym.envs import sources
from srgym.envs.folders import HRFolder, LRFolder, PairedFolders
from srgym.envs.images import BadImage, read_image, to_float
from srgym.envs.inventory import SPLITS, by_name, count_note, match, split_names

NAMES = st.text("abcXYZ0189_-. é", min_size=1, max_size=8).filter(lambda n: n.strip(". ") == n)


@pytest.fixture
def pairs(tmp_path, draw):
    """pairs(names) saves LR 8 x 12 and HR 32 x 48 of each name and returns the folders."""

    def save(*names):
        for seed, name in enumerate(names):
            draw(tmp_path / "lr" / f"{name}.png", 8, 12, seed)
            draw(tmp_path / "hr" / f"{name}.png", 32, 48, 100 + seed)
        return {"lr": tmp_path / "lr", "hr": tmp_path / "hr"}

    return save


# Matching


@given(st.data(), st.sets(NAMES, max_size=8), st.sets(NAMES, max_size=8))
def test_pairs_have_equal_names_in_any_order(data, lr, hr):
    lr_order, hr_order = (data.draw(st.permutations(sorted(names))) for names in (lr, hr))
    found, alone = match({n: f"lr/{n}" for n in lr_order}, {n: f"hr/{n}" for n in hr_order})
    assert found == {name: (f"lr/{name}", f"hr/{name}") for name in lr & hr}
    assert list(found) == sorted(lr & hr)
    assert set(alone) == lr ^ hr
    for name, sentence in alone.items():
        assert sentence.startswith(f"{'lr' if name in lr else 'hr'}/{name} has no")


@given(st.sets(NAMES, min_size=1, max_size=8), st.sampled_from(["", "x4", "_LR4"]))
def test_names_come_without_extension_and_suffix(names, suffix):
    root = Path("root")
    files = [root / "sub" / f"{name}{suffix}.png" for name in names]
    assert by_name(files, root, suffix) == {f"sub/{name}": path for name, path in zip(names, files, strict=True)}


def test_a_file_without_the_suffix_is_nobodys_partner():
    names = by_name([Path("r/a.png"), Path("r/bx4.png")], Path("r"), "x4")
    assert set(names) == {"<a>", "b"}


def test_two_files_of_one_name_are_refused(pairs, draw):
    given_ = pairs("a", "b")
    draw(given_["hr"] / "a.jpg", 32, 48)
    with pytest.raises(ValueError, match=r"one file named 'a' in .*hr, got .*a\.jpg and .*a\.png: which is meant"):
        PairedFolders(**given_)


def test_composed_and_decomposed_accents_are_one_name(tmp_path, draw):
    draw(tmp_path / "lr" / "caf\u00e9.png", 8, 8)
    draw(tmp_path / "hr" / "cafe\u0301.png", 32, 32)
    assert len(PairedFolders(tmp_path / "lr", tmp_path / "hr")) == 1


def test_partners_are_read_together(pairs):
    given_ = pairs("b", "a", "sub/c")
    source = PairedFolders(**given_)
    assert [sample.id for sample in (source[i] for i in range(3))] == ["a/0", "b/0", "sub/c/0"]
    for i, name in enumerate(("a", "b", "sub/c")):
        assert torch.equal(source[i].lr, to_float(read_image(given_["lr"] / f"{name}.png")))
        assert torch.equal(source[i].hr, to_float(read_image(given_["hr"] / f"{name}.png")))
    assert source.size == (8, 12) and source[2].photograph == "sub/c" and source[0].degradation is None


def test_suffixes_of_names(tmp_path, draw):
    draw(tmp_path / "lr/0801x4.png", 8, 8)
    draw(tmp_path / "hr/0801_HR.png", 32, 32)
    source = PairedFolders(tmp_path / "lr", tmp_path / "hr", lr_suffix="x4", hr_suffix="_HR")
    assert source[0].id == "0801/0"
    with pytest.raises(ValueError, match=r"0801_HR\.png has no LR image of its name.*0801x4\.png has no HR image"):
        PairedFolders(tmp_path / "lr", tmp_path / "hr")


def test_a_size_mismatch_names_both_files(pairs, draw):
    given_ = pairs("a", "b")
    draw(given_["hr"] / "b.png", 32, 47)
    wanted = r"HR of 4 times the sides of LR, got .*lr.b\.png of 8 x 12 and .*hr.b\.png of 32 x 47"
    with pytest.raises(ValueError, match=wanted):
        PairedFolders(**given_)


def test_skipping_leaves_out_what_is_named_and_counted(pairs, draw):
    given_ = pairs("a", "b", "cut", "odd")
    draw(given_["hr"] / "odd.png", 30, 48)
    draw(given_["lr"] / "single.png", 8, 12)
    cut = given_["hr"] / "cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.warns(UserWarning, match="3 of 5 images skipped") as caught:
        source = PairedFolders(**given_, on_bad_image="skip")
    assert source.images == ["a", "b"] and len(source) == 2
    assert set(source.skipped) == {"cut", "odd", "single"}
    for name in source.skipped:
        assert name in str(caught[0].message)


# Bad images


def test_errors_name_every_bad_image_and_the_way_out(tmp_path, draw):
    draw(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    draw(tmp_path / "small.png", 3, 40)
    with pytest.raises(ValueError, match=r"got 2 of 3 that can't \(on_bad_image=skip leaves them out\)") as raised:
        HRFolder(tmp_path)
    assert "text.png: expected an image file" in str(raised.value)
    assert "small.png: expected at least 4 x 4 pixels, got 3 x 40" in str(raised.value)


def test_a_truncated_image_is_refused_when_it_is_read(tmp_path, draw):
    path = draw(tmp_path / "a.png", 64, 64)
    path.write_bytes(path.read_bytes()[:300])
    source = HRFolder(tmp_path)  # headers alone are looked at
    with pytest.raises(BadImage, match=r"a\.png: expected a whole image"):
        source[0]


def test_one_pixel_is_an_lr_image_but_no_ground_truth(tmp_path, draw):
    draw(tmp_path / "dot.png", 1, 1)
    assert LRFolder(tmp_path)[0].lr.shape == (3, 1, 1)
    with pytest.raises(ValueError, match="expected at least 4 x 4 pixels, got 1 x 1"):
        HRFolder(tmp_path)


def test_skipping_everything_is_an_error(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="got 1 of 1 that can't"):
        HRFolder(tmp_path, on_bad_image="skip")


@pytest.mark.parametrize("kind", [HRFolder, LRFolder])
def test_folders_that_are_not(tmp_path, kind):
    with pytest.raises(ValueError, match=r"expected images .* got none"):
        kind(tmp_path)
    with pytest.raises(FileNotFoundError, match="which doesn't exist"):
        kind(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs its argument 'path', a folder of images, got none"):
        kind(None)


def test_paired_folders_that_are_not(pairs, tmp_path):
    given_ = pairs("a")
    with pytest.raises(ValueError, match="'paired_folders' needs its argument 'hr'"):
        PairedFolders(given_["lr"], None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PairedFolders(given_["lr"], tmp_path / "nowhere")


# Crops, splits, captions


def test_whole_images_are_cut_to_a_multiple_of_the_scale(tmp_path, draw):
    path = draw(tmp_path / "a.png", 35, 49)
    source = HRFolder(tmp_path, preset="bicubic")
    sample = source[0]
    assert torch.equal(sample.hr, to_float(read_image(path))[:, :32, :48])
    assert sample.lr.shape == (3, 8, 12) and source.size == (8, 12)
    assert sample.degradation["preset"] == "bicubic"


def test_lr_is_a_function_of_seed_and_id_alone(tmp_path, draw):
    draw(tmp_path / "b.png", 64, 64, 1)
    options = {"path": tmp_path, "size": 32, "crops": 4}
    before, other = HRFolder(**options), HRFolder(**options, seed=1)
    kept = [before[i] for i in range(4)]
    draw(tmp_path / "a.png", 64, 64, 2)  # moves b's crops to other indices
    after = HRFolder(**options)
    again = [after[i] for i in range(len(after)) if after[i].photograph == "b"]
    for old, new in zip(kept, again, strict=True):
        assert old.id == new.id and torch.equal(old.lr, new.lr) and old.degradation == new.degradation
    assert not torch.equal(kept[0].lr, other[0].lr)


def test_crops_of_a_pair_show_the_same_place(tmp_path):
    for split in ("all", "train"):
        lr = np.arange(4 * 16 * 24, dtype=np.int64).reshape(4, 16, 24)[0]
        for name in "abc":
            (tmp_path / "lr").mkdir(exist_ok=True)
            (tmp_path / "hr").mkdir(exist_ok=True)
            coded = np.stack([lr % 256, lr // 256, lr * 0], -1).astype(np.uint8)
            Image.fromarray(coded).save(tmp_path / f"lr/{name}.png")
            Image.fromarray(coded.repeat(4, 0).repeat(4, 1)).save(tmp_path / f"hr/{name}.png")
        source = PairedFolders(tmp_path / "lr", tmp_path / "hr", size=32, crops=5, split=split)
        assert source.size == (8, 8)
        seen = set()
        for sample in (source[i] for i in range(len(source))):
            assert torch.equal(sample.lr.repeat_interleave(4, 1).repeat_interleave(4, 2), sample.hr)
            seen.add(sample.lr.numpy().tobytes())
        assert len(seen) > 3


def test_tiles_do_not_overlap_and_training_crops_are_drawn(tmp_path, draw):
    for name in "abc":
        draw(tmp_path / f"{name}.png", 64, 96)
    assert len(LRFolder(tmp_path, size=128, crops=100)) == 3 * 2 * 3  # 32 x 32 LR tiles of 64 x 96
    train = LRFolder(tmp_path, size=128, crops=100, split="train")
    assert len(train) == 100 * len(train.images) == 100


def test_splits_are_of_whole_images_and_leave_none_out():
    names = [f"image{i}" for i in range(57)]
    parts = [split_names(names, split, "x") for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [47, 5, 5]
    assert sorted(name for part in parts for name in part) == sorted(names) == split_names(names, "all", "x")
    assert parts == [split_names(names[::-1], split, "x") for split in ("train", "validation", "test")]
    assert [len(split_names("abc", split, "x")) for split in ("train", "validation", "test")] == [1, 1, 1]
    with pytest.raises(
        ValueError, match="3 images to split, 1 for validation and 1 for test and some to train on, got 2"
    ):
        split_names("ab", "train", "x")
    with pytest.raises(ValueError, match="split is one of all, train, validation, test, got 'dev'"):
        split_names("abc", "dev", "x")


def test_the_shares_of_a_split_are_a_users():
    names = [f"image{i}" for i in range(20)]
    shares = (0.25, 0.5)
    parts = {split: split_names(names, split, "x", *shares) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 5, "validation": 5, "test": 10}
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert len(split_names(names, "train", "x", 0.1, 0.0)) == 18
    with pytest.raises(ValueError, match="split=test has no image, since test_share is 0"):
        split_names(names, "test", "x", 0.1, 0.0)
    with pytest.raises(ValueError, match="below 1 together"):
        split_names(names, "train", "x", 0.5, 0.5)


def test_a_folder_is_split_by_its_shares(tmp_path):
    for name in "abcdefgh":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    parts = [HRFolder(tmp_path, split=split, validation_share=0.25, test_share=0.5).images for split in SPLITS[1:]]
    assert [len(part) for part in parts] == [2, 2, 4]


def test_captions(folders, tmp_path):
    source = LRFolder(folders["lr"], captions=folders["texts"])
    assert source[2].prompt == "noise number 2, größer" and "prompt" in source.provides
    assert source.prompts() == [f"noise number {i}, größer" for i in range(4)]
    assert LRFolder(folders["lr"])[0].prompt is None
    (tmp_path / "0.txt").write_text("only one")
    with pytest.raises(ValueError, match=r"a caption NAME\.txt for each image, got none for 1, 2, 3"):
        LRFolder(folders["lr"], captions=tmp_path)
    with pytest.raises(FileNotFoundError, match="isn't a folder"):
        LRFolder(folders["lr"], captions=tmp_path / "nowhere")


def test_files_of_one_stem_keep_their_extensions(tmp_path, draw):
    draw(tmp_path / "a.png")
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "b.png")
    assert LRFolder(tmp_path).images == ["a.jpg", "a.png", "b"]


def test_sizes_that_differ(tmp_path, draw):
    draw(tmp_path / "a.png", 16, 16)
    draw(tmp_path / "b.png", 16, 20)
    assert LRFolder(tmp_path).size is None
    assert LRFolder(tmp_path, size=32).size == (8, 8)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"scale": 0}, "scale is a whole number of at least 1, got 0"),
        ({"size": 30}, "size is None or a multiple of the scale 4, got 30"),
        ({"crops": 0}, "crops is at least 1, got 0"),
        ({"on_bad_image": "ignore"}, "on_bad_image is 'error' or 'skip', got 'ignore'"),
        ({"preset": "milt"}, "did you mean 'mild'"),
    ],
)
def test_arguments_are_checked(folders, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        HRFolder(folders["hr"], **wrong)


def test_indices_end_where_the_samples_do(source):
    made = sources.make(source)
    for index in (-1, len(made)):
        with pytest.raises(IndexError):
            made[index]


# Known counts


@pytest.mark.parametrize(
    "folder, known",
    [
        ("RealSR", 100), ("testsets/RealSR/test_LR", 100), ("DRealSR/LR", 93), ("DIV2K-val", 3000),
        ("DIV2K_V2_val/gt", 3000), ("RealSet80", 80), ("RealLQ250/lq", 250), ("RealLR200", 200),
    ],
)  # fmt: skip
def test_counts_of_published_test_sets(folder, known):
    assert count_note(Path("/data") / folder, known)[1]
    note, agrees = count_note(Path("/data") / folder, known - 2)
    assert not agrees and f"has {known} images" in note and note.endswith(f"has {known - 2}")


@pytest.mark.parametrize("folder", ["photos", "DIV2K_valid_HR", "Real-ESRGAN", "realsrgan"])
def test_other_folders_have_no_count(folder):
    assert count_note(Path("/data") / folder, 7) == ("", True)


def test_a_wrong_count_is_said(tmp_path, draw):
    draw(tmp_path / "RealSet80/a.png")
    with pytest.warns(UserWarning, match=r"RealSet80 has 80 images; .* has 1: results won't be comparable"):
        source = LRFolder(tmp_path / "RealSet80")
    assert source.note.startswith("RealSet80 has 80 images")


def test_a_right_count_is_no_warning(tmp_path, draw, caplog):
    for i in range(80):
        draw(tmp_path / f"RealSet80/{i}.png", 2, 2)
    with warnings.catch_warnings(), caplog.at_level("INFO"):
        warnings.simplefilter("error")
        assert len(LRFolder(tmp_path / "RealSet80")) == 80
    assert "RealSet80 has 80 images" in caplog.text
