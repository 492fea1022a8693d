"""The projection's training on contexts, from the command's settings to a reward that loads."""

import json
from pathlib import Path

import pytest

from srgym import rewards
from srgym.policies.compact import CompactPolicy
from srgym.rewards.base import Incompatible
from srgym.runners.reward_models.lucid import LucidSettings
from srgym.runners.reward_models.stage import train_scorer

ENV = {"name": "photographs", "size": 32, "crops": 40}
SMALL = {"model": "lucid", "contexts": 6, "validation_contexts": 3, "steps": 5, "batch": 4, "hidden": 8, "out": 4}


def test_it_leaves_a_reward_and_what_it_can(tiny_policy: CompactPolicy, tmp_path: Path) -> None:
    found = train_scorer(SMALL, tiny_policy, ENV, tmp_path, 0)
    told = json.loads((tmp_path / "scorer" / "held_out.json").read_text())
    assert set(told["projection"]) == set(told["embedder"]) == {
        "paired", "swapped", "above_swapped", "above_changed_0.04", "above_changed_0.1", "above_changed_0.25",
    }  # fmt: skip
    assert told["projection"].items() <= found.items() and found["updates"] == 5
    reward = rewards.make("lucid_consistency", weights=str(tmp_path / "scorer"))
    assert reward.score.projection[0].out_features == 8
    again = train_scorer(SMALL, tiny_policy, ENV, tmp_path / "again", 0)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_settings_and_contexts_that_cannot_do_are_refused(tiny_policy: CompactPolicy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scorer\.areas"):
        LucidSettings(areas=(0.5, 1.0))
    with pytest.raises(ValueError, match="compass, finpercep, lucid, got 'clip'"):
        train_scorer({"model": "clip"}, tiny_policy, ENV, tmp_path, 0)
    folder = tmp_path / "real"
    folder.mkdir()
    with pytest.raises(Incompatible, match="needs 'hr'"):
        train_scorer(SMALL, tiny_policy, {"name": "lr_folder", "path": str(_pictures(folder))}, tmp_path, 0)


def _pictures(folder: Path) -> Path:
    import torch

    from srgym.files import to_png

    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(to_png(torch.rand(3, 16, 16)))
    return folder
