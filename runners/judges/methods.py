"""What makes a pool's candidates: `bicubic`, `ncnn:NAME`, `spandrel:FILE`, `policy:NAME`, `diffusers:FOLDER` and
`command:LINE`; other packages' under the entry-point group `srgym.methods`."""

import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.envs.images import SUFFIXES, read_image, to_float
from srgym.errors import MissingFile, Refusal
from srgym.files import to_png
from srgym.policies import derive_seeds
from srgym.policies.diffusers_policy import open_pipeline
from srgym.policies.tiling import upscale
from srgym.registry import Registry, plain, quoted
from srgym.runners.judges import ncnn_networks
from srgym.runners.run.build import pick_device
from srgym.runners.run.upscaling import find_policy
from srgym.sealed import file_hash, read_object
from srgym.settings import Count

__all__ = ["METHODS", "Made", "Method", "make_methods"]

Made = Iterator[tuple[str, int, Tensor]]
"""Name of the input, number of the sample, SR [3, H, W] in [0, 1]."""


class Method(Protocol):
    """Makes super-resolutions of LR images. Built from `which` (what follows its kind), `scale`, and options.

    Attributes:
        name: what tables call it. version: what made it: packages, and the first 12 digits of the weights' SHA-256.
        samples: candidates that it makes of one input.
    """

    name: str
    version: str
    samples: int

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        """LR images [3, h, w] in [0, 1] by the name of the input; what is made of one doesn't depend on the others."""


class Bicubic:
    """Bicubic enlargement."""

    samples = 1

    def __init__(self, which: str, *, scale: int, name: str = "bicubic") -> None:
        if which:
            raise Refusal(f"expected 'bicubic' alone, got 'bicubic:{which}'")
        self.name, self.version, self._scale = name, f"torch {version('torch').partition('+')[0]}", scale

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        for of, image in lr.items():
            large = F.interpolate(image[None], scale_factor=self._scale, mode="bicubic", align_corners=False)
            yield of, 0, large[0].clamp(0, 1)


class Ncnn:
    """A network of the Real-ESRGAN family whose weights lie in an installed package (see `ncnn_networks.installed`).

    Args:
        threads: of the CPU.
    """

    samples = 1

    def __init__(self, which: str, *, scale: int, name: str | None = None, threads: Count = 1) -> None:
        stem = ncnn_networks.find_network(which)
        _check_scale(f"ncnn:{which}", ncnn_networks.SCALE, scale)
        package = ncnn_networks.NETWORKS[which].package
        self.name = name or which
        self.version = _version(package, "ncnn", sha256=ncnn_networks.weights_hash(stem))
        self._network = ncnn_networks.NcnnNetwork(stem, threads)

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        for of, image in lr.items():
            yield of, 0, self._network(image)


class Spandrel:
    """A network whose architecture spandrel knows by its weights: ESRGAN, SwinIR, SPAN and others."""

    samples = 1

    def __init__(self, which: str, *, scale: int, name: str | None = None, device: str = "auto") -> None:
        path, spec = Path(which).expanduser(), f"spandrel:{which}"
        if path.suffix != ".safetensors":
            raise Refusal(f"{spec}: expected a file of safetensors, since others are unpickled, which may run any code")
        if not path.is_file():
            raise MissingFile(f"{spec}: expected a file, found none")
        if find_spec("spandrel") is None:
            raise MissingFile(f"{spec} needs 'spandrel', which isn't installed: pip install 'srgym[pool]'")
        import spandrel
        from safetensors import SafetensorError

        try:
            loaded = spandrel.ModelLoader().load_from_file(path)
        except (spandrel.UnsupportedModelError, SafetensorError) as error:
            raise Refusal(f"{spec}: expected weights that spandrel knows ({error or type(error).__name__})") from error
        kind = loaded.architecture.name
        if not isinstance(loaded, spandrel.ImageModelDescriptor) or (loaded.input_channels, loaded.output_channels) != (
            3,
            3,
        ):
            raise Refusal(
                f"{spec}: expected a network of RGB images, got {kind} with {loaded.input_channels} channels in and "
                f"{loaded.output_channels} out"
            )
        _check_scale(spec, loaded.scale, scale)
        self.name, self.version = name or path.stem, f"{kind}, {_version('spandrel', sha256=file_hash(path))}"
        self._network, self._device = loaded.eval(), pick_device(device)

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        with _lent(self._network, self._device):
            for of, image in lr.items():
                with torch.no_grad():
                    sr = self._network(image[None].to(self._device))[0]
                yield of, 0, sr.float().clamp(0, 1).cpu()


class Sampled:
    """Samples of one of our policies, by name or folder, under its evaluation average.

    Args:
        samples, steps, solver: how many of each input, and how they are drawn.
        model: the folder, in diffusers' format, of a policy by name over a foundation model.
    """

    def __init__(
        self,
        which: str,
        *,
        scale: int,
        name: str | None = None,
        samples: Count = 1,
        steps: Count = 6,
        solver: str = "euler",
        model: str | None = None,
        device: str = "auto",
    ) -> None:
        policy = find_policy(which, model=model).eval()
        _check_scale(f"policy:{which}", policy.scale, scale)
        policy.sampling(steps, solver)  # refuses what can't be
        self.name, self.samples = name or Path(which).name, samples
        drawn = f"{steps} steps of {solver}"
        self.version = f"{policy.name}, {drawn}, {_version('srgym', sha256=_state_hash(policy))}"
        self._policy, self._device, self._how = policy, pick_device(device), {"steps": steps, "solver": solver}

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        with _lent(self._policy, self._device), self._policy.adapter("ema"):
            for of, image in lr.items():
                for k, own in enumerate(_seeds(seed, of, self.samples)):
                    yield of, k, upscale(self._policy, image, seed=own, **self._how)


# Of diffusers' pipelines those that enlarge an image: the part whose decoder does it, and arguments that it must have.
_PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "StableDiffusionUpscalePipeline": ("vae", {"prompt": ""}),
    "LDMSuperResolutionPipeline": ("vqvae", {}),
}
_GRID = 64  # these pipelines shrink an image to whole cells of at most so many pixels


class Diffusers:
    """A pipeline of diffusers' that enlarges images, from a folder.

    Args:
        samples, steps: how many of each input, and how many steps each takes.
        dtype: of the weights.
    """

    def __init__(
        self,
        which: str,
        *,
        scale: int,
        name: str | None = None,
        samples: Count = 1,
        steps: Count = 50,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        folder, spec = Path(which).expanduser(), f"diffusers:{which}"
        index = folder / "model_index.json"
        if not index.is_file():
            raise MissingFile(f"{spec}: expected a pipeline saved by diffusers, found no model_index.json in it")
        kind = str(read_object(index, {}).get("_class_name"))
        if kind not in _PIPELINES:
            raise Refusal(f"{spec}: expected one of {', '.join(_PIPELINES)}, got {kind}")
        part, self._extra = _PIPELINES[kind]
        widths = read_object(folder / part / "config.json", {"block_out_channels": list})["block_out_channels"]
        _check_scale(spec, 2 ** (len(widths) - 1), scale)
        weights = sorted(folder.glob("*/*.safetensors"))
        whole = hashlib.sha256("".join(map(file_hash, weights)).encode()).hexdigest()
        self.name, self.samples, self._steps, self._scale = name or folder.resolve().name, samples, steps, scale
        self.version = f"{kind}, {steps} steps in {dtype}, {_version('diffusers', sha256=whole)}"
        self._pipe = open_pipeline(folder, kind, dtype, use_safetensors=True)
        self._pipe.set_progress_bar_config(disable=True)
        self._device = pick_device(device)

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        with _lent(self._pipe, self._device):
            for of, image in lr.items():
                height, width = (self._scale * side for side in image.shape[1:])
                beside, below = (-side % _GRID for side in (image.shape[2], image.shape[1]))
                padded = F.pad(image[None], (0, beside, 0, below), mode="replicate") * 2 - 1
                for k, own in enumerate(_seeds(seed, of, self.samples)):
                    noise = torch.Generator().manual_seed(own)
                    made = self._pipe(
                        image=padded, num_inference_steps=self._steps, generator=noise, output_type="pt", **self._extra
                    ).images
                    yield of, k, made[0, :, :height, :width].float().clamp(0, 1).cpu()


class Command:
    """Any program: its line says where it finds a folder of LR images, `{lr}`, and which folder it fills, `{sr}`.

    An image keeps its name. The line is run without a shell.
    """

    samples = 1

    def __init__(self, which: str, *, scale: int, name: str) -> None:
        try:
            self._words = shlex.split(which)
        except ValueError as error:
            raise Refusal(f"command:{which}: {error}") from error
        for place in ("{lr}", "{sr}"):
            if place not in which:
                raise Refusal(f"command:{which}: expected {{lr}} and {{sr}} in it, the folders to read and to fill")
        self.name, self._scale = name, scale
        self.version = f"sha256 {hashlib.sha256(which.encode()).hexdigest()[:12]} of {which}"

    def run(self, lr: Mapping[str, Tensor], seed: int) -> Made:
        with tempfile.TemporaryDirectory() as place:
            low, high = Path(place) / "lr", Path(place) / "sr"
            low.mkdir()
            high.mkdir()
            for of, image in lr.items():
                (low / f"{of}.png").write_bytes(to_png(image))
            self._fill(low, high)
            found: dict[str, list[Path]] = {of: [] for of in lr}
            for path in sorted(high.iterdir()):
                if path.suffix.lower() in SUFFIXES and path.stem in found:
                    found[path.stem].append(path)
            for of, image in lr.items():
                yield of, 0, self._read(of, found[of], tuple(self._scale * side for side in image.shape[1:]))

    def _fill(self, low: Path, high: Path) -> None:
        words = [word.replace("{lr}", str(low)).replace("{sr}", str(high)) for word in self._words]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except OSError as error:
            raise Refusal(f"method '{self.name}': {words[0]}: {error.strerror}") from error
        if done.returncode:
            raise Refusal(f"method '{self.name}' failed with {done.returncode}: {done.stderr.strip()[-500:]}")

    def _read(self, of: str, files: Sequence[Path], size: tuple[int, ...]) -> Tensor:
        if len(files) != 1:
            met = f"{len(files)}: {', '.join(path.name for path in files)}" if files else "none"
            raise Refusal(f"method '{self.name}': expected one image '{of}.png' in {{sr}}, found {met}")
        sr = to_float(read_image(files[0]))
        if sr.shape[1:] != size:
            raise Refusal(f"method '{self.name}', {of}: expected {size} pixels, got {tuple(sr.shape[1:])}")
        return sr


METHODS: Registry[type[Method]] = Registry(
    "method",
    "a class with `run`, as srgym.runners.judges.methods.Method",
    lambda maker: isinstance(maker, type) and callable(getattr(maker, "run", None)),
    "srgym.methods",
    {
        "bicubic": f"{__name__}:Bicubic",
        "command": f"{__name__}:Command",
        "diffusers": f"{__name__}:Diffusers",
        "ncnn": f"{__name__}:Ncnn",
        "policy": f"{__name__}:Sampled",
        "spandrel": f"{__name__}:Spandrel",
    },
    supplied=("which", "scale"),
)


def make_methods(specs: Sequence[str | Mapping[str, Any]], scale: int = 4) -> list[Method]:
    """Methods by `KIND:WHICH`, or `{KIND: WHICH, **options}`, loaded and ready to run.

    Raises:
        Refusal: for an unknown kind or option with the nearest right one, what isn't there or installed, another
            scale, or two methods of one name; before anything runs.
    """
    made: list[Method] = []
    for spec in specs:
        kind, which, options = _read(spec)
        METHODS.check_options(kind, options)
        made.append(METHODS.find(kind)(which, scale=scale, **options))  # type: ignore[call-arg]
    names = [method.name for method in made]
    if not names:
        raise Refusal("expected methods that make candidates, got none")
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"expected methods of different names, got '{name}' twice: {{KIND: WHICH, name: another}}")
    return made


def _read(spec: Any) -> tuple[str, str, dict[str, Any]]:
    """Kind, which, and options."""
    if isinstance(spec, Mapping):
        options = plain(spec)
        kinds = [key for key in options if key in METHODS.names()]
        if len(kinds) != 1:
            raise Refusal(f"expected a method as {{KIND: WHICH}} with one of {', '.join(METHODS.names())}, got the "
                          f"keys {quoted(options)}")  # fmt: skip
        return kinds[0], str(options.pop(kinds[0]) or ""), options
    kind, _, which = str(spec).partition(":")
    METHODS.check_name(kind)
    if kind == "command":
        raise Refusal(f"expected a name for it, as in {{command: '{which}', name: mine}}, got '{spec}'")
    return kind, which, {}


def _check_scale(spec: str, own: int, wanted: int) -> None:
    if own != wanted:
        raise Refusal(f"{spec}: expected a method that enlarges {wanted} times, got one that does {own} times")


def _version(*packages: str, sha256: str) -> str:
    return ", ".join([*(f"{package} {version(package)}" for package in packages), f"sha256 {sha256[:12]}"])


def _state_hash(module: nn.Module) -> str:
    """SHA-256 of a module's weights under their names."""
    whole = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        whole.update(key.encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


def _seeds(seed: int, of: str, samples: int) -> list[int]:
    """One for each sample of an input, whatever other inputs there are."""
    index = int.from_bytes(hashlib.sha256(of.encode()).digest()[:7], "big")
    seeds: list[int] = derive_seeds(seed, 0, torch.tensor([index]), torch.arange(samples), stream="pool").tolist()
    return seeds


@contextmanager
def _lent(module: Any, device: torch.device) -> Iterator[None]:
    """A module on a device while it is used: a pool has many, and they needn't all be there at once."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")
