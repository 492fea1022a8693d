"""What makes a pool's candidates: every kind on a small image, the same twice, and what can't be is refused early."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal
from srgym.runners.judges.leakage import shared_methods
from srgym.runners.judges.methods import make_methods
from srgym.runners.judges.ncnn_networks import NETWORKS, installed


@pytest.fixture
def lr():
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 4, generator=g)
    return dict(zip("ab", F.interpolate(coarse, size=(16, 16), mode="bicubic", align_corners=False).clamp(0, 1)))


def made(method, lr, seed=0):
    return {(name, sample): sr for name, sample, sr in method.run(lr, seed)}


def test_bicubic_is_the_libraries(lr):
    (method,) = make_methods(["bicubic"])
    own = made(method, lr)
    expected = F.interpolate(lr["a"][None], scale_factor=4, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    assert set(own) == {("a", 0), ("b", 0)} and torch.equal(own["a", 0], expected)


def test_a_policy_draws_the_same_whatever_else_there_is(lr):
    (method,) = make_methods([{"policy": "compact", "samples": 2, "steps": 2}])
    both, alone = made(method, lr), made(method, {"b": lr["b"]})
    assert set(both) == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}
    assert torch.equal(both["b", 1], alone["b", 1]) and not torch.equal(both["b", 0], both["b", 1])
    assert not torch.equal(both["b", 0], made(method, lr, seed=1)["b", 0])
    assert "2 steps, sha256" in method.version


# PSNR on a crop of the cat, by another program with the same weights (bicubic: 27.17 dB).
SEEN = {
    "realesrgan": 24.20, "realesrgan-anime": 24.05, "realesr-animevideo": 25.88, "span": 28.37, "span-52": 28.40,
    "clearreality": 25.66, "kendata": 25.76,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_run_on_the_cpu_the_same_every_time(name):
    pytest.importorskip("ncnn")
    if name not in installed():
        pytest.skip("its weights aren't installed")
    (method,) = make_methods([f"ncnn:{name}"])
    crop = Image.fromarray(data.chelsea()).crop((100, 50, 228, 178))
    small = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))
    lr = {"cat": torch.from_numpy(small.copy()).permute(2, 0, 1) / 255}
    first, second = made(method, lr)["cat", 0], made(method, lr)["cat", 0]
    assert torch.equal(first, second) and "sha256" in method.version
    hr = torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1) / 255
    assert 10 * math.log10(1 / float((first - hr).square().mean())) == pytest.approx(SEEN[name], abs=0.01)


def test_spandrel_reads_safetensors(lr, tmp_path):
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    network = ESRGAN(num_filters=8, num_blocks=1)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "tiny.safetensors")
    (method,) = make_methods([f"spandrel:{tmp_path / 'tiny.safetensors'}"])
    with torch.no_grad():
        expected = spandrel.ModelLoader().load_from_file(tmp_path / "tiny.safetensors")(lr["a"][None])[0].clamp(0, 1)
    assert method.name == "tiny" and torch.equal(made(method, lr)["a", 0], expected)
    (tmp_path / "old.pth").write_bytes(b"1")
    with pytest.raises(Refusal, match="expected a file of safetensors, since others are unpickled"):
        make_methods([f"spandrel:{tmp_path / 'old.pth'}"])
    with pytest.raises(MissingFile, match="expected a file, found none"):
        make_methods([f"spandrel:{tmp_path / 'none.safetensors'}"])


PROGRAM = """
import sys
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    with Image.open(path) as image:
        if path.stem not in sys.argv[4:]:
            side = int(sys.argv[3]) * image.width
            image.resize((side, side), Image.Resampling.NEAREST).save(Path(sys.argv[2]) / path.name)
"""


def program(tmp_path, *words):
    (tmp_path / "program.py").write_text(PROGRAM)
    line = " ".join([sys.executable, str(tmp_path / "program.py"), "{lr}", "{sr}", *words])
    return make_methods([{"command": line, "name": "mine"}])[0]


def test_any_program_fills_a_folder(lr, tmp_path):
    own = made(program(tmp_path, "4"), lr)
    bits = (lr["a"] * 255).round() / 255
    assert torch.allclose(own["a", 0], F.interpolate(bits[None], scale_factor=4)[0], atol=1e-6)


def test_what_a_program_gets_wrong_is_said(lr, tmp_path):
    with pytest.raises(Refusal, match=r"method 'mine': expected b\.png in {sr}, found none"):
        made(program(tmp_path, "4", "b"), lr)
    with pytest.raises(Refusal, match=r"method 'mine', a: expected \(64, 64\) pixels, got \(32, 32\)"):
        made(program(tmp_path, "2"), lr)
    with pytest.raises(Refusal, match="(?s)method 'mine' failed with 1: .*ValueError"):
        made(program(tmp_path, "four"), lr)
    with pytest.raises(Refusal, match="nothing-of-this-name: No such file"):
        made(make_methods([{"command": "nothing-of-this-name {lr} {sr}", "name": "x"}])[0], lr)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["bicubc"], "expected a method as one of bicubic, ncnn, spandrel, policy, command"),
        (["ncnn:spam"], "ncnn:spam: expected one of realesrgan"),
        (["bicubic", "bicubic"], "got 'bicubic' twice"),
        ([], "expected methods, got none"),
        ([{"command": "run {lr}", "name": "x"}], "expected {lr} and {sr} in it"),
        (["command:run {lr} {sr}"], "expected a name for it"),
        ([{"policy": "compact", "samples": 0}], "at least 1 sample"),
        ([{"bicubic": "", "steps": 3}], "steps"),
    ],
)
def test_methods_that_cannot_be_are_refused_before_any_runs(specs, message):
    with pytest.raises(ValueError, match=message):
        make_methods(specs)


def test_methods_that_a_pool_shares_with_a_benchmark_are_found():
    theirs = ["SwinIR", "Real-ESRGAN", "StableSR", "Original"]
    assert shared_methods(["realesrgan-x4plus", "span", "swinir", "compact"], theirs) == ["realesrgan-x4plus", "swinir"]
