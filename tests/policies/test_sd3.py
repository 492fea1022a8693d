"""SD3: the stock pipeline with a widened first convolution is our Euler; fresh channels change nothing."""

import pytest
import torch

from srgym.policies.sd3 import conditioned, widen


@pytest.fixture
def taught(make_tiny):
    """A policy whose added channels are no longer zero, as after a cold start."""

    def get(**options):
        policy = make_tiny("sd3", **options)
        weight = policy.transformer.pos_embed.proj.weight
        with torch.no_grad():
            weight[:, 4:] = 0.1 * torch.randn(weight[:, 4:].shape, generator=torch.Generator().manual_seed(3))
        return policy

    return get


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, "blurred")])
def test_euler_is_the_stock_call(taught, picture, start, integrate, guidance, negative):
    policy = taught(negative_prompt=negative)
    cond = policy.encode({"lr": picture[0]})
    noise = start(policy, cond)
    call = {
        "prompt": "sharp", "negative_prompt": negative, "guidance_scale": guidance, "latents": noise, "height": 32,
        "width": 32, "num_inference_steps": 3, "max_sequence_length": 16,
    }  # fmt: skip
    with conditioned(policy.pipe, cond["reference"]):
        latents = policy.pipe(**call, output_type="latent").images
        images = policy.pipe(**call, output_type="pt").images
    ours = integrate(policy, cond, noise, guidance=guidance)
    # float32 rounding over 3 steps; latents are of order 1
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(policy.decode(ours, cond), images, rtol=0, atol=1e-5)


def test_a_fresh_policy_is_the_text_to_image_model(make_tiny, tiny, picture, start, integrate):
    """The added channels start at zero: what comes out is the untouched pipeline's own image."""
    policy = make_tiny("sd3")
    cond = policy.encode({"lr": picture[0]})
    noise = start(policy, cond)
    stock = tiny("sd3")
    assert stock.transformer.config.in_channels == 4
    expected = stock(
        prompt="sharp", guidance_scale=1.0, latents=noise, height=32, width=32, num_inference_steps=3,
        max_sequence_length=16, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(integrate(policy, cond, noise), expected, rtol=0, atol=1e-5)


def test_the_lr_image_can_be_learnt_by_lora_alone(make_tiny, shake, picture, start):
    policy = make_tiny("sd3")
    policy.add_adapters(rank=2, alpha=8)
    shake(policy)
    cond, other = policy.encode({"lr": picture[0]}), policy.encode({"lr": 1 - picture[0]})
    noise, t = start(policy, cond), torch.tensor([0.5])
    with torch.no_grad():
        learnt = (policy.velocity(noise, t, cond) - policy.velocity(noise, t, other)).abs().max()
        with policy.adapter(None):
            base = (policy.velocity(noise, t, cond) - policy.velocity(noise, t, other)).abs().max()
    assert base == 0 and learnt > 1e-4


def test_widening_happens_once_and_refuses_other_models(tiny):
    transformer = tiny("sd3").transformer
    widen(transformer)
    weight = transformer.pos_embed.proj.weight
    widen(transformer)
    assert transformer.pos_embed.proj.weight is weight and transformer.config.in_channels == 8
    transformer.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="expected a transformer with 4 input channels, or 8 once widened, got 9"):
        widen(transformer)


def test_the_schedule_is_shifted_statically(make_tiny):
    """sigma' = 3 sigma / (1 + 2 sigma), whatever the size."""
    policy = make_tiny("sd3")
    small, large = (policy.sigmas(5, policy.encode({"lr": torch.zeros(1, 3, side, side)})) for side in (16, 32))
    assert torch.equal(small, large) and small[0] == 1 and small[-1] == 0
    assert small[2] > 0.6
