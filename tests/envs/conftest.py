"""Folders of small images for the sources, and plain arguments that make each source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def draw() -> Callable[..., Path]:
    """draw(path, height, width, seed) saves a picture of noise and returns its path."""

    def save(path: Path, height: int = 16, width: int = 16, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(height, width, seed).save(path)
        return path

    return save


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four images of 16 x 16 LR and 64 x 64 HR, with captions."""
    root = tmp_path_factory.mktemp("images")
    for name in ("lr", "hr", "texts"):
        (root / name).mkdir()
    for number in range(4):
        picture(16, 16, number).save(root / f"lr/{number}.png")
        picture(64, 64, 10 + number).save(root / f"hr/{number}.png")
        (root / f"texts/{number}.txt").write_text(f"noise number {number}, größer\n", encoding="utf-8")
    return {name: str(root / name) for name in ("lr", "hr", "texts")}


@pytest.fixture(params=["photographs", "hr_folder", "paired_folders", "lr_folder"])
def source(request: pytest.FixtureRequest, folders: dict[str, str]) -> dict[str, Any]:
    """Plain arguments of each source; LR is 16 x 16 or less, and each has prompts."""
    captions = {"captions": folders["texts"]}
    return {
        "photographs": {"name": "photographs", "size": 32, "crops": 5},
        "hr_folder": {"name": "hr_folder", "path": folders["hr"], "size": 32, "crops": 3, "preset": "mild", **captions},
        "paired_folders": {"name": "paired_folders", "lr": folders["lr"], "hr": folders["hr"], **captions},
        "lr_folder": {"name": "lr_folder", "path": folders["lr"], **captions},
    }[request.param]


@pytest.fixture
def reward(source: dict[str, Any]) -> str:
    """A reward that the source can feed."""
    return "random" if source["name"] == "lr_folder" else "psnr_y"
