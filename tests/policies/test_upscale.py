"""`srgym upscale` for every foundation-model policy: by tiles, with a LoRA in diffusers' format."""

import json

import numpy as np
import torch
from PIL import Image

from srgym.envs.images import read_image, to_float
from srgym.policies import make
from srgym.policies.export import export_lora, import_lora
from srgym.policies.flux2_klein import Flux2KleinPolicy
from srgym.policies.tiling import upscale
from srgym.runners.commands.cli import main

TILES = {"tile": 48, "overlap": 16}


def test_a_photograph_by_tiles_under_an_exported_lora(make_tiny, saved, kind, shake, tmp_path, monkeypatch):
    # The published text encoder has 36 layers, of which three are read; the tiny one has two.
    monkeypatch.setitem(Flux2KleinPolicy.__init__.__kwdefaults__, "text_layers", (1, 2))
    learnt = make_tiny(kind, on_disk=True)
    learnt.add_adapters(rank=2, alpha=4)
    shake(learnt, "ema")
    lora = export_lora(learnt, tmp_path / "lora", adapter="ema")
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    settings = [f"--lora={lora}", f"model={saved(kind)}", "scale=1", "steps=2", "colour=none", "device=cpu"]
    assert main(["upscale", str(photo), f"policy={kind}", *settings, *(f"{k}={v}" for k, v in TILES.items())]) == 0
    with Image.open(tmp_path / "photo_x1.png") as image:
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert json.loads(image.text["srgym"])["policy"] == kind
    policy = make(kind, path=str(saved(kind)), scale=1)
    import_lora(policy, lora)
    with policy.adapter("ema"):
        expected = upscale(policy, to_float(read_image(photo)), steps=2, **TILES)
    assert torch.equal(found, (expected * 255).round().to(torch.uint8))
    with policy.adapter(None):
        assert not torch.equal(upscale(policy, to_float(read_image(photo)), steps=2, **TILES), expected)


def test_a_saved_policy_is_no_lora_file(make_tiny, saved, tmp_path, capsys):
    learnt = make_tiny("sd3", on_disk=True)
    learnt.add_adapters(rank=2, alpha=4)
    learnt.save(tmp_path / "policy")
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    given = [str(tmp_path / "photo.png"), "policy=sd3", f"model={saved('sd3')}", f"lora={tmp_path / 'policy'}"]
    assert main(["upscale", *given]) == 2
    assert "is a saved policy, which knows its model: give it as policy=" in capsys.readouterr().err
