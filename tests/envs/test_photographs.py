"""The default source: whole photographs held out, samples that stay the same."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from srgym.envs import sources
from srgym.envs.photographs import PHOTOGRAPHS

SPLITS = ("train", "validation", "test")


def make(**kwargs):
    return sources.make("photographs", **{"crops": 4, **kwargs})


def test_photographs_are_held_out_whole():
    names = {split: {photograph.name for photograph in PHOTOGRAPHS if photograph.split == split} for split in SPLITS}
    assert sum(len(found) for found in names.values()) == len(PHOTOGRAPHS)
    seen = {split: {make(split=split)[i].photograph for i in range(len(make(split=split)))} for split in SPLITS}
    assert seen == names
    assert len(names["test"]) >= 3 and len(names["validation"]) >= 2
    assert all(photograph.split == "train" for photograph in PHOTOGRAPHS if photograph.scientific)


def test_the_two_views_of_one_scene_share_a_split():
    assert len({photograph.split for photograph in PHOTOGRAPHS if photograph.name.startswith("motorcycle")}) == 1


GREY = {"camera", "coins", "moon", "brick", "grass", "gravel"}


def test_photographs_are_in_colour_but_for_some_in_training():
    for split in SPLITS:
        source = make(split=split, size=None, preset="bicubic")
        for i in range(len(source)):
            sample = source[i]
            spread = (sample.hr.amax(0) - sample.hr.amin(0)).mean()
            grey = split == "train" and sample.id in GREY
            assert spread == 0 if grey else spread > 0.02, sample.id


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("scale", "size"), [(4, 128), (2, 96), (1, 64)])
def test_samples_have_the_promised_form(split, scale, size):
    source = make(split=split, scale=scale, size=size)
    assert source.size == (size // scale, size // scale)
    for i in (0, len(source) - 1):
        sample = source[i]
        assert sample.hr.shape == (3, size, size) and sample.lr.shape == (3, *source.size)
        assert sample.hr.min() >= 0 and sample.hr.max() <= 1 and sample.hr.dtype == torch.float32
        assert sample.degradation["scale"] == scale and sample.prompt
        assert sample.id.startswith(f"{sample.photograph}/")


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_the_same_at_every_visit(split):
    source, again = make(split=split), make(split=split)
    order = list(range(len(source)))
    first = {i: source[i] for i in order}
    for i in reversed(order):
        assert again[i].id == first[i].id and again[i].degradation == first[i].degradation
        assert torch.equal(again[i].hr, first[i].hr) and torch.equal(again[i].lr, first[i].lr)
    assert len({sample.id for sample in first.values()}) == len(order)


def test_the_seed_moves_training_crops_and_only_the_degradation_of_the_others():
    train, other = make(), make(seed=1)
    assert not any(torch.equal(train[i].hr, other[i].hr) for i in range(len(train)))
    for split in ("validation", "test"):
        held, again = make(split=split), make(split=split, seed=1)
        for i in range(len(held)):
            assert torch.equal(held[i].hr, again[i].hr) and not torch.equal(held[i].lr, again[i].lr)


def test_more_crops_leave_the_first_ones_alone():
    few, many = make(crops=4), make(crops=40)
    assert torch.equal(few[1].lr, many[1].lr) and few[1].id == many[1].id == "astronaut/1"


def test_held_out_crops_are_tiles_that_cover_each_photograph_without_overlap():
    source = make(split="test", crops=1000, preset="bicubic", scale=1)
    whole = make(split="test", size=None, preset="bicubic", scale=1)
    for i in range(len(whole)):
        photograph = whole[i]
        tiles = [source[j] for j in range(len(source)) if source[j].photograph == photograph.id]
        height, width = photograph.hr.shape[1:]
        assert len(tiles) == (height // 128) * (width // 128)
        places = [corner(photograph.hr, tile.hr) for tile in tiles]
        assert all(abs(a - c) >= 128 or abs(b - d) >= 128 for n, (a, b) in enumerate(places) for c, d in places[:n])


def corner(image, part):
    """Where a crop lies in its image."""
    hits = (image[:, : image.shape[1] - 127, : image.shape[2] - 127] == part[:, :1, :1]).all(0).nonzero().tolist()
    found = [(y, x) for y, x in hits if torch.equal(image[:, y : y + 128, x : x + 128], part)]
    assert found
    return found[0]


def test_whole_photographs_come_once_each_and_cut_to_the_scale():
    source = make(split="test", size=None, scale=3)
    assert len(source) == 4 and source.size is None
    chelsea = source[0]
    assert chelsea.id == chelsea.photograph == "chelsea" and chelsea.hr.shape == (3, 300, 450)
    crops = make(split="test", scale=3, size=96)
    assert torch.equal(crops.full(0).hr, chelsea.hr) and torch.equal(crops.full(0).lr, chelsea.lr)


def test_scientific_images_have_a_quarter_of_the_crops():
    source = make(crops=40)
    counts = {}
    for i in range(len(source)):
        name = source[i].photograph
        counts[name] = counts.get(name, 0) + 1
    for photograph in PHOTOGRAPHS:
        if photograph.split == "train":
            assert counts[photograph.name] == (10 if photograph.scientific else 40)


def test_prompts_are_known_without_reading_every_sample():
    source = make(crops=4)
    assert source.prompts() == sorted({source[i].prompt for i in range(len(source))})
    assert "prompts" in vars(type(source))


def test_augmenting_is_for_training_alone_and_leaves_a_quarter_as_it_is():
    plain, coloured = make(crops=30), make(crops=30, augment=True)
    changed = [not torch.equal(plain[i].hr, coloured[i].hr) for i in range(90)]
    # colours and zoom change half each: 90 crops at 3/4, with a standard error of 4.1
    assert 55 <= sum(changed) <= 80
    assert torch.equal(make(split="test")[0].hr, make(split="test", augment=True)[0].hr)


def luma(image):
    return (image * torch.tensor([65.481, 128.553, 24.966])[:, None, None]).sum(0) + 16


def bicubic_psnr(split, preset):
    """Mean over crops of the PSNR-Y of bicubic upsampling, 4 pixels of border left out."""
    source, values = make(split=split, preset=preset, crops=1000), []
    for i in range(len(source)):
        sample = source[i]
        up = F.interpolate(sample.lr[None], scale_factor=4, mode="bicubic", align_corners=False)[0].clamp(0, 1)
        error = (luma(up) - luma(sample.hr))[4:-4, 4:-4].square().mean()
        values.append(10 * torch.log10(255**2 / error).item())
    return sum(values) / len(values)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_mild_costs_bicubic_one_to_two_decibels(split):
    clean, mild = bicubic_psnr(split, "bicubic"), bicubic_psnr(split, "mild")
    print(f"bicubic PSNR-Y on {split}: clean {clean:.2f} dB, mild {mild:.2f} dB")
    assert 0.8 < clean - mild < 2.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split of train, validation, test, got 'valid'"),
        ({"preset": "mildd"}, "got 'mildd'; did you mean 'mild'"),
        ({"size": 130}, "multiple of the scale 4 up to 303, .* got 130"),
        ({"split": "test", "size": 400}, "up to 300, the shortest side in 'test', got 400"),
        ({"crops": 0}, "at least 1 crop .* got 0"),
        ({"scale": 0}, "at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_an_index_outside_is_refused():
    for index in (-1, len(make())):
        with pytest.raises(IndexError, match=f"got {index}"):
            make()[index]


def test_a_missing_file_names_the_library_and_the_photograph(monkeypatch):
    from srgym.envs import photographs

    monkeypatch.setitem(photographs._FOLDERS, "skimage", "nowhere")
    photographs._pixels.cache_clear()
    with pytest.raises(FileNotFoundError, match="'chelsea' in skimage, at .*it isn't there"):
        make(split="test")
    photographs._pixels.cache_clear()


def test_a_folder_of_further_photographs_is_split_as_it_lies(tmp_path):
    for split in SPLITS:
        (tmp_path / split).mkdir()
        Image.new("RGB", (300, 200), "red").save(tmp_path / split / f"{split}_sky.png")
    for split in SPLITS:
        alone, source = make(split=split, size=64), make(split=split, size=64, more=tmp_path)
        assert [p.name for p in source.photographs if p not in alone.photographs] == [f"{split}_sky"]
        last = source[len(source) - 1]
        assert last.id.startswith(f"{split}_sky/")
        assert all(source[i].id == alone[i].id for i in (0, len(alone) - 1))
    sample = make(split="test", size=64, more=tmp_path)[len(make(split="test", size=64))]
    assert sample.prompt is None and sample.hr.mean((1, 2)).tolist() == [1.0, 0.0, 0.0]


def test_further_photographs_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with train, validation, test in it"):
        make(more=tmp_path)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "test" / "chelsea.png")
    with pytest.raises(ValueError, match="'chelsea' is the name of a photograph that ships"):
        make(split="test", more=tmp_path)
