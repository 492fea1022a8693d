"""Out of the house: what stock diffusers loads gives our images, and the card says what the weights are."""

import re

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock

from srgym.policies import load, make
from srgym.policies.diffusers_common import pack, unpack
from srgym.policies.export import LORA_FILE, Card, export_lora, export_merged, import_lora
from srgym.policies.merging import merge
from srgym.policies.qwen_image_edit import restore_positions
from srgym.policies.sd3 import conditioned, widen

T = torch.tensor([0.6])


@pytest.fixture(autouse=True)
def small_reference(monkeypatch):
    monkeypatch.setattr(stock, "VAE_IMAGE_SIZE", 32 * 32)
    monkeypatch.setattr(stock, "CONDITION_IMAGE_SIZE", 64 * 64)


@pytest.fixture
def trained(make_tiny, shake, kind):
    """A policy on disk whose three adapters differ; alpha is not the rank."""
    policy = make_tiny(kind, on_disk=True)
    policy.add_adapters(rank=2, alpha=7)
    for seed, name in enumerate(("default", "old", "ema")):
        shake(policy, name, seed=seed)
    return policy


def stock_call(kind, pipe, cond, noise, image):
    """The stock pipeline's own call: latents [1, C, h, w] of two steps."""
    call = {"prompt": "sharp", "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    if kind == "sd3":
        with conditioned(pipe, cond["reference"]):
            return pipe(**call, latents=noise, guidance_scale=1.0, max_sequence_length=16).images
    if kind == "flux2_klein":
        packed = pipe._patchify_latents(noise)
        own = {"max_sequence_length": 16, "text_encoder_out_layers": (1, 2), "guidance_scale": 1.0}
        return normalised(pipe, pipe(**call, **own, image=[image], latents=packed).images)
    call["latents"] = pack(noise)
    if kind == "qwen_image_edit":
        restore_positions(pipe.text_encoder)
        return unpack(pipe(**call, image=[image], true_cfg_scale=1.0).images, 8, 8)
    call |= {"guidance_scale": 2.5, "max_sequence_length": 16}
    if kind == "flux_kontext":
        return unpack(pipe(**call, image=image, max_area=32 * 32, _auto_resize=False).images, 8, 8)
    return unpack(pipe(**call, control_image=image, controlnet_conditioning_scale=0.7).images, 8, 8)


def normalised(pipe, latents):
    """What the stock FLUX.2 took out of its latents at the end, put in again."""
    spread = (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return unpack((pack(latents) - pipe.vae.bn.running_mean) / spread, *latents.shape[-2:])


def open_stock(folder):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("adapter", ["default", "ema"])
def test_the_stock_pipeline_loads_the_lora_and_gives_our_latents(
    trained, kind, saved, picture, start, integrate, tmp_path, adapter
):
    lr, image = picture
    export_lora(trained, tmp_path, adapter=adapter)
    cond = trained.encode({"lr": lr})
    noise = start(trained, cond)
    with trained.adapter(adapter):
        ours = integrate(trained, cond, noise, steps=2)
    with trained.adapter("old" if adapter == "ema" else "ema"):
        other = integrate(trained, cond, noise, steps=2)
    pipe = open_stock(saved(kind))
    if kind == "sd3":
        widen(pipe.transformer)
    pipe.load_lora_weights(tmp_path)
    theirs = stock_call(kind, pipe, cond, noise, image)
    # two implementations of the same float32 sums; the wrong adapter, or alpha = rank, is off by far more
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert (other - ours).abs().max() > 1e-2


def test_the_merged_folder_is_a_stock_pipeline(trained, kind, picture, start, integrate, tmp_path, make_tiny):
    lr, image = picture
    folder = export_merged(trained, tmp_path / "merged", adapter="ema")
    cond = trained.encode({"lr": lr})
    noise = start(trained, cond)
    with trained.adapter("ema"):
        ours = integrate(trained, cond, noise, steps=2)
    pipe = open_stock(folder)
    torch.testing.assert_close(stock_call(kind, pipe, cond, noise, image), ours, rtol=0, atol=1e-4)
    options = {name: value for name, value in trained.config.items() if name != "path"}
    again = make(kind, path=str(folder), **options)
    torch.testing.assert_close(integrate(again, cond, noise, steps=2), ours, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected an empty folder for the merged model"):
        export_merged(trained, folder, adapter="ema")


def test_a_lora_comes_back_with_its_alpha(trained, make_tiny, kind, picture, start, tmp_path):
    file = export_lora(trained, tmp_path, adapter="default")
    assert file == tmp_path / LORA_FILE and file.is_file()
    back = make_tiny(kind)
    import_lora(back, tmp_path)
    assert (back.lora.rank, back.lora.alpha) == (2, 7)
    cond = back.encode({"lr": picture[0]})
    noise = start(back, cond)
    with torch.no_grad():
        expected = trained.velocity(noise, T, cond)
        for name in ("default", "old", "ema"):
            with back.adapter(name):
                torch.testing.assert_close(back.velocity(noise, T, cond), expected, rtol=0, atol=1e-6)


def test_the_same_lora_is_the_same_file(trained, kind, tmp_path):
    """Eight writes: an order of chance between two entries passes once in 128."""
    files = {export_lora(trained, tmp_path / str(i), adapter="ema").read_bytes() for i in range(8)}
    assert len(files) == 1


def test_a_lora_without_metadata_has_alpha_equal_to_rank(trained, make_tiny, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    export_lora(trained, tmp_path, adapter="default")
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / "bare.safetensors")
    back = make_tiny(kind)
    import_lora(back, tmp_path / "bare.safetensors")
    assert (back.lora.rank, back.lora.alpha) == (2, 2)


def test_a_lora_of_another_model_is_named(trained, make_tiny, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    export_lora(trained, tmp_path, adapter="default")
    tensors = load_file(tmp_path / LORA_FILE)
    first = next(name for name in tensors if ".lora_A." in name)
    tensors[first] = tensors[first][:, 1:].contiguous()
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"LoRA tensor '{first.removeprefix('transformer.')}' in .*: expected \(2, "):
        import_lora(make_tiny(kind), tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a LoRA file at"):
        import_lora(make_tiny(kind), tmp_path / "none.safetensors")


@pytest.mark.parametrize("merged", [False, True])
def test_the_code_on_the_card_runs(trained, kind, saved, picture, tmp_path, monkeypatch, merged):
    """The card's Python, to the letter, beside the exported weights and a photograph."""
    card = Card(
        base_model=str(saved(kind)), reward="psnr_y", data="twelve photographs", command="srgym train policy=x",
        metrics={"PSNR-Y (dB)": 25.4321}, licence="apache-2.0",
    )  # fmt: skip
    folder = tmp_path / "out"
    if merged:
        export_merged(trained, folder, adapter="ema", card=card)
    else:
        export_lora(trained, folder, adapter="ema", card=card)
    text = (folder / "README.md").read_text()
    for expected in (
        "psnr_y",
        "twelve photographs",
        "srgym train policy=x",
        "| PSNR-Y (dB) | 25.43 |",
        "adapter `ema`",
    ):
        assert expected in text
    assert text.startswith(f'---\nbase_model: "{saved(kind)}"') and 'license: "apache-2.0"' in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    code = code.replace("num_inference_steps=40", "num_inference_steps=2")
    picture[1].save(folder / "photo.png")
    monkeypatch.chdir(folder)
    space = {}
    exec(code, space)
    assert space["image"].size == (32, 32)


def test_what_cannot_be_exported_is_a_sentence(make_tiny, kind, tiny_policy, tmp_path):
    with pytest.raises(ValueError, match="expected a policy with a LoRA, got a '.*' without"):
        export_lora(make_tiny(kind), tmp_path, adapter="default")
    with pytest.raises(ValueError, match="expected a policy over a diffusers pipeline, got 'compact'"):
        export_lora(tiny_policy, tmp_path, adapter="default")
    policy = make_tiny(kind)
    policy.add_adapters(rank=2)
    with pytest.raises(ValueError, match="no adapter 'best': the policy has default, old, ema"):
        export_lora(policy, tmp_path, adapter="best")
    with pytest.raises(ValueError, match="built on a pipeline object: expected path"):
        export_merged(policy, tmp_path / "merged", adapter="default")


def test_a_policy_folder_and_an_export_agree(trained, kind, picture, start, tmp_path, make_tiny):
    trained.save(tmp_path / "policy")
    export_lora(trained, tmp_path / "lora", adapter="ema")
    loaded, back = load(tmp_path / "policy"), make_tiny(kind)
    import_lora(back, tmp_path / "lora")
    cond = loaded.encode({"lr": picture[0]})
    noise = start(loaded, cond)
    with torch.no_grad(), loaded.adapter("ema"):
        expected = loaded.velocity(noise, T, cond)
        torch.testing.assert_close(back.velocity(noise, T, cond), expected, rtol=0, atol=1e-6)


@pytest.fixture
def tuned(make_tiny):
    """A policy of other weights and the same architecture, as after a fine-tuning."""

    def get(kind):
        policy = make_tiny(kind, on_disk=True)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in policy.core.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        return policy

    return get


@pytest.mark.parametrize("form", ["pipeline", "policy", "policy with a LoRA"])
def test_srgym_merge_transplants_the_lora(trained, tuned, make_tiny, shake, kind, form, picture, start, tmp_path):
    """Merged forward = fine-tuned forward + LoRA forward, whatever form the fine-tuned model has on disk."""
    trained.save(tmp_path / "lora")
    into, expected = tuned(kind), tuned(kind)
    if form == "pipeline":
        export_merged(into, tmp_path / "into", adapter=None)
    elif form == "policy":
        into.save(tmp_path / "into")
    else:
        into, expected = make_tiny(kind, on_disk=True), make_tiny(kind, on_disk=True)
        into.add_adapters(rank=3, alpha=2)
        shake(into, "ema", seed=8)
        into.save(tmp_path / "into")
        expected.add_deltas(into.adapter_deltas("ema"))
    expected.add_deltas(trained.adapter_deltas("ema"))
    report = merge(tmp_path / "lora", tmp_path / "into", tmp_path / "out", adapter="ema")
    assert report.changed == len(trained.adapter_deltas())
    assert (report.worst is None) if kind == "sd3" and form != "pipeline" else (report.worst <= 1e-5)
    options = {name: value for name, value in trained.config.items() if name != "path"}
    merged = make(kind, path=str(tmp_path / "out"), **options) if form == "pipeline" else load(tmp_path / "out")
    assert not merged.has_adapters
    cond = merged.encode({"lr": picture[0]})
    noise = start(merged, cond)
    with torch.no_grad():
        v = merged.velocity(noise, T, cond)
        torch.testing.assert_close(v, expected.velocity(noise, T, cond), rtol=0, atol=1e-5)
        assert (v - into.velocity(noise, T, cond)).abs().max() > 1e-3


def test_a_transplant_into_another_model_is_refused_by_name(trained, kind, saved, tmp_path, tiny):
    """For SD3 the model that wasn't widened; for the others one with a tensor less, which the LoRA leaves alone."""
    trained.save(tmp_path / "lora")
    if kind == "sd3":
        into, name = saved(kind), "pos_embed.proj.weight"
    else:
        pipe, into, name = tiny(kind), tmp_path / "into", "proj_out.bias"
        if kind == "flux2_klein":  # it has no bias anywhere
            name = "transformer_blocks.0.attn.norm_q.weight"
            pipe.transformer.transformer_blocks[0].attn.norm_q.weight = None
        pipe.transformer.proj_out.bias = None
        pipe.save_pretrained(into)
    with pytest.raises(ValueError, match=f"first tensor that differs is '{name}', expected .*, got"):
        merge(tmp_path / "lora", into, tmp_path / "out")
