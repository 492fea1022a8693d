"""What makes a pool's candidates: by name, `bicubic`, `ncnn:NAME`, `spandrel:FILE`, `policy:NAME`, `command:LINE`."""

import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym import policies
from srgym.envs.images import image_files, read_image, to_float
from srgym.errors import MissingFile, Refusal
from srgym.files import to_png
from srgym.policies import derive_seeds
from srgym.runners.judges.ncnn_networks import NcnnNetwork, find_network
from srgym.sealed import file_hash

__all__ = ["METHODS", "Method", "make_methods"]


class Method(Protocol):
    """Makes super-resolutions.

    Attributes:
        name: what tables call it. version: what it was made with: packages, and the SHA-256 of weights.
    """

    name: str
    version: str

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        """LR images [3, h, w] in [0, 1] by the name of the input, to (name, which sample, SR [3, H, W] in [0, 1])."""


class Bicubic:
    """Bicubic enlargement."""

    def __init__(self, of: str, scale: int, name: str = "bicubic") -> None:
        self.scale, self.name, self.version = scale, name, f"torch {torch.__version__.partition('+')[0]}"

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        for name, image in lr.items():
            large = F.interpolate(image[None], scale_factor=self.scale, mode="bicubic", align_corners=False)
            yield name, 0, large[0].clamp(0, 1)


class Ncnn:
    """A network of the Real-ESRGAN family whose weights lie in an installed package, on the CPU."""

    def __init__(self, of: str, scale: int, name: str | None = None) -> None:
        self._network: NcnnNetwork = find_network(of, scale)
        self.name, self.version = name or of, self._network.version

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        for name, image in lr.items():
            yield name, 0, self._network(image)


class Spandrel:
    """A network that the library spandrel knows by its weights: ESRGAN, SwinIR, SPAN and others, of safetensors."""

    def __init__(self, of: str, scale: int, name: str | None = None) -> None:
        path = Path(of).expanduser()
        if path.suffix != ".safetensors":
            raise Refusal(f"spandrel:{of}: expected a file of safetensors, since others are unpickled")
        if not path.is_file():
            raise MissingFile(f"spandrel:{of}: expected a file, found none")
        spandrel = _needed("spandrel", "spandrel")
        loaded = spandrel.ModelLoader().load_from_file(path)
        if loaded.scale != scale or loaded.input_channels != 3 or loaded.output_channels != 3:
            raise Refusal(
                f"spandrel:{of}: expected one that enlarges RGB {scale} times, got {loaded.input_channels} to "
                f"{loaded.output_channels} channels and {loaded.scale} times"
            )
        self._network = loaded.eval()
        self.name = name or path.stem
        self.version = f"{loaded.architecture.name}, spandrel {version('spandrel')}, sha256 {file_hash(path)[:12]}"

    @torch.no_grad()
    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        for name, image in lr.items():
            yield name, 0, self._network(image[None])[0].clamp(0, 1)


class Sampled:
    """One of our policies, by name or folder, under its evaluation average; `samples` of each input."""

    def __init__(
        self, of: str, scale: int, name: str | None = None, samples: int = 1, steps: int = 6, **options: Any
    ) -> None:
        folder = Path(of).expanduser()
        self._policy = policies.load(folder) if folder.is_dir() else policies.make(of, **options)
        if self._policy.scale != scale or samples < 1:
            raise Refusal(f"policy:{of}: expected a scale of {scale} and at least 1 sample, got {self._policy.scale} "
                          f"and {samples}")  # fmt: skip
        self.name, self._samples, self._steps = name or folder.name, samples, steps
        whole = hashlib.sha256()
        for key, value in sorted(self._policy.state_dict().items()):
            whole.update(key.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        self.version = f"{self._policy.name}, {steps} steps, sha256 {whole.hexdigest()[:12]}"

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        sampling = self._policy.sampling(self._steps)
        for name, image in lr.items():  # an input's draws don't depend on which others there are
            own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
            seeds = derive_seeds(seed, own, torch.arange(self._samples), stream="pool")
            with torch.no_grad(), self._policy.adapter("ema"):
                drawn = self._policy.rollout({"lr": image[None], "prompt": None}, sampling, seeds)["sr"]
            yield from ((name, k, sr) for k, sr in enumerate(drawn))


class Command:
    """Any other program: it is given a folder of LR images, and fills one with as many of the same names."""

    def __init__(self, of: str, scale: int, name: str | None = None) -> None:
        self._words = shlex.split(of)
        if not all(any(place in word for word in self._words) for place in ("{lr}", "{sr}")):
            raise Refusal(f"command:{of}: expected {{lr}} and {{sr}} in it, the folders to read and to fill")
        if name is None:
            raise Refusal(f"command:{of}: expected a name for it, as in {{command: '...', name: mine}}")
        self.scale, self.name, self.version = scale, name, of

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, int, Tensor]]:
        with tempfile.TemporaryDirectory() as place:
            low, high = Path(place) / "lr", Path(place) / "sr"
            low.mkdir()
            high.mkdir()
            for name, image in lr.items():
                (low / f"{name}.png").write_bytes(to_png(image))
            words = [word.replace("{lr}", str(low)).replace("{sr}", str(high)) for word in self._words]
            try:
                done = subprocess.run(words, capture_output=True, text=True)
            except OSError as error:
                raise Refusal(f"method '{self.name}': {words[0]}: {error.strerror}") from error
            if done.returncode:
                raise Refusal(f"method '{self.name}' failed with {done.returncode}: {done.stderr.strip()[-500:]}")
            files = {path.stem: path for path in image_files(high)} if any(high.iterdir()) else {}
            for name, image in lr.items():
                if name not in files:
                    raise Refusal(f"method '{self.name}': expected {name}.png in {{sr}}, found none")
                sr = to_float(read_image(files[name]))
                wanted = tuple(self.scale * side for side in image.shape[1:])
                if tuple(sr.shape[1:]) != wanted:
                    raise Refusal(f"method '{self.name}', {name}: expected {wanted} pixels, got {tuple(sr.shape[1:])}")
                yield name, 0, sr


METHODS: Mapping[str, Callable[..., Method]] = {
    "bicubic": Bicubic, "ncnn": Ncnn, "spandrel": Spandrel, "policy": Sampled, "command": Command,
}  # fmt: skip


def make_methods(specs: Sequence[str | Mapping[str, Any]], scale: int = 4) -> list[Method]:
    """Methods by `KIND:WHICH`, or `{KIND: WHICH, **options}`.

    Raises:
        Refusal: for an unknown kind or option, what can't be loaded, or two methods of one name.
    """
    made: list[Method] = []
    for spec in specs:
        kind, _, which = ("", "", "") if isinstance(spec, Mapping) else spec.partition(":")
        options: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {kind: which}
        kind = next((key for key in options if key in METHODS), "")
        if not kind:
            raise Refusal(
                f"expected a method as one of {', '.join(METHODS)}, each but the first with :WHICH, got {spec!r}"
            )
        of = str(options.pop(kind) or "")
        try:
            made.append(METHODS[kind](of, scale, **options))
        except TypeError as error:
            raise Refusal(f"method {spec!r}: {error}") from error
    names = [method.name for method in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not made:
        raise Refusal(
            f"expected methods of different names, got '{twice}' twice" if made else "expected methods, got none"
        )
    return made


def _needed(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        version(package)
    except PackageNotFoundError as error:
        raise MissingFile(f'this method needs {package}: pip install "srgym[pool]"') from error
    return import_module(module)
