"""Folders of images that something else made, matched by stem to the truth, as contexts and methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from srgym.envs.images import image_files, image_size, read_image, to_float
from srgym.runners.measure.methods import Images

__all__ = ["FolderContexts", "match_folders"]

_NAMED = 5  # mismatches that a message spells out


@dataclass(frozen=True)
class FolderSample:
    """One image: its stem, its LR and its HR as far as there are some."""

    id: str
    lr: Tensor | None
    hr: Tensor | None
    prompt: None = None
    degradation: None = None


@dataclass(frozen=True)
class FolderContexts:
    """Contexts of matched folders, for `srgym.runners.measure.evaluation.evaluate`.

    Attributes:
        stems: of the images, sorted. lr, hr: stem to file, empty where there is no such folder.
    """

    stems: Sequence[str]
    lr: Mapping[str, Path]
    hr: Mapping[str, Path]

    @property
    def provides(self) -> frozenset[str]:
        return frozenset(name for name, files in (("lr", self.lr), ("hr", self.hr)) if files)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> FolderSample:
        stem = self.stems[index]
        lr, hr = (_read(files[stem]) if files else None for files in (self.lr, self.hr))
        return FolderSample(stem, lr, hr)


def _read(path: Path) -> Tensor:
    return to_float(read_image(path))


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} share a stem: images are matched by it")
        found[path.stem] = path
    return found


def match_folders(
    pred: Mapping[str, str | Path],
    hr: str | Path | None = None,
    lr: str | Path | None = None,
    colour_fix: str = "unknown",
) -> tuple[FolderContexts, dict[str, Images]]:
    """Match folders by the files' stems.

    Args:
        pred: by method, the folder of its images. hr, lr: the folders of the truth and of the inputs, if any.
        colour_fix: what was done to the images, for the record.

    Returns:
        The contexts, and each method's images.

    Raises:
        FileNotFoundError, ValueError: for a folder that isn't there or holds no image, stems that have no partner, or
            an image of another size than its truth; each names the files.
    """
    predicted = {name: _by_stem(Path(folder)) for name, folder in pred.items()}
    truth, inputs = (_by_stem(Path(folder)) if folder else {} for folder in (hr, lr))
    first, files = next(iter(predicted.items()))
    others = {**{f"pred ({name})": found for name, found in predicted.items()}, "hr": truth, "lr": inputs}
    for name, found in others.items():
        if found:
            _check_partners(f"pred ({first})", files, name, found)
    stems = sorted(files)
    for found in predicted.values() if truth else ():
        _check_sizes(stems, found, truth)
    images = {name: Images(found, partial(_read), colour_fix) for name, found in predicted.items()}
    return FolderContexts(stems, inputs, truth), images


def _check_partners(one: str, files: Mapping[str, Path], other: str, others: Mapping[str, Path]) -> None:
    lonely = [f"{files[stem].name} in {one}" for stem in files if stem not in others]
    lonely += [f"{others[stem].name} in {other}" for stem in others if stem not in files]
    if lonely:
        more = f" and {len(lonely) - _NAMED} more" if len(lonely) > _NAMED else ""
        raise ValueError(f"expected the same stems in {one} and {other}; without a partner: "
                         f"{', '.join(lonely[:_NAMED])}{more}")  # fmt: skip


def _check_sizes(stems: Sequence[str], predicted: Mapping[str, Path], truth: Mapping[str, Path]) -> None:
    for stem in stems:
        (height, width), (h, w) = image_size(predicted[stem]), image_size(truth[stem])
        if (height, width) != (h, w):
            raise ValueError(f"expected {predicted[stem]} in the size of {truth[stem]}, {w}x{h}, got {width}x{height}")
