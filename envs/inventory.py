"""What a folder holds before any of it is used: pairs by name, images that can't be used, splits, known counts."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from srgym.envs.images import BadImage
from srgym.errors import MissingFile, Refusal

__all__ = ["SPLITS", "Unusable", "by_name", "captions_of", "count_note", "match", "sort_out", "split_names"]

SPLITS = ("all", "train", "validation", "test")

_T = TypeVar("_T", bound=Hashable)
_V = TypeVar("_V")

# Folder names (letters and digits alone) of published test sets, and how many images each has.
_KNOWN = (
    (re.compile("drealsr"), "DRealSR", 93),
    (re.compile("realsr(?!gan)"), "RealSR", 100),
    (re.compile("div2k(v2)?val(?!id)"), "DIV2K-val", 3000),
    (re.compile("realset80"), "RealSet80", 80),
    (re.compile("reallq250"), "RealLQ250", 250),
    (re.compile("reallr200"), "RealLR200", 200),
)


class Unusable(Refusal):
    """Images of a folder that can't be used; the message names them and says why."""

    def __init__(self, where: str, why: Mapping[str, str], of: int) -> None:
        shown = "; ".join(list(why.values())[:5])
        more = f"; and {len(why) - 5} more" if len(why) > 5 else ""
        super().__init__(
            f"{where}: expected images that can all be used, got {len(why)} of {of} that can't "
            f"(on_bad_image=skip leaves them out): {shown}{more}"
        )


def by_name(files: Sequence[Path], root: Path, suffix: str = "") -> dict[str, Path]:
    """Files by their path under `root` without extension, and without `suffix` at its end.

    Composed and decomposed accents are one name: file systems disagree on them. A file that lacks the suffix keeps its
    name, in angle brackets, so that it can't be taken for another's partner.

    Raises:
        ValueError: when two files have one name; which of them is meant can't be told.
    """
    named: dict[str, Path] = {}
    for path in files:
        relative = path.relative_to(root)
        name = unicodedata.normalize("NFC", relative.parent.joinpath(relative.stem).as_posix())
        name = name.removesuffix(suffix) if name.endswith(suffix) else f"<{name}>"
        if name in named:
            raise Refusal(f"expected one file named '{name}' in {root}, got {named[name]} and {path}: which is meant?")
        named[name] = path
    return named


def match(lr: Mapping[str, _V], hr: Mapping[str, _V]) -> tuple[dict[str, tuple[_V, _V]], dict[str, str]]:
    """Pairs of equal names, sorted, and why each of the rest has no partner; order never matters."""
    pairs = {name: (lr[name], hr[name]) for name in sorted(lr.keys() & hr.keys())}
    alone = {name: f"{lr[name]} has no HR image of its name" for name in lr.keys() - hr.keys()}
    alone |= {name: f"{hr[name]} has no LR image of its name" for name in hr.keys() - lr.keys()}
    return pairs, dict(sorted(alone.items()))


def sort_out(candidates: Mapping[_T, Any], inspect: Callable[[Any], _V]) -> tuple[dict[_T, _V], dict[_T, str]]:
    """What `inspect` says of each candidate, and the message of each for which it raises `BadImage`. Uses threads."""

    def look(candidate: Any) -> _V | BadImage:
        try:
            return inspect(candidate)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        seen = dict(zip(candidates, pool.map(look, candidates.values()), strict=True))
    bad = {name: str(result) for name, result in seen.items() if isinstance(result, BadImage)}
    good = {name: result for name, result in seen.items() if not isinstance(result, BadImage)}
    return good, bad


def split_names(
    names: Collection[str], split: str, where: str, validation_share: float = 0.1, test_share: float = 0.1
) -> list[str]:
    """The names of a split, sorted.

    Who goes where depends on the names alone (by the order of their hashes).

    Args:
        split: "train", "validation", "test", or "all".
        where: the folder, for a message.
        validation_share, test_share: of the names, rounded down, at least one unless it is 0; the rest train.

    Raises:
        ValueError: for an unknown split, shares that leave nothing to train on, or a split that has no image.
    """
    if split not in SPLITS:
        raise Refusal(f"split is one of {', '.join(SPLITS)}, got '{split}'")
    if split == "all":
        return sorted(names)
    shares = {"validation": validation_share, "test": test_share}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise Refusal(f"{where}: expected validation_share and test_share below 1 together, got {shares}")
    if shares.get(split) == 0:
        raise Refusal(f"{where}: split={split} has no image, since {split}_share is 0")
    counts = {name: max(1, int(len(names) * share + 1e-9)) if share else 0 for name, share in shares.items()}
    if sum(counts.values()) >= len(names):
        needed = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise Refusal(f"{where}: expected at least 3 images to split, {needed} and some to train on, got {len(names)}")
    mixed = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    first, second = counts["validation"], counts["validation"] + counts["test"]
    parts = {"validation": mixed[:first], "test": mixed[first:second], "train": mixed[second:]}
    return sorted(parts[split])


def captions_of(names: Collection[str], folder: Path) -> dict[str, str]:
    """The text of `folder`/NAME.txt for each name.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: naming the images that have no text.
    """
    if not folder.is_dir():
        raise MissingFile(f"expected captions as a folder of NAME.txt, got {folder}, which isn't a folder")
    lacking = [name for name in sorted(names) if not (folder / f"{name}.txt").is_file()]
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise Refusal(f"{folder}: expected a caption NAME.txt for each image, got none for {shown}")
    return {name: (folder / f"{name}.txt").read_text(encoding="utf-8").strip() for name in names}


def count_note(folder: Path, count: int) -> tuple[str, bool]:
    """What is known of a folder of this name, against what is found: a sentence and whether they agree.

    The innermost of the last three parts of the path that is the name of a published test set counts; ("", True) for
    any other folder.
    """
    for part in reversed(folder.absolute().parts[-3:]):
        plain = re.sub(r"[^a-z0-9]", "", part.lower())
        for pattern, name, known in _KNOWN:
            if pattern.search(plain):
                agrees = count == known
                return f"{name} has {known} images; {folder} has {count}", agrees
    return "", True
