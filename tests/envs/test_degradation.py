"""The presets: what they draw, and that a sample depends on its seed alone."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from srgym.envs.degradation import PRESETS, STEPS, apply, degrade, draw, mix_seed
from srgym.envs.operations import jpeg

# The specification's table, typed in once more: first pass, second pass.
TABLE = {
    "realesrgan": (
        {"sigma": (0.2, 3), "factor": (0.15, 1.5), "gaussian": (1, 30), "poisson": (0.05, 3), "jpeg": (30, 95)},
        {"sigma": (0.2, 1.5), "factor": (0.3, 1.2), "gaussian": (1, 25), "poisson": (0.05, 2.5), "jpeg": (30, 95)},
    ),
    "stablesr": (
        {"sigma": (0.2, 1.5), "factor": (0.3, 1.5), "gaussian": (1, 15), "poisson": (0.05, 2), "jpeg": (60, 95)},
        {"sigma": (0.2, 1.0), "factor": (0.6, 1.2), "gaussian": (1, 12), "poisson": (0.05, 1), "jpeg": (60, 100)},
    ),
}
SECOND_BLUR = {"realesrgan": 0.8, "stablesr": 0.5}


def pictures(count=3, side=48, seed=0):
    coarse = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_lr_is_an_8_bit_image_of_the_right_size(preset, scale):
    lr, records = degrade(pictures(), preset, seed=0, scale=scale)
    assert lr.shape == (3, 3, 48 // scale, 48 // scale) and lr.dtype == torch.float32
    assert lr.min() >= 0 and lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)
    for record in records:
        assert record["preset"] == preset and record["scale"] == scale and set(STEPS) <= set(record)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_depends_on_its_own_seed_and_not_on_the_batch(preset):
    hr, seeds = pictures(5), [3, 1, 4, 1, 5]
    whole, records = degrade(hr, preset, seed=seeds)
    cut = [degrade(hr[i : i + n], preset, seed=seeds[i : i + n]) for i, n in ((0, 2), (2, 1), (3, 2))]
    assert torch.equal(whole, torch.cat([lr for lr, _ in cut]))
    assert records == [record for _, made in cut for record in made]
    order = [4, 2, 0, 1, 3]
    assert torch.equal(whole[order], degrade(hr[order], preset, seed=[seeds[i] for i in order])[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_threads_changes_no_bit(preset):
    hr, before = torch.rand(1, 3, 516, 516, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(torch.cat([degrade(hr, preset, seed=[seed])[0] for seed in range(6)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_one_seed_for_all_gives_each_sample_its_own():
    hr = pictures(1).expand(4, -1, -1, -1)
    lr, records = degrade(hr, "realesrgan", seed=7)
    assert len({json.dumps(record) for record in records}) == 4
    again, _ = degrade(hr[2:3], "realesrgan", seed=[mix_seed(7, 2)])
    assert torch.equal(lr[2:3], again)
    assert not torch.equal(lr, degrade(hr, "realesrgan", seed=8)[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_record_read_from_json_gives_the_same_lr(preset):
    hr = pictures(4)
    lr, records = degrade(hr, preset, seed=11)
    for image, small, record in zip(hr, lr, records):
        assert torch.equal(small, apply(image, json.loads(json.dumps(record))))


def test_neither_global_generator_is_touched():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    degrade(pictures(), "realesrgan", seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("preset", TABLE)
def test_second_order_presets_draw_from_the_published_ranges(preset):
    records = [draw(preset, seed=seed) for seed in range(3000)]
    for order, limits in enumerate(TABLE[preset], start=1):
        blurs = [r[f"blur{order}"] for r in records if r[f"blur{order}"]]
        assert_fills([b["sigma_x"] for b in blurs if b["sigma"]], *limits["sigma"])
        assert_fills([r[f"resize{order}"]["factor"] for r in records], *limits["factor"])
        for kind in ("gaussian", "poisson"):
            noises = [r[f"noise{order}"] for r in records if r[f"noise{order}"]["kind"] == kind]
            assert_share(len(noises), len(records), 0.5)
            assert_fills([n["strength"] for n in noises], *limits[kind])
        assert_share(sum(r[f"noise{order}"]["grey"] for r in records), len(records), 0.4)
        assert_fills([r[f"jpeg{order}"]["quality"] for r in records], *limits["jpeg"])
        up, down, keep = ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))[order - 1]
        factors = np.array([r[f"resize{order}"]["factor"] for r in records])
        for count, share in (((factors > 1).sum(), up), ((factors < 1).sum(), down), ((factors == 1).sum(), keep)):
            assert_share(count, len(records), share)
        for mode in ("area", "bilinear", "bicubic"):
            assert_share(sum(r[f"resize{order}"]["mode"] == mode for r in records), len(records), 1 / 3)
    assert all(r["blur1"] for r in records)
    assert_share(sum(r["blur2"] is not None for r in records), len(records), SECOND_BLUR[preset])
    sincs = [r["final"]["sinc"] for r in records if r["final"]["sinc"]]
    assert_share(len(sincs), len(records), 0.8)
    assert_fills([s["cutoff"] for s in sincs], math.pi / 3, math.pi)
    assert_share(sum(r["final"]["order"] == "jpeg_first" for r in records), len(records), 0.5)


def assert_share(count, of, probability):
    """Within four and a half standard errors: one false alarm in some 10,000 checks, and the draws are fixed anyway."""
    assert abs(count / of - probability) < 4.5 * math.sqrt(probability * (1 - probability) / of)


def assert_fills(values, low, high):
    """All inside the range, and both ends of it are reached."""
    room = 0.02 * (high - low)
    assert low <= min(values) <= low + room and high - room <= max(values) <= high


def test_bicubic_is_the_classical_downsampling():
    hr = pictures()
    lr, (record, *_) = degrade(hr, "bicubic", seed=0)
    expected = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(lr, expected, atol=0.51 / 255, rtol=0)  # the rounding to 8 bit
    assert [step for step in STEPS if record[step]] == ["resize1"]


def test_an_undisturbed_second_order_record_gives_the_plain_resize():
    # Every step set to its identity: what is left is the resize to LR's size.
    quiet = {"kind": "gaussian", "strength": 0.0, "grey": False}
    record = {**dict.fromkeys(STEPS), "preset": "realesrgan", "scale": 4, "seed": 0}
    record |= {"resize1": {"factor": 1.0, "mode": "area"}, "noise1": quiet, "noise2": quiet}
    record |= {"final": {"order": "jpeg_first", "mode": "area", "sinc": None}}
    hr = pictures(1)[0]
    torch.testing.assert_close(apply(hr, record), F.avg_pool2d(hr, 4), atol=0.51 / 255, rtol=0)


def test_the_order_of_the_last_steps_is_the_records():
    hr = pictures(1)[0]
    record = draw("realesrgan", seed=5) | {"jpeg2": {"quality": 30}, "resize2": {"factor": 0.6, "mode": "area"}}
    finals = [{"order": order, "mode": "area", "sinc": None} for order in ("jpeg_first", "jpeg_last")]
    first, last = (apply(hr, {**record, "final": final}) for final in finals)
    unsaved = apply(hr, {**record, "jpeg2": None, "final": finals[1]})
    assert torch.equal(last, jpeg(unsaved, 30))
    assert not torch.equal(first, jpeg(unsaved, 30))


def test_the_mixture_goes_from_almost_nothing_to_heavy_and_keeps_the_size():
    hr = pictures(1, side=96)
    for scale in (1, 4):
        seeds = list(range(150))
        lr, records = degrade(hr.expand(150, -1, -1, -1), "mixture", seed=seeds, scale=scale)
        clean, _ = degrade(hr, "bicubic", seed=0, scale=scale)
        error = (lr - clean).square().mean((1, 2, 3)).sqrt() * 255
        assert lr.shape[-1] == 96 // scale
        assert error.min() < 2 and error.max() > 20
        for step in ("blur1", "resize2", "noise1", "noise2", "jpeg1", "jpeg2"):
            assert 0.15 < np.mean([record[step] is not None for record in records]) < 0.9
        for record in records:  # grain and blocks before LR is enlarged, or after
            assert record["noise1"] is None or record["resize2"] is not None
            assert record["noise1"] is None or record["noise2"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hr": torch.rand(2, 1, 8, 8)}, r"float \[B, 3, H, W\], got torch.float32 \(2, 1, 8, 8\)"),
        ({"hr": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"float \[B, 3, H, W\], got torch.uint8"),
        ({"hr": torch.rand(2, 3, 10, 8)}, r"multiples of the scale 4, got \(2, 3, 10, 8\)"),
        ({"hr": 255 * torch.rand(2, 3, 8, 8)}, r"hr in \[0, 1\], got values from"),
        ({"hr": torch.full((2, 3, 8, 8), math.nan)}, r"hr in \[0, 1\], got values from nan"),
        ({"preset": "reelesrgan"}, "one of realesrgan, .* got 'reelesrgan'; did you mean 'realesrgan'"),
        ({"seed": [1, 2, 3]}, "one for each of 2 images, got 3"),
        ({"scale": 0}, "whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_degraded_is_refused(arguments, message):
    given = {"hr": torch.rand(2, 3, 8, 8), "preset": "mild", "seed": 0, "scale": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        degrade(given.pop("hr"), given.pop("preset"), **given)


def test_mixed_seeds_differ_by_seed_and_by_id():
    seeds = {mix_seed(seed, key) for seed in range(20) for key in ("coffee/0", "coffee/1", 0, 1, "10")}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, "coffee/0") == mix_seed(1, "coffee/0")
    assert mix_seed(1, "1/0") != mix_seed(11, "/0")
