"""A compiled transformer computes what a plain one does, forwards and backwards, under each adapter."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["sd3", "flux_controlnet"])
def test_compiled_blocks_change_neither_velocities_nor_gradients(kind, make_tiny, monkeypatch):
    # Captured and differentiated as always, but run by PyTorch's own kernels: compiling C++ takes minutes.
    whole = torch.nn.Module.compile
    compiled_blocks = []

    def captured(module):
        compiled_blocks.append(module)
        whole(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", captured)
    results = [_velocities_and_gradients(make_tiny(kind, scale=4, compiled=compiled)) for compiled in (False, True)]
    assert compiled_blocks and all("Transformer" in type(block).__name__ for block in compiled_blocks)
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=1e-4)


def _velocities_and_gradients(policy):
    """Those of `default` (away from the base), `old` and the base, then the gradients of the LoRA."""
    policy.add_adapters(rank=2, alpha=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in policy.core.named_parameters():
            if ".lora_B.default" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    cond = policy.encode({"lr": torch.rand(2, 3, 8, 8, generator=generator), "prompt": None})
    x = torch.randn((2, *policy.latent_shape(cond)), generator=generator)
    found = []
    for name in ("default", "old", None):
        with policy.adapter(name):
            found.append(policy.velocity(x, torch.tensor([0.3, 0.8]), cond))
    assert not torch.equal(found[0], found[1])
    found[0].square().mean().backward()
    gradients = [p.grad for _, p in policy.trainable_parameters() if p.grad is not None]
    assert gradients
    return [*(v.detach() for v in found), *gradients]
