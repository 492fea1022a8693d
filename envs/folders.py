"""Folders of images as sources: ground truth alone, pairs, or LR alone."""

import logging
import os
import warnings
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.envs.crops import Crop, random_crop, tiles, whole
from srgym.envs.degradation import degrade, mix_seed
from srgym.envs.images import BadImage, ImageCache, image_files, image_size, read_image, to_float
from srgym.envs.inventory import Unusable, by_name, captions_of, count_note, match, sort_out, split_names
from srgym.envs.sources import Sample, Source
from srgym.errors import Refusal

__all__ = ["FolderSource", "HRFolder", "LRFolder", "PairedFolders"]

_log = logging.getLogger(__name__)
_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class FolderOptions:
    """What all folders take.

    Attributes:
        scale: how many times larger HR is than LR.
        size: side of a crop in HR pixels, a multiple of `scale`; None: whole images, once each.
        crops: how many of each image. In split "train" they lie at random places in one of eight orientations, drawn
            from (seed, id); in the others they are tiles side by side, as many as fit.
        seed: of places, orientations and degradations.
        split: "train", "validation", "test" (whole images, by their names) or "all".
        validation_share, test_share: of the images, at least one of each; the rest train.
        captions: a folder of NAME.txt, what each image shows; None: no prompts.
        on_bad_image: "error" looks at every header, and refuses what can't be used; "skip" decodes every image once
            (about 10 ms a megapixel), leaves out what can't be used and says so: `skipped`.
    """

    scale: int = 4
    size: int | None = None
    crops: int = 1
    seed: int = 0
    split: str = "all"
    captions: _Path | None = None
    on_bad_image: str = "error"
    validation_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or self.scale < 1:
            raise Refusal(f"scale is a whole number of at least 1, got {self.scale!r}")
        if self.size is not None and (self.size < self.scale or self.size % self.scale):
            raise Refusal(f"size is None or a multiple of the scale {self.scale}, got {self.size}")
        if self.crops < 1:
            raise Refusal(f"crops is at least 1, got {self.crops}")
        if self.on_bad_image not in ("error", "skip"):
            raise Refusal(f"on_bad_image is 'error' or 'skip', got '{self.on_bad_image}'")

    @property
    def unit(self) -> int:
        """The side in HR pixels that an image must have at least."""
        return self.size or self.scale


class FolderSource(Source):
    """What the folders share: sorting out, splits, crops, captions.

    A subclass calls `_take` with its files, says how large LR is and makes LR and HR of a crop.

    Attributes:
        skipped: why each image was left out, by name; empty unless `on_bad_image="skip"`.
        note: what is known of a folder of this name against what was found, or "".
    """

    def _take(
        self, folder: Path, files: Mapping[str, tuple[Path, ...]], alone: Mapping[str, str], options: FolderOptions
    ) -> None:
        self._options, self._cache = options, ImageCache()
        self.folder, self.scale = folder, options.scale
        sides, bad = sort_out(files, self._inspect)
        self.skipped = dict(sorted({**alone, **bad}.items()))
        total = len(files) + len(alone)
        if self.skipped and (options.on_bad_image == "error" or not sides):
            raise Unusable(str(folder), self.skipped, total)
        if self.skipped:
            warnings.warn(
                f"{folder}: {len(self.skipped)} of {total} images skipped: {_shown(self.skipped)}", stacklevel=4
            )
        self._tell_count(len(sides))
        shares = (options.validation_share, options.test_share)
        self.images = split_names(sides, options.split, str(folder), *shares)
        self._files = {name: files[name] for name in self.images}
        self._sides = {name: sides[name] for name in self.images}
        self._captions = None if options.captions is None else captions_of(self.images, Path(options.captions))
        self.provides = self._given | (frozenset() if self._captions is None else {"prompt"})
        self._ends = list(accumulate(len(self._places(name)) for name in self.images))
        self.size = self._common_size()

    _given: frozenset[str]

    @abstractmethod
    def _inspect(self, files: tuple[Path, ...]) -> tuple[int, int]:
        """(height, width) in HR pixels of an image that can be used; raises BadImage for another."""

    @abstractmethod
    def _made(self, name: str, crop: Crop, label: str) -> tuple[Tensor, Tensor | None, dict[str, Any] | None]:
        """LR, HR and the record of how LR was made, of a crop in HR pixels."""

    def _look(self, path: Path) -> tuple[int, int]:
        """(height, width) of an image: by its header, or by decoding it where bad ones are to be skipped."""
        if self._options.on_bad_image == "error":
            return image_size(path)
        height, width = read_image(path).shape[1:]
        return height, width

    def _tell_count(self, count: int) -> None:
        self.note, agrees = count_note(self.folder, count)
        if not agrees:
            warnings.warn(f"{self.note}: results won't be comparable with published ones", stacklevel=5)
        elif self.note:
            _log.info(self.note)

    def _common_size(self) -> tuple[int, int] | None:
        if self._options.size is not None:
            return (self._options.size // self.scale,) * 2
        seen = {(height // self.scale, width // self.scale) for height, width in self._sides.values()}
        return seen.pop() if len(seen) == 1 else None

    def _places(self, name: str) -> list[Crop | None]:
        """An image's crops in HR pixels on LR's grid; None for one that is drawn when it is asked for."""
        height, width = self._sides[name]
        size, scale = self._options.size, self.scale
        if size is None:
            return [whole(height, width, scale)]
        if self._options.split == "train":
            return [None] * self._options.crops
        windows = tiles(height // scale, width // scale, size // scale, self._options.crops)
        return [_enlarged(tile, scale) for tile in windows]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, got {index}")
        place = bisect_right(self._ends, index)
        name, number = self.images[place], index - (self._ends[place - 1] if place else 0)
        label = f"{name}/{number}"
        crop = self._places(name)[number] or self._drawn(name, label)
        lr, hr, record = self._made(name, crop, label)
        return Sample(label, lr, hr, None if self._captions is None else self._captions[name], record)

    def _drawn(self, name: str, label: str) -> Crop:
        assert self._options.size is not None
        height, width = (side // self.scale for side in self._sides[name])
        return _enlarged(
            random_crop(height, width, self._options.size // self.scale, self._options.seed, label), self.scale
        )

    def prompts(self) -> list[str]:
        """The different captions."""
        return sorted(set((self._captions or {}).values()))

    def _read(self, path: Path, name: str, factor: int) -> Tensor:
        """An image's pixels, of the size that its header announced."""
        pixels = self._cache.read(path)
        height, width = (side // factor for side in self._sides[name])
        if pixels.shape[1] < height or pixels.shape[2] < width:
            raise BadImage(
                f"{path}: expected {height} x {width} as at the start, got {pixels.shape[1]} x {pixels.shape[2]}"
            )
        return pixels


class HRFolder(FolderSource):
    """A folder of ground truth, subfolders too; LR is made of it by the degradation pipeline.

    Args:
        path: the folder.
        preset: how LR is made; a name of `degradation.PRESETS`.
        scale, size, crops, seed, split, captions, on_bad_image, validation_share, test_share: see `FolderOptions`.
            Whole images are cut to a multiple of the scale at the bottom and the right.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: for a folder without images, or with images that can't be used, naming them.
    """

    _given = frozenset({"lr", "hr", "degradation"})

    def __init__(
        self,
        path: _Path | None,
        preset: str = "realesrgan",
        scale: int = 4,
        size: int | None = None,
        crops: int = 1,
        seed: int = 0,
        split: str = "all",
        captions: _Path | None = None,
        on_bad_image: str = "error",
        validation_share: float = 0.1,
        test_share: float = 0.1,
    ) -> None:
        shares = (validation_share, test_share)
        options = FolderOptions(scale, size, crops, seed, split, captions, on_bad_image, *shares)
        degrade(torch.zeros(1, 3, scale, scale), preset, seed=0, scale=scale)  # refuses a bad preset now
        self.preset = preset
        folder = _folder(path, "hr_folder", "path")
        self._take(folder, _named(image_files(folder), folder), {}, options)

    def _inspect(self, files: tuple[Path, ...]) -> tuple[int, int]:
        height, width = self._look(files[0])
        _check_room(files[0], height, width, self._options.unit)
        return height, width

    def _made(self, name: str, crop: Crop, label: str) -> tuple[Tensor, Tensor | None, dict[str, Any] | None]:
        hr = to_float(crop.of(self._read(self._files[name][0], name, 1)))
        lr, records = degrade(hr[None], self.preset, seed=[mix_seed(self._options.seed, label)], scale=self.scale)
        return lr[0], hr, records[0]


class PairedFolders(FolderSource):
    """A folder of LR images and one of their ground truth, matched by name (path without extension), never by order.

    Args:
        lr, hr: the folders. Each may hold subfolders, the same in both.
        lr_suffix, hr_suffix: what names end with in one folder alone: "x4" where 0801x4.png belongs to 0801.png.
        scale, size, crops, seed, split, captions, on_bad_image, validation_share, test_share: see `FolderOptions`.

    Raises:
        FileNotFoundError: when a folder is missing.
        ValueError: for two files of one name, and, unless these are to be skipped, for images without a partner, of
            which HR isn't exactly `scale` times LR, or that can't be read; naming the files.
    """

    _given = frozenset({"lr", "hr"})

    def __init__(
        self,
        lr: _Path | None,
        hr: _Path | None,
        lr_suffix: str = "",
        hr_suffix: str = "",
        scale: int = 4,
        size: int | None = None,
        crops: int = 1,
        seed: int = 0,
        split: str = "all",
        captions: _Path | None = None,
        on_bad_image: str = "error",
        validation_share: float = 0.1,
        test_share: float = 0.1,
    ) -> None:
        shares = (validation_share, test_share)
        options = FolderOptions(scale, size, crops, seed, split, captions, on_bad_image, *shares)
        lr_root, hr_root = _folder(lr, "paired_folders", "lr"), _folder(hr, "paired_folders", "hr")
        pairs, alone = match(
            by_name(image_files(lr_root), lr_root, lr_suffix), by_name(image_files(hr_root), hr_root, hr_suffix)
        )
        self._take(lr_root, pairs, alone, options)

    def _inspect(self, files: tuple[Path, ...]) -> tuple[int, int]:
        (low, across), (high, wide) = self._look(files[0]), self._look(files[1])
        scale = self._options.scale
        if (high, wide) != (low * scale, across * scale):
            raise BadImage(
                f"expected HR of {scale} times the sides of LR, got {files[0]} of {low} x {across} and {files[1]} of "
                f"{high} x {wide}"
            )
        _check_room(files[1], high, wide, self._options.unit)
        return high, wide

    def _made(self, name: str, crop: Crop, label: str) -> tuple[Tensor, Tensor | None, dict[str, Any] | None]:
        lr, hr = self._files[name]
        return (
            to_float(_shrunk(crop, self.scale).of(self._read(lr, name, self.scale))),
            to_float(crop.of(self._read(hr, name, 1))),
            None,
        )


class LRFolder(FolderSource):
    """A folder of LR images without ground truth, subfolders too: only rewards without a reference can score them.

    Args:
        path: the folder.
        scale, size, crops, seed, split, captions, on_bad_image, validation_share, test_share: see `FolderOptions`;
            `size` is in pixels of the SR image that is wanted.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: for a folder without images, or with images that can't be used, naming them.
    """

    _given = frozenset({"lr"})

    def __init__(
        self,
        path: _Path | None,
        scale: int = 4,
        size: int | None = None,
        crops: int = 1,
        seed: int = 0,
        split: str = "all",
        captions: _Path | None = None,
        on_bad_image: str = "error",
        validation_share: float = 0.1,
        test_share: float = 0.1,
    ) -> None:
        shares = (validation_share, test_share)
        options = FolderOptions(scale, size, crops, seed, split, captions, on_bad_image, *shares)
        folder = _folder(path, "lr_folder", "path")
        self._take(folder, _named(image_files(folder), folder), {}, options)

    def _inspect(self, files: tuple[Path, ...]) -> tuple[int, int]:
        scale = self._options.scale
        height, width = self._look(files[0])
        _check_room(files[0], height, width, self._options.unit // scale)
        return height * scale, width * scale

    def _made(self, name: str, crop: Crop, label: str) -> tuple[Tensor, Tensor | None, dict[str, Any] | None]:
        pixels = self._read(self._files[name][0], name, self.scale)
        return to_float(_shrunk(crop, self.scale).of(pixels)), None, None


def _folder(path: _Path | None, source: str, argument: str) -> Path:
    if path is None or not str(path):
        raise Refusal(f"source '{source}' needs its argument '{argument}', a folder of images, got none")
    return Path(path).expanduser()


def _named(files: list[Path], root: Path) -> dict[str, tuple[Path, ...]]:
    """Files by their path without extension; where several would share that, they keep theirs."""
    plain: dict[str, list[Path]] = {}
    for path in files:
        relative = path.relative_to(root)
        plain.setdefault(relative.parent.joinpath(relative.stem).as_posix(), []).append(path)
    named: dict[str, tuple[Path, ...]] = {}
    for name, holders in plain.items():
        for path in holders:
            named[name if len(holders) == 1 else path.relative_to(root).as_posix()] = (path,)
    return named


def _check_room(path: Path, height: int, width: int, least: int) -> None:
    if min(height, width) < least:
        raise BadImage(f"{path}: expected at least {least} x {least} pixels, got {height} x {width}")


def _scaled(crop: Crop, by: Callable[[int], int]) -> Crop:
    return replace(crop, top=by(crop.top), left=by(crop.left), height=by(crop.height), width=by(crop.width))


def _enlarged(crop: Crop, scale: int) -> Crop:
    return _scaled(crop, lambda side: side * scale)


def _shrunk(crop: Crop, scale: int) -> Crop:
    return _scaled(crop, lambda side: side // scale)


def _shown(why: Mapping[str, str]) -> str:
    more = f"; and {len(why) - 5} more" if len(why) > 5 else ""
    return "; ".join(list(why.values())[:5]) + more
