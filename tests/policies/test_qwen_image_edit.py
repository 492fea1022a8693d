"""Qwen-Image-Edit-2509: our Euler is the stock pipeline's call, and image tokens keep their positions in space."""

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock

from srgym.policies.diffusers_common import pack, reference_size, unpack
from srgym.policies.qwen_image_edit import restore_positions


@pytest.fixture
def small_reference(monkeypatch):
    """The stock pipeline resizes its input to 1024^2 and 384^2 pixels whatever it makes: here to 32^2 and 64^2."""
    monkeypatch.setattr(stock, "VAE_IMAGE_SIZE", 32 * 32)
    monkeypatch.setattr(stock, "CONDITION_IMAGE_SIZE", 64 * 64)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, "blurred")])
def test_euler_is_the_stock_call(make_tiny, picture, start, integrate, small_reference, guidance, negative):
    lr, image = picture
    policy = make_tiny("qwen_image_edit", negative_prompt=negative)
    cond = policy.encode({"lr": lr})
    noise = start(policy, cond)
    expected = policy.pipe(
        image=[image], prompt="sharp", negative_prompt=negative, true_cfg_scale=guidance, latents=pack(noise),
        height=32, width=32, num_inference_steps=3, output_type="latent",
    ).images  # fmt: skip
    ours = integrate(policy, cond, noise, guidance=guidance)
    # float32 rounding over 3 steps; latents are of order 1
    torch.testing.assert_close(ours, unpack(expected, 8, 8), rtol=0, atol=1e-5)


def test_2511_is_the_stock_call_too(make_tiny, tiny, picture, start, integrate, small_reference):
    """Its transformer modulates the reference's tokens as clean ones; alone and beside another context alike."""
    lr, image = picture
    pipe = tiny("qwen_image_edit")
    older = pipe.transformer
    pipe.transformer = type(older).from_config(older.config, zero_cond_t=True).eval()
    pipe.transformer.load_state_dict(older.state_dict())
    policy = make_tiny("qwen_image_edit", pipe=pipe)
    cond = policy.encode({"lr": torch.cat([lr, 1 - lr])})
    noise = start(policy, cond)
    expected = policy.pipe(
        image=[image], prompt="sharp", true_cfg_scale=1.0, latents=pack(noise[:1]), height=32, width=32,
        num_inference_steps=3, output_type="latent",
    ).images  # fmt: skip
    ours = integrate(policy, cond, noise)
    torch.testing.assert_close(ours[:1], unpack(expected, 8, 8), rtol=0, atol=1e-5)
    t = torch.tensor([0.5, 0.5])
    with torch.no_grad():
        assert (
            policy.velocity(noise, t, cond) - make_tiny("qwen_image_edit").velocity(noise, t, cond)
        ).abs().max() > 1e-4
    policy.add_adapters(rank=2, alpha=4)
    policy.velocity(noise, t, cond).square().mean().backward()
    assert all(p.grad is not None for _, p in policy.trainable_parameters())


def test_decoded_is_the_stock_image(make_tiny, picture, start, integrate, small_reference):
    lr, image = picture
    policy = make_tiny("qwen_image_edit")
    cond = policy.encode({"lr": lr})
    noise = start(policy, cond)
    expected = policy.pipe(
        image=[image], prompt="sharp", true_cfg_scale=1.0, latents=pack(noise), height=32, width=32,
        num_inference_steps=2, output_type="pt",
    ).images  # fmt: skip
    with torch.no_grad():
        sr = policy.decode(integrate(policy, cond, noise, steps=2), cond)
    torch.testing.assert_close(sr, expected, rtol=0, atol=1e-5)
    assert torch.equal(policy.sigmas(1, cond), torch.tensor([1.0, 0.0]))


def test_a_reference_of_another_size_is_the_stock_one(make_tiny, picture, start, integrate, monkeypatch):
    """The stock pipeline's large reference beside a small target: here 64^2 beside 32^2, equal but for the resizing
    filter, so the enlarged image is handed to the stock pipeline."""
    lr, _ = picture
    policy = make_tiny("qwen_image_edit", reference=64)
    cond = policy.encode({"lr": lr})
    assert cond["reference"].shape == (1, 4, 16, 16)
    monkeypatch.setattr(
        policy.pipe, "prepare_latents", lambda *args: (args[-1], pack(cond["reference"])), raising=True
    )  # fmt: skip
    monkeypatch.setattr(stock, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(stock, "CONDITION_IMAGE_SIZE", 64 * 64)
    noise = start(policy, cond)
    expected = policy.pipe(
        image=[picture[1]], prompt="sharp", true_cfg_scale=1.0, latents=pack(noise), height=32, width=32,
        num_inference_steps=2, output_type="latent",
    ).images  # fmt: skip
    ours = integrate(policy, cond, noise, steps=2)
    torch.testing.assert_close(ours, unpack(expected, 8, 8), rtol=0, atol=1e-5)


def test_reference_size_is_the_stock_rule():
    for height, width, side in [(512, 512, 1024), (480, 640, 1024), (300, 1000, 384), (32, 32, 32)]:
        expected = stock.calculate_dimensions(side * side, width / height)
        assert reference_size(height, width, side) == expected[::-1]


def test_prompts_of_other_lengths_do_not_mix(make_tiny, picture, start):
    """A short prompt is padded beside a long one, and the mask keeps its velocity what it is alone."""
    lr = picture[0].expand(2, -1, -1, -1)
    policy = make_tiny("qwen_image_edit")
    both = policy.encode({"lr": lr, "prompt": ["a", "a much longer prompt than the other"]})
    alone = policy.encode({"lr": lr[:1], "prompt": ["a"]})
    assert not both["mask"].all() and both["embeds"].shape[1] > alone["embeds"].shape[1]
    noise, t = start(policy, both), torch.tensor([0.7, 0.2])
    with torch.no_grad():
        together = policy.velocity(noise, t, both)[:1]
        torch.testing.assert_close(together, policy.velocity(noise[:1], t[:1], alone), rtol=0, atol=1e-5)


def test_image_tokens_have_three_dimensional_positions(tiny, picture):
    """Without its token types the text encoder numbers image tokens like words: silently another embedding."""
    pipe = tiny("qwen_image_edit")
    encoder = pipe.text_encoder
    hooks, marked = encoder._forward_pre_hooks.copy(), getattr(encoder, "_positions_restored", False)
    encoder._forward_pre_hooks.clear()
    encoder._positions_restored = False
    seen = []
    handle = encoder.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        stock_embeds, _ = pipe.encode_prompt(prompt=["sharp"], image=[picture[1].resize((64, 64))])
        restore_positions(encoder)
        restore_positions(encoder)
        embeds, _ = pipe.encode_prompt(prompt=["sharp"], image=[picture[1].resize((64, 64))])
        assert len(encoder._forward_pre_hooks) == 1
    finally:
        handle.remove()
        encoder._forward_pre_hooks.clear()
        encoder._forward_pre_hooks.update(hooks)
        encoder._positions_restored = marked
    time, row, column = seen[-1][-3:, 0]
    assert not torch.equal(row, column) and not torch.equal(row, time)
    if seen[0] is None or seen[0].shape[0] < 3 or torch.equal(seen[0][-1], seen[0][-2]):
        assert (embeds - stock_embeds).abs().max() > 1e-4
    else:  # a diffusers that passes the token types itself
        torch.testing.assert_close(embeds, stock_embeds)


def test_lora_leaves_out_what_never_gets_a_gradient(make_tiny, shake, start, picture):
    policy = make_tiny("qwen_image_edit")
    policy.add_adapters(rank=2, alpha=8, targets=(*policy.lora_targets, "txt_mlp.net.2", "img_mlp.net.2"))
    shake(policy)
    names = {name for name, _ in policy.trainable_parameters()}
    assert any("transformer_blocks.0.attn.to_add_out" in name for name in names)
    assert any("transformer_blocks.1.attn.add_k_proj" in name for name in names)
    for unused in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.2"):
        assert not any(f"transformer_blocks.1.{unused}" in name for name in names)
    cond = policy.encode({"lr": picture[0]})
    policy.velocity(start(policy, cond), torch.tensor([0.5]), cond).square().sum().backward()
    for name, parameter in policy.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
