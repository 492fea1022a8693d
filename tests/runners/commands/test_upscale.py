"""`srgym upscale`: which file becomes which, what is kept, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from srgym.policies.compact import CompactPolicy
from srgym.runners.commands.cli import main
from srgym.runners.run.upscaling import default_policy, find_policy, plan


@pytest.fixture
def policy(tiny_policy: CompactPolicy, tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    tiny_policy.save(folder)
    return folder


def photo(path: Path, size: tuple[int, int] = (12, 8), **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_one_photo(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photo(tmp_path / "photo.png")
    assert main(["upscale", str(source), f"policy={policy}", "steps=2", "seed=3"]) == 0
    target = tmp_path / "photo_x4.png"
    assert capsys.readouterr().out == f"{target}\n"
    with Image.open(target) as image:
        assert image.size == (48, 32)
        made = json.loads(image.text["srgym"])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (made["steps"], made["seed"], made["colour"], made["policy"]) == (2, 3, "none", "compact")
    with Image.open(source) as image:
        lr = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    expected = find_policy(str(policy)).predict(lr, steps=2, seed=3)[0]
    assert torch.equal(pixels, (expected * 255).round().to(torch.uint8))


def test_nothing_is_overwritten_unasked(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = photo(tmp_path / "photo.png"), photo(tmp_path / "photo_x4.png")
    before = target.read_bytes()
    arguments = ["upscale", str(source), f"policy={policy}", "steps=1"]
    assert main(arguments) == 2
    assert "is there already (overwrite=true replaces it)" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main([*arguments, "overwrite=true"]) == 0
    assert target.read_bytes() != before
    assert main([*arguments, f"out={source}", "overwrite=true"]) == 2
    assert "it is the input itself" in capsys.readouterr().err


def test_orientation_is_applied_and_profile_and_exif_are_kept(policy: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = photo(tmp_path / "turned.jpg", (12, 8), exif=exif, icc_profile=profile)
    assert main(["upscale", str(source), f"policy={policy}", "steps=1"]) == 0
    with Image.open(tmp_path / "turned_x4.png") as image:
        assert image.size == (32, 48)
        assert image.info["icc_profile"] == profile
        assert image.getexif()[0x010F] == "Maker"
        assert 0x0112 not in image.getexif()


def test_a_folder_keeps_its_shape_and_bad_images_are_named(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "holiday"
    photo(folder / "a.jpg")
    photo(folder / "sea" / "b.png", (5, 3))
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(folder / "pipe.png")
    assert main(["upscale", str(folder), f"--policy={policy}", "steps=1", "colour=adain"]) == 2
    out, told = capsys.readouterr()
    assert all(name in told for name in ("broken.jpg", "link.jpg", "pipe.png"))
    assert "3 of 5 images were skipped" in told
    made = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "holiday_x4").rglob("*.png"))
    assert made == ["holiday_x4/a.png", "holiday_x4/sea/b.png"]
    assert len(out.splitlines()) == 2


def test_one_pixel(policy: Path, tmp_path: Path) -> None:
    source = photo(tmp_path / "dot.png", (1, 1))
    assert main(["upscale", str(source), f"policy={policy}", f"out={tmp_path / 'big.png'}"]) == 0
    with Image.open(tmp_path / "big.png") as image:
        assert image.size == (4, 4)


def test_plans(tmp_path: Path) -> None:
    first, second = photo(tmp_path / "a.png"), photo(tmp_path / "b" / "a.jpg")
    assert plan([str(first)], None, 2, False) == [(first, tmp_path / "a_x2.png")]
    assert plan([str(first)], str(tmp_path / "new"), 2, False) == [(first, tmp_path / "new" / "a.png")]
    new = tmp_path / "new"
    assert plan([str(first), str(second)], str(new), 2, False) == [(first, new / "a.png"), (second, new / "a_jpg.png")]
    third = photo(tmp_path / "c" / "a.jpg")
    with pytest.raises(ValueError, match="would both become"):
        plan([str(first), str(second), str(third)], str(new), 2, False)


def run_folder(root: Path, name: str, policy: Path, *, run: str = "oars", complete: bool = True) -> Path:
    folder = root / name
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "last").symlink_to(policy)
    (folder / "run.json").write_text(json.dumps({"complete": complete, "policy": "stages/last"}))
    (folder / "config.json").write_text(json.dumps({"name": run}))
    return folder


def test_the_newest_complete_main_run_is_the_default(policy: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert default_policy(runs) is None
    wanted = run_folder(runs, "b", policy)
    run_folder(runs, "a", policy, complete=False)
    run_folder(runs, "c", policy, run="smoke")
    assert default_policy(runs) == wanted / "stages" / "last"
    assert find_policy(str(wanted)).scale == 4


def test_no_such_policy() -> None:
    with pytest.raises(FileNotFoundError, match="policy=nowhere: expected the folder of a policy or of a run"):
        find_policy("nowhere")


def saved(path: Path, mode: str = "RGB", colour: object = (90, 140, 200)) -> Path:
    Image.new(mode, (16, 16), colour).save(path)
    return path


def test_a_grey_photograph_stays_grey(tmp_path: Path) -> None:
    source = tmp_path / "grey.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)).save(source)
    assert main(["upscale", str(source), "policy=compact", "sampling=sample"]) == 0
    pixels = np.asarray(Image.open(tmp_path / "grey_x4.png").convert("RGB")).astype(int)
    assert pixels.std() > 5 and np.ptp(pixels, axis=2).max() == 0


def test_transparency_is_refused_and_opaque_alpha_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear, opaque = saved(tmp_path / "a.png", "RGBA", (9, 9, 9, 128)), saved(tmp_path / "b.png", "RGBA", (9, 9, 9, 255))
    assert main(["upscale", str(clear), str(opaque), "policy=compact"]) == 2
    said = capsys.readouterr().err
    assert f"{clear}: expected an image without transparency" in said and "1 of 2 images were skipped" in said
    assert (tmp_path / "b_x4.png").is_file() and not (tmp_path / "a_x4.png").exists()


def test_a_single_result_has_the_format_that_its_name_says(tmp_path: Path) -> None:
    source = saved(tmp_path / "photo.png")
    assert main(["upscale", str(source), "policy=compact", f"out={tmp_path / 'large.jpg'}"]) == 0
    with Image.open(tmp_path / "large.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))


def test_two_images_of_one_stem_become_two_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    saved(folder / "a.jpg"), saved(folder / "a.png")
    assert main(["upscale", str(folder), "policy=compact", f"out={tmp_path / 'out'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "a_png.png"]


def test_a_folder_that_cannot_be_made_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(tmp_path / "photo.png")
    assert main(["upscale", str(source), "policy=compact", f"out={source / 'below'}"]) == 2
    assert f"{source} is a file" in capsys.readouterr().err


def test_the_mean_is_the_default_where_a_policy_predicts_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(source)
    lr = torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1)[None].float() / 255
    expected = (find_policy("compact").predict_mean(lr)[0] * 255).round().to(torch.uint8)
    for said, sampling in (([], "mean"), (["seed=1"], "sample"), (["seed=1", "sampling=mean"], "mean")):
        target = tmp_path / f"{len(said)}.png"
        assert main(["upscale", str(source), "policy=compact", f"out={target}", *said]) == 0
        assert f"policy: compact; {sampling}" in capsys.readouterr().err
        with Image.open(target) as image:
            assert json.loads(image.text["srgym"])["sampling"] == sampling
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(pixels, expected) == (sampling == "mean")
