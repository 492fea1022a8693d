"""Photographs in, larger photographs out: for people who have a policy and images."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from srgym import policies
from srgym.envs.images import SUFFIXES, BadImage, has_transparency, image_files, is_grey, read_image, to_float
from srgym.errors import MissingFile, Refusal
from srgym.files import check_folder, to_bytes, to_png, write_whole
from srgym.policies.base import Policy
from srgym.policies.colour import MODES, fix_colour
from srgym.policies.export import import_lora
from srgym.policies.registry import POLICIES
from srgym.policies.tiling import upscale_bands
from srgym.sealed import Damaged, read_object
from srgym.settings import Count, Natural, check_arguments

__all__ = ["Upscaling", "default_policy", "find_policy", "plan", "upscale_file"]

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Upscaling:
    """How photographs are upscaled; it is written into each of them.

    Attributes:
        sampling: "mean" (the policy's prediction, where it makes one: the most accurate) or "sample".
        steps, seed, solver: of a sample.
        colour: the colour fix, see `fix_colour`.
        tile, overlap: in LR pixels, see `srgym.policies.tiling.upscale`.
        adapter: under which a policy with adapters runs.
    """

    sampling: Literal["mean", "sample"] = "sample"
    steps: Count = 6
    seed: Natural = 0
    solver: str = "euler"
    colour: str = "none"
    tile: Count = 192
    overlap: Natural = 32
    adapter: str = "ema"

    def __post_init__(self) -> None:
        check_arguments(Upscaling, vars(self), "")
        if self.colour not in MODES:
            raise Refusal(f"colour is one of {', '.join(MODES)}, got '{self.colour}'")


def default_policy(runs: Path = Path("runs")) -> Path | None:
    """The final policy of the newest complete run of the main job (OARS) under `runs`, or None."""
    complete = []
    for path in runs.glob("*/run.json"):
        try:
            record = read_object(path, {})
            main = read_object(path.parent / "config.json", {}).get("name") == "oars"
        except Damaged as damage:
            warnings.warn(f"passing over a damaged run: {damage}", stacklevel=2)
            continue
        folder = path.parent / str(record.get("policy", ""))
        if main and record.get("complete") and (folder / "policy.json").is_file():
            complete.append((path.stat().st_mtime, folder))
    return max(complete)[1] if complete else None


def find_policy(named: str, scale: int | None = None, model: str | None = None, lora: str | None = None) -> Policy:
    """A policy from a saved one's folder, a run's folder, or a name.

    Args:
        named: which.
        scale: of a policy by name.
        model: the folder, in diffusers' format, of a policy by name over a foundation model.
        lora: a LoRA as diffusers writes it, file or folder, put onto that policy.

    Raises:
        FileNotFoundError: for what is neither.
        ValueError: for a LoRA that isn't in diffusers' format, or doesn't fit.
    """
    policy = _find(named, scale, model)
    if lora is not None:
        if (Path(lora) / "policy.json").is_file():
            raise Refusal(f"lora={lora} is a saved policy, which knows its model: give it as policy={lora}")
        import_lora(policy, lora)
    return policy


def _find(named: str, scale: int | None, model: str | None) -> Policy:
    folder = policies.policy_folder(named)
    if (folder / "policy.json").is_file():
        return policies.load(folder)
    if POLICIES.knows(named):
        options = {"scale": scale, "path": model}
        return policies.make(named, **{key: value for key, value in options.items() if value is not None})
    known = ", ".join(policies.available())
    raise MissingFile(f"policy={named}: expected the folder of a policy or of a run, or one of {known}")


def plan(inputs: Sequence[str], out: str | None, scale: int, overwrite: bool) -> list[tuple[Path, Path]]:
    """Which file becomes which.

    Args:
        inputs: image files and folders of them.
        out: for one file a file too, by its suffix, else a folder; None: beside what is given, `photo_x4.png` and
            `folder_x4/`.

    Raises:
        FileNotFoundError: for an input that isn't there.
        ValueError: if two images would become one file, or a file is there already and `overwrite` is off.
    """
    if out is not None:
        check_folder(Path(out).parent if _names_a_file(out) else Path(out))
    pairs: list[tuple[Path, Path]] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            target = Path(out) if out else path.with_name(f"{path.resolve().name}_x{scale}")
            pairs += [(file, (target / file.relative_to(path)).with_suffix(".png")) for file in image_files(path)]
        elif not path.is_file():
            raise MissingFile(f"expected an image or a folder of images at {path}, found nothing")
        elif out is None:
            pairs.append((path, path.with_name(f"{path.stem}_x{scale}.png")))
        else:
            single = len(inputs) == 1 and _names_a_file(out)
            pairs.append((path, Path(out) if single else Path(out) / f"{path.stem}.png"))
    pairs = _apart(pairs)
    _check_targets(pairs, overwrite)
    return pairs


def _names_a_file(out: str) -> bool:
    return Path(out).suffix.lower() in SUFFIXES and not Path(out).is_dir()


def _apart(pairs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Of images that differ in their suffix alone, each but the first becomes a file that names its suffix."""
    apart: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for source, target in pairs:
        free = target.with_name(f"{target.stem}_{source.suffix[1:].lower()}.png") if target in taken else target
        taken.add(free)
        apart.append((source, free))
    return apart


def _check_targets(pairs: Sequence[tuple[Path, Path]], overwrite: bool) -> None:
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        if target in taken:
            raise Refusal(f"{taken[target]} and {source} would both become {target}: rename one of them")
        taken[target] = source
        if target.exists() and (not overwrite or target.resolve() == source.resolve()):
            hint = "it is the input itself" if target.resolve() == source.resolve() else "overwrite=true replaces it"
            raise Refusal(f"{target} is there already ({hint}); or choose another place with out=")


def upscale_file(
    policy: Policy, source: Path, target: Path, how: Upscaling, progress: Callable[[float], None] | None = None
) -> None:
    """Super-resolve one image file into a PNG that keeps the colour profile and the EXIF data.

    The orientation is applied to the pixels and then dropped from the EXIF data. How it was made is in the PNG's text
    `srgym`, as JSON.

    A grey image stays grey. The suffix of the target says its format.

    Raises:
        BadImage: for a file that can't be used, naming it; one with transparency is among them.
    """
    lr = to_float(read_image(source))
    if has_transparency(source):
        raise BadImage(f"{source}: expected an image without transparency, which would be lost: flatten it first")
    grey = is_grey(source)
    with policy.adapter(how.adapter):
        bands = upscale_bands(
            policy, lr, steps=how.steps, seed=how.seed, solver=how.solver, tile=how.tile, overlap=how.overlap,
            mean=how.sampling == "mean", progress=progress,
        )  # fmt: skip
        bands = (band.mean(0, keepdim=True).expand_as(band) if grey else band for band in bands)
        if how.colour == "none":
            sr = torch.cat([to_bytes(band) for band in bands], 1)  # a quarter of what the floats would take
        else:
            floats = torch.cat(list(bands), 1)[None]
            reference = F.interpolate(lr[None], size=floats.shape[-2:], mode="bicubic", align_corners=False)
            sr = to_bytes(fix_colour(floats, reference.clamp(0, 1), how.colour)[0])
    described = {"policy": getattr(policy, "name", type(policy).__name__), "scale": policy.scale, **asdict(how)}
    _write(sr, target, _kept(source), described)


def _kept(source: Path) -> dict[str, Any]:
    """The colour profile, where it is one of RGB pixels (others describe pixels that were converted), and the EXIF."""
    with Image.open(source) as image:
        kept: dict[str, Any] = {}
        if image.mode in ("RGB", "RGBA", "P") and image.info.get("icc_profile"):
            kept["icc_profile"] = image.info["icc_profile"]
        exif = image.getexif()
        if exif:
            exif.pop(_ORIENTATION, None)
            kept["exif"] = exif.tobytes()
    return kept


def _write(sr: Tensor, target: Path, kept: dict[str, Any], described: dict[str, Any]) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("srgym", json.dumps(described))
    content = to_png(sr, pnginfo=text, **kept)
    if target.suffix.lower() != ".png":
        buffer = io.BytesIO()
        kind = Image.registered_extensions()[target.suffix.lower()]
        Image.open(io.BytesIO(content)).save(buffer, kind, quality=95, **kept)
        content = buffer.getvalue()
    write_whole(target, content)
