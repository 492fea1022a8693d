"""A reward that lives in another package: five lines there, nothing here."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

THEIRS = '''
from srgym.rewards import register_reward

@register_reward("{name}", differentiable=True, range=(0.0, 1.0))
def plain(sr, hr):
    """One minus the mean absolute error."""
    return 1 - (sr - hr).abs().mean((1, 2, 3))
'''


def install(folder: Path, package: str, source: str, entries: str) -> Path:
    """Build a wheel and install it with pip into a folder of its own."""
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package}.py", source)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", f"[srgym.rewards]\n{entries}\n")
        archive.writestr(f"{info}/RECORD", "")
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    places = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_reward_of_an_installed_package(tmp_path: Path) -> None:
    site = install(tmp_path, "theirs", THEIRS.format(name="plain"), "plain = theirs:plain")
    done = run(
        site,
        """
import torch
from srgym import rewards
assert "plain" in rewards.available()
row = next(row for row in rewards.listing() if row["name"] == "plain")
print(row["origin"], row["licence"], row["needs"], row["differentiable"], row["doc"])
hr = torch.full((2, 3, 8, 8), 0.5)
print(rewards.make("plain")(hr + torch.tensor([0.25, 0.5])[:, None, None, None], hr=hr).total.tolist())
""",
    )
    assert done.stdout.splitlines() == [
        "theirs not stated ['hr'] True One minus the mean absolute error.",
        "[0.75, 0.5]",
    ], done.stderr


@pytest.mark.parametrize(
    ("source", "entries", "expected"),
    [
        ("import a_missing_library", "lost = theirs:lost", "can't be imported: ModuleNotFoundError"),
        (
            "",
            "lost = theirs:lost",
            "reward 'theirs:lost': module 'theirs' has no 'lost'",
        ),
        (THEIRS.format(name="plain"), "psnr_y = theirs:plain", "Peak signal-to-noise ratio"),
    ],
)
def test_broken_or_clashing_package_doesnt_hide_the_others(
    tmp_path: Path, source: str, entries: str, expected: str
) -> None:
    site = install(tmp_path, "theirs", source, entries)
    name = entries.split(" ")[0]
    code = f"from srgym import rewards; print({{row['name']: row['doc'] for row in rewards.listing()}}['{name}'])"
    done = run(site, code)
    assert expected in done.stdout, done.stderr
    if name == "psnr_y":
        assert "the reward 'psnr_y' of theirs:plain is hidden by srgym.rewards.fidelity:psnr_y" in done.stderr
