"""Images of one's own, for runs on folders."""

from pathlib import Path

import pytest
from PIL import Image
from skimage import data


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten corners of a photograph, 128 pixels wide, in `hr`, and their LR, 32 pixels wide, in `lr`."""
    root = tmp_path_factory.mktemp("images")
    for name in ("hr", "lr"):
        (root / name).mkdir()
    for i in range(10):
        image = Image.fromarray(data.astronaut()[10 * i : 10 * i + 128, 100 : 100 + 128])
        image.save(root / "hr" / f"{i}.png")
        image.resize((32, 32), Image.Resampling.BICUBIC).save(root / "lr" / f"{i}.png")
    return root
