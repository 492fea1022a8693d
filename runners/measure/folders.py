"""Folders of images that something else made, matched by stem to the truth, as contexts and methods."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srgym.envs.images import image_files, image_size, read_image, to_float
from srgym.envs.sources import Sample, Source
from srgym.errors import Refusal
from srgym.runners.measure.evaluation import split_id
from srgym.runners.measure.methods import Images

__all__ = ["FolderContexts", "images_of", "match_folders"]

_NAMED = 5  # mismatches that a message spells out


class FolderContexts(Source):
    """Contexts of matched folders.

    Args:
        stems: of the images, sorted.
        lr, hr: stem to file, empty where there is no such folder.
        scale: how many times larger SR is than LR; 1 where there is no LR.
    """

    size = None

    def __init__(self, stems: Sequence[str], lr: Mapping[str, Path], hr: Mapping[str, Path], scale: int = 1) -> None:
        self.stems, self.scale, self._lr, self._hr = stems, scale, lr, hr
        self.provides = frozenset(name for name, files in (("lr", lr), ("hr", hr)) if files)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> Sample:
        stem = self.stems[index]
        lr = _read(self._lr[stem]) if self._lr else torch.zeros(3, 0, 0)
        return Sample(stem, lr, _read(self._hr[stem]) if self._hr else None)


def _read(path: Path) -> Tensor:
    return to_float(read_image(path))


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in image_files(folder):
        if path.stem in files:
            raise Refusal(f"{files[path.stem]} and {path} share a stem: images are matched by it")
        files[path.stem] = path
    return files


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
    others = {**{f"pred ({name})": paths for name, paths in predicted.items()}, "hr": truth, "lr": inputs}
    for name, paths in others.items():
        if paths:
            _check_partners(f"pred ({first})", files, name, paths)
    stems = sorted(files)
    for paths in predicted.values():
        _check_sizes(stems, paths, truth or paths)
    images = {name: Images(paths, _read, colour_fix) for name, paths in predicted.items()}
    scale = image_size(files[stems[0]])[0] // image_size(inputs[stems[0]])[0] if inputs else 1
    return FolderContexts(stems, inputs, truth, scale), images


def images_of(folder: str | Path, ids: Sequence[str]) -> Images:
    """A folder's images of contexts that come from elsewhere.

    Args:
        folder: of `ID.png` (any suffix), as `srgym evaluate save_images=true` writes it; `PHOTOGRAPH.png` will do where
            a photograph has one context.

    Raises:
        FileNotFoundError, ValueError: for a folder that isn't there or holds no image, and for contexts without one.
    """
    root = Path(folder)
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in image_files(root)}
    crops = Counter(split_id(name)[0] for name in ids)
    alone = {name: split_id(name)[0] for name in ids if crops[split_id(name)[0]] == 1}
    names = {name: name if name in files else alone.get(name, name) for name in ids}
    if lonely := [name for name, file in names.items() if file not in files]:
        more = f" and {len(lonely) - _NAMED} more" if len(lonely) > _NAMED else ""
        raise Refusal(f"expected an image of every context in {root}, named after it; there is none of "
                         f"{', '.join(lonely[:_NAMED])}{more}")  # fmt: skip
    return Images({name: files[file] for name, file in names.items()}, _read)


def _check_partners(folder: str, files: Mapping[str, Path], other: str, others: Mapping[str, Path]) -> None:
    lonely = [f"{files[stem].name} in {folder}" for stem in files if stem not in others]
    lonely += [f"{others[stem].name} in {other}" for stem in others if stem not in files]
    if lonely:
        more = f" and {len(lonely) - _NAMED} more" if len(lonely) > _NAMED else ""
        raise Refusal(f"expected the same stems in {folder} and {other}; without a partner: "
                         f"{', '.join(lonely[:_NAMED])}{more}")  # fmt: skip


def _check_sizes(stems: Sequence[str], predicted: Mapping[str, Path], truth: Mapping[str, Path]) -> None:
    for stem in stems:
        (height, width), (h, w) = image_size(predicted[stem]), image_size(truth[stem])
        if (height, width) != (h, w):
            raise Refusal(f"expected {predicted[stem]} in the size of {truth[stem]}, {w}x{h}, got {width}x{height}")
