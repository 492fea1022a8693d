"""A wheel tried by itself: installed beside the dependencies of this environment, it runs away from the checkout.

python tools/try_wheel.py DIST FOLDER
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from srgym import __version__


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install a wheel into a new environment in `folder`, and run the smoke experiment and a photograph there.

    Raises:
        CalledProcessError: for the first command that fails.
    """
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # The dependencies are this environment's; its own editable srgym isn't seen, since only its finder leads to it.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(packages), str(wheel)], check=True)
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for words in (
        ["-c", "import srgym; print(srgym.__file__)"],
        ["-m", "srgym", "train", "experiment=smoke", "out=run"],
        ["-m", "srgym", "evaluate", "policy=compact", "limit=2", "out=scores"],
    ):
        subprocess.run([str(python.absolute()), *words], check=True, cwd=folder, env=own)


def main(arguments: list[str]) -> int:
    dist, folder = map(Path, arguments)
    wheel = (dist / f"srgym-{__version__}-py3-none-any.whl").absolute()
    try_wheel(wheel, folder)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, runs by itself")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
