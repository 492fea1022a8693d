"""FLUX Kontext and FLUX with a ControlNet: our Euler is the stock pipeline's call."""

import pytest
import torch

from srgym.policies.diffusers_common import pack, unpack

CALLS = {
    "flux_kontext": lambda image: {"image": image, "max_area": 32 * 32, "_auto_resize": False},
    "flux_controlnet": lambda image: {"control_image": image, "controlnet_conditioning_scale": 0.7},
}


@pytest.fixture(params=["flux_kontext", "flux_controlnet"])
def kind(request):
    return request.param


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (3.0, "blurred")])
def test_euler_is_the_stock_call(make_tiny, picture, start, integrate, kind, guidance, negative):
    lr, image = picture
    policy = make_tiny(kind, negative_prompt=negative, embedded_guidance=3.5)
    cond = policy.encode({"lr": lr})
    noise = start(policy, cond)
    call = {
        "prompt": "sharp", "negative_prompt": negative, "true_cfg_scale": guidance, "guidance_scale": 3.5,
        "latents": pack(noise), "height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 16,
        **CALLS[kind](image),
    }  # fmt: skip
    ours = integrate(policy, cond, noise, guidance=guidance)
    # float32 rounding over 3 steps; latents are of order 1
    torch.testing.assert_close(ours, unpack(policy.pipe(**call, output_type="latent").images, 8, 8), rtol=0, atol=1e-5)
    with torch.no_grad():
        sr = policy.decode(ours, cond)
    torch.testing.assert_close(sr, policy.pipe(**call, output_type="pt").images, rtol=0, atol=1e-5)


def test_the_embedded_guidance_is_an_input(make_tiny, picture, start, kind):
    low, high = (make_tiny(kind, embedded_guidance=g) for g in (1.0, 6.0))
    cond = low.encode({"lr": picture[0]})
    noise = start(low, cond)
    with torch.no_grad():
        one, other = (policy.velocity(noise, torch.tensor([0.5]), cond) for policy in (low, high))
    assert (one - other).abs().max() > 1e-5


def test_the_schedule_shifts_with_the_size_of_the_target(make_tiny, kind):
    """mu grows with the packed tokens, so a larger image spends more of its steps at high noise."""
    policy = make_tiny(kind)
    small, large = (
        policy.sigmas(4, policy.encode({"lr": torch.zeros(1, 3, side, side)})) for side in (16, 64)
    )  # fmt: skip
    assert small[0] == large[0] == 1 and small[-1] == large[-1] == 0
    assert (large[1:-1] > small[1:-1]).all()


def test_kontext_takes_a_reference_of_another_size(make_tiny, picture, start, integrate):
    """The stock pipeline can't resize to it itself: its output at a reference of 64^2 is a target of 32^2 here."""
    policy = make_tiny("flux_kontext", reference=64)
    cond = policy.encode({"lr": picture[0]})
    assert cond["reference"].shape == (1, 4, 16, 16)
    noise = start(policy, cond)
    expected = policy.pipe(
        image=cond["reference"], prompt="sharp", guidance_scale=2.5, latents=pack(noise), height=32, width=32,
        max_area=32 * 32, _auto_resize=False, num_inference_steps=2, max_sequence_length=16, output_type="latent",
    ).images  # fmt: skip
    ours = integrate(policy, cond, noise, steps=2)
    torch.testing.assert_close(ours, unpack(expected, 8, 8), rtol=0, atol=1e-5)


def test_a_controlnet_in_its_own_folder(make_tiny, saved, picture, start, tmp_path, tiny):
    pipe = tiny("flux_controlnet")
    pipe.controlnet.save_pretrained(tmp_path / "controlnet")
    together = make_tiny("flux_controlnet", on_disk=True)
    apart = make_tiny("flux_controlnet", on_disk=True, controlnet=str(tmp_path / "controlnet"))
    cond = together.encode({"lr": picture[0]})
    noise = start(together, cond)
    with torch.no_grad():
        one, other = (policy.velocity(noise, torch.tensor([0.5]), cond) for policy in (together, apart))
    assert torch.equal(one, other)
    assert apart.config["controlnet"] == str(tmp_path / "controlnet")
    with pytest.raises(FileNotFoundError, match=r"expected a FLUX ControlNet in .*missing"):
        make_tiny("flux_controlnet", on_disk=True, controlnet=str(tmp_path / "missing"))


def test_gradients_of_earlier_steps_pass_through_the_controlnet(make_tiny, picture, start):
    """DRaFT with more than one step: x itself depends on the LoRA, and the ControlNet reads x."""
    policy = make_tiny("flux_controlnet")
    cond = policy.encode({"lr": picture[0]})
    x = start(policy, cond).requires_grad_()
    t = torch.tensor([0.5])
    (through,) = torch.autograd.grad(policy.velocity(x, t, cond).square().sum(), x)
    with torch.no_grad():
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        step = 1e-2
        ahead, behind = (policy.velocity(x + s * direction, t, cond).square().sum() for s in (step, -step))
    # a central difference of float32: good to a percent
    torch.testing.assert_close((through * direction).sum(), (ahead - behind) / (2 * step), rtol=2e-2, atol=1e-2)
