"""The reward section's files: each is a reward that can be made, and says all that it can be told."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import srgym.configs
from srgym import rewards
from srgym.rewards.builtin import BUILTIN
from srgym.rewards.registry import REWARDS

FILES = sorted((Path(srgym.configs.__file__).parent / "reward").glob("*.yaml"))
OURS = {
    "psnr_y", "ssim_y", "ms_ssim", "structure_texture", "dists", "lpips", "random", "compass",
    "niqe", "musiq", "maniqa", "clipiqa", "topiq_nr", "liqe",
}  # fmt: skip


def test_every_reward_of_the_core_has_a_file() -> None:
    assert {path.stem for path in FILES} >= OURS


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_file_names_options_that_the_reward_has(path: Path) -> None:
    section = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(section, dict)
    if "sum" in section:
        assert set(section["sum"]) <= set(BUILTIN)
        return
    name = section.pop("name")
    assert name in BUILTIN
    assert set(section) <= set(inspect.signature(REWARDS.find(name)).parameters)


@pytest.mark.parametrize("stem", ["psnr_y", "ssim_y", "ms_ssim", "structure_texture", "random"])
def test_file_makes_the_reward(stem: str) -> None:
    path = next(path for path in FILES if path.stem == stem)
    assert rewards.make(OmegaConf.load(path)).name == stem
