"""Probes on a tiny policy: what each measures, against what is known of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from srgym.envs.preferences import Preferences
from srgym.rewards import register_reward
from srgym.runners.reproduce.probes import PROBES, Place

ENV = {"name": "photographs", "split": "train", "preset": "mild", "scale": 4, "size": 32, "crops": 4, "seed": 0}
POLICY = {"name": "compact", "weights": None, "encoder_width": 8, "encoder_depth": 1, "width": 8, "middle": 8}
TEST = {"split": "test"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, ENV, POLICY, {"psnr_y": {"name": "psnr_y"}}, limit=6, steps=2)


def mean(frame, metric: str, method: str = "policy") -> float:
    return float(frame[(frame["metric"] == metric) & (frame["method"] == method)]["value"].mean())


@register_reward("consistent_with_lr", range=(-1.0, 0.0))
def consistent(sr, lr):
    """Minus how far the image, made small, is from LR."""
    small = F.interpolate(sr, size=lr.shape[-2:], mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return -(small - lr).abs().mean((1, 2, 3))


def test_a_scaled_lora_leads_from_the_base_to_the_trained_policy_and_beyond(place: Place, tmp_path: Path):
    trained = place.base()
    trained.add_adapters(4, 8)
    with torch.no_grad():
        for _, parameter in trained.trainable_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained.sync("default", "ema")
    trained.save(tmp_path / "trained")
    weights = [0.0, 0.5, 1.0, 2.0]
    frame = PROBES["evaluate"](place, lora=str(tmp_path / "trained"), weights=weights, test=TEST)
    whole = PROBES["evaluate"](place, policy=str(tmp_path / "trained"), test=TEST)
    base = PROBES["evaluate"](place, test=TEST)
    assert mean(frame, "psnr_y", "dose 0") == pytest.approx(mean(base, "psnr_y"), abs=1e-9)
    # Added to the weights, or run beside them.
    assert mean(frame, "psnr_y") == pytest.approx(mean(whole, "psnr_y"), abs=1e-4)
    away = [mean(frame, "distance", name) for name in ("dose 0", "dose 0.5", "policy", "dose 2")]
    assert away[0] == 0
    assert away == sorted(away) and away[1] > 0.01


def test_samples_of_no_noise_have_no_spread(place: Place):
    frame = PROBES["spread"](place, reward="psnr_y", samples=4, test=TEST)
    assert mean(frame, "pixel_spread") > 1
    assert mean(frame, "spread_over_jpeg") > 0
    still = Place(place.folder, ENV, POLICY | {"temperature": 1e-6}, place.metrics, place.limit, place.steps)
    frame = PROBES["spread"](still, reward="psnr_y", samples=4, test=TEST)
    assert mean(frame, "pixel_spread") < 0.1
    assert mean(frame, "reward_spread") < 1e-2


def test_who_sees_the_truth_notices_every_fault(place: Place):
    assert mean(PROBES["faults"](place, reward="psnr_y", test=TEST), "noticed") == 1
    found = PROBES["faults"](place, reward="finpercep", test=TEST)["value"]
    unmapped = PROBES["faults"](place, reward="finpercep", mapped=False, test=TEST)["value"]
    assert 0 < found.mean() < 1
    assert not np.allclose(found, unmapped)
    with pytest.raises(ValueError, match="mapped=false is for finpercep, which has a map; got reward 'psnr_y'"):
        PROBES["faults"](place, reward="psnr_y", mapped=False, test=TEST)


def test_only_lr_betrays_a_counterfeit(place: Place):
    """A reward of consistency with LR knows all of them; shown the image itself made small, it can know none."""
    shown = PROBES["counterfeits"](place, reward="consistent_with_lr", test=TEST)
    blind = PROBES["counterfeits"](place, reward="consistent_with_lr", own_reference=True, test=TEST)
    assert mean(shown, "noticed") > 0.9
    assert mean(blind, "noticed") == 0


def test_two_rewards_of_one_order_agree(place: Place):
    frame = PROBES["agreement"](place, of="psnr_y", over={"sum": {"psnr_y": 3.0}, "normalise": "none"}, contexts=3,
                                samples=5)  # fmt: skip
    assert len(frame) == 3
    assert np.allclose(frame["value"], 1)
    other = PROBES["agreement"](place, of="psnr_y", over="consistent_with_lr", contexts=3, samples=5)
    assert (other["value"].abs() < 0.9999).all()


def test_pairs_are_written_as_a_data_set_of_training_contexts(place: Place):
    (place.folder / "run").mkdir()
    (place.folder / "run" / "pairs.parquet").write_bytes(b"what a killed session left")
    frame = PROBES["pairs"](place, reward="psnr_y", contexts=3, samples=4, top=2)
    assert (frame["value"] > 0).all()
    written = Preferences(place.folder / "run" / "pairs.parquet")
    assert len(written) == 3 * 4
    assert written[0].lr.shape == (3, 8, 8)
