"""FLUX.2 klein: our Euler is the stock pipeline's call."""

import pytest
import torch

from srgym.policies.diffusers_common import pack, unpack


def stock(policy, noise, image, steps=3, **call):
    return policy.pipe(
        prompt="sharp", latents=policy.pipe._patchify_latents(noise), height=32, width=32, num_inference_steps=steps,
        max_sequence_length=16, text_encoder_out_layers=(1, 2), image=image, **call,
    ).images  # fmt: skip


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, "")])
def test_euler_is_the_stock_call(make_tiny, picture, start, integrate, guidance, negative):
    lr, image = picture
    policy = make_tiny("flux2_klein", negative_prompt=negative)
    cond = policy.encode({"lr": lr})
    noise = start(policy, cond)
    ours = integrate(policy, cond, noise, guidance=guidance)
    bn = policy.vae.bn
    spread = (bn.running_var + policy.vae.config.batch_norm_eps).sqrt()
    raw = unpack(pack(ours) * spread + bn.running_mean, 8, 8)  # the stock pipeline gives them so
    call = {"image": [image], "guidance_scale": guidance}
    # float32 rounding over 3 steps; latents are of order 1
    torch.testing.assert_close(raw, stock(policy, noise, **call, output_type="latent"), rtol=0, atol=1e-5)
    with torch.no_grad():
        sr = policy.decode(ours, cond)
    torch.testing.assert_close(sr, stock(policy, noise, **call, output_type="pt"), rtol=0, atol=1e-5)


def test_the_schedule_is_the_stock_one_at_any_number_of_steps(make_tiny, picture):
    policy = make_tiny("flux2_klein")
    cond = policy.encode({"lr": picture[0]})
    for steps in (1, 2, 4, 30):
        times = policy.sigmas(steps, cond)
        assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0
        assert (times.diff() < 0).all()


def test_a_reference_of_another_size(make_tiny, picture, start):
    policy = make_tiny("flux2_klein", reference=64)
    cond = policy.encode({"lr": picture[0]})
    assert cond["reference"].shape == (1, 4, 16, 16)
    noise = start(policy, cond)
    with torch.no_grad():
        assert policy.velocity(noise, torch.tensor([0.5]), cond).shape == noise.shape
    with pytest.raises(ValueError, match="reference is at least 32 pixels, got 16"):
        make_tiny("flux2_klein", reference=16)
