"""What holds for every foundation-model policy: adapters that train, conditions encoded once, nothing lost on disk."""

import json

import pytest
import torch
from torch import nn

from srgym.policies import Sampling, adapters, available, derive_seeds, load, make

T = torch.tensor([0.7, 0.3])


def images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ready(make_tiny, start, kind):
    """ready(**options): a policy with shaken adapters, the condition of two contexts, and noise."""

    def get(rank=2, alpha=8, lora=True, **options):
        policy = make_tiny(kind, **options)
        if lora:
            policy.add_adapters(rank=rank, alpha=alpha)
        cond = policy.encode({"lr": images(2, 32, 32)})
        return policy, cond, start(policy, cond)

    return get


def velocity(policy, x, cond, adapter="default"):
    with torch.no_grad(), policy.adapter(adapter):
        return policy.velocity(x, T, cond)


def same(one, other):
    """Equal but for rounding: where a tensor lies in memory changes the order of a sum."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        return
    assert set(one.keys()) == set(other.keys())
    for key in one.keys():  # noqa: SIM118 - a TensorDict
        same(one[key], other[key])


def grads(policy):
    return {name: p.grad for name, p in policy.trainable_parameters()}


def test_every_policy_is_registered(kind):
    assert kind in available()


# Adapters


def test_one_nft_step_trains_the_learner_and_nothing_else(ready, shake):
    """v+ and v- around the old policy, and the reference beside: every LoRA tensor of the learner moves, the base and
    the other adapters don't, and the learner's velocity is another one after."""
    policy, cond, x = ready()
    shake(policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with torch.no_grad():
        with policy.adapter("old"):
            old = policy.velocity(x, T, cond)
        with policy.adapter(None):
            reference = policy.velocity(x, T, cond)
    assert torch.equal(old, reference)
    new = policy.velocity(x, T, cond)
    target, r = torch.zeros_like(x), 0.9
    loss = r * (new - target).square().mean() + (1 - r) * (2 * old - new - target).square().mean()
    loss.backward()
    for name, grad in grads(policy).items():
        assert grad is not None and grad.abs().sum() > 0, f"{name} trains nothing"
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable_parameters()], 1e-2)
    optimizer.step()
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"transformer.{name}" for name, _ in policy.trainable_parameters()}
    assert torch.equal(velocity(policy, x, cond, "old"), old)
    assert (velocity(policy, x, cond) - new).abs().max() > 1e-4


def test_no_layer_drops_an_adapter(ready):
    """Each LoRA layer carries all three, so that no submodule falls back to the base under `old` or `ema`."""
    policy, cond, x = ready()
    found = adapters.layers(policy.core)
    assert found and all(set(layer.lora_A) == set(adapters.ADAPTERS) for layer in found.values())
    for target in policy.lora_targets:
        assert any(name.endswith(target) for name in found), target
    hit = set()
    hooks = [
        layer.lora_A["old"].register_forward_hook(lambda *_, name=name: hit.add(name)) for name, layer in found.items()
    ]
    velocity(policy, x, cond, "old")
    assert hit == set(found)
    for hook in hooks:
        hook.remove()


def test_the_config_chooses_the_lora_targets(make_tiny, kind):
    policy = make_tiny(kind, lora_targets=["attn.to_q"])
    policy.add_adapters(rank=2)
    assert all(name.endswith("attn.to_q") for name in adapters.layers(policy.core))
    with pytest.raises(ValueError, match="LoRA target 'attn.to_x' matches no module"):
        make_tiny(kind, lora_targets=["attn.to_x"]).add_adapters(rank=2)


def test_checkpointing_changes_no_gradient_and_refuses_a_switch(ready, shake):
    one, cond, x = ready(checkpointing=False)
    two, *_ = ready(checkpointing=True)
    for policy in (one, two):
        shake(policy)
        policy.velocity(x, T, cond).square().mean().backward()
    for (name, expected), grad in zip(grads(one).items(), grads(two).values(), strict=True):
        torch.testing.assert_close(grad, expected, msg=lambda text, name=name: f"{name}: {text}")
    loss = two.velocity(x, T, cond).square().mean()
    with two.adapter("old"), pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


def test_a_bf16_base_keeps_lora_latents_and_log_probabilities_in_float32(ready, kind):
    policy, cond, x = ready(lora=False)
    exact = velocity(policy, x, cond)
    policy.to(torch.bfloat16)
    for name in policy.text_encoders:
        getattr(policy.pipe, name).float()
    policy.add_adapters(rank=2, alpha=8)
    assert policy.dtype == torch.bfloat16
    for name in adapters.ADAPTERS:
        assert {p.dtype for _, p in adapters.parameters(policy.core, name)} == {torch.float32}
    seeds = derive_seeds(0, 0, torch.arange(2))
    sampling = Sampling(steps=2, solver="sde", noise_level=0.5, record=True)
    rolled = policy.rollout({"lr": images(2, 32, 32)}, sampling, seeds)
    for key in ("x0", "sr", "latents", "log_prob", "t"):
        assert rolled[key].dtype == torch.float32 and torch.isfinite(rolled[key]).all(), key
    # bf16 has 8 bits: velocities of order 1 agree to some hundredths
    assert (velocity(policy, x, cond) - exact).abs().max() < 0.1 * exact.abs().max()
    policy.velocity(x, T, cond).square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for _, p in policy.trainable_parameters())


def test_reward_gradients_reach_the_lora_through_the_decoder(ready, shake):
    policy, _, _ = ready()
    shake(policy)
    seeds = derive_seeds(0, 0, torch.arange(2))
    rolled = policy.rollout({"lr": images(2, 32, 32)}, Sampling(steps=3, grad_last=1), seeds)
    (rolled["sr"] - 0.3).square().mean().backward()
    for name, grad in grads(policy).items():
        assert grad is not None and grad.abs().sum() > 0, name
    assert all(p.grad is None for p in policy.vae.parameters())


def test_the_transplant_is_the_other_base_with_the_lora(ready, shake):
    """OARS, section 4: learnt on the base, merged into a fine-tuned transformer. Merged forward = fine-tuned forward
    with the LoRA on top."""
    base, cond, x = ready(alpha=7)
    shake(base)
    tuned, *_ = ready(alpha=7)
    merged, *_ = ready(lora=False)
    generator = torch.Generator().manual_seed(9)
    for (_, one), (_, other) in zip(
        [(n, p) for n, p in tuned.core.named_parameters() if ".lora_" not in n],
        merged.core.named_parameters(),
        strict=True,
    ):
        noise = 0.02 * torch.randn(one.shape, generator=generator)
        one.data.add_(noise)
        other.data.add_(noise)
    shake(tuned)
    fine_tuned = velocity(merged, x, cond)
    merged.add_deltas(base.adapter_deltas())
    torch.testing.assert_close(velocity(merged, x, cond), velocity(tuned, x, cond), rtol=0, atol=1e-5)
    assert (velocity(merged, x, cond) - fine_tuned).abs().max() > 1e-3
    deltas = base.adapter_deltas()
    first = next(iter(deltas))
    deltas[first] = deltas[first][:-1]
    with pytest.raises(ValueError, match=rf"'{first}': expected a delta of"):
        merged.add_deltas(deltas)


def test_merging_into_bf16_rounds_once(ready, shake):
    policy, *_ = ready(lora=False)
    learner, *_ = ready(alpha=7)
    shake(learner)
    policy.core.bfloat16()
    deltas = learner.adapter_deltas()
    expected = {
        name: (p.float() + deltas[name]).bfloat16() for name, p in policy.core.named_parameters() if name in deltas
    }
    policy.add_deltas(deltas)
    own = dict(policy.core.named_parameters())
    assert expected and all(torch.equal(own[name], value) for name, value in expected.items())


# Conditions


def test_contexts_are_encoded_alone_and_repeated(ready, kind):
    policy, cond, _ = ready(lora=False)
    alone = policy.encode({"lr": images(2, 32, 32)[1:]})
    for key in ("reference", "embeds", "size"):
        same(alone[key][0], cond[key][1])
    seeds = derive_seeds(0, 0, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    rolled = policy.rollout({"lr": images(2, 32, 32)}, Sampling(steps=2), seeds)
    assert torch.equal(rolled["cond"]["reference"], cond["reference"].repeat_interleave(2, 0))
    assert rolled["sr"].shape == (4, 3, 32, 32) and rolled["sr"].min() >= 0 and rolled["sr"].max() <= 1


def test_the_reference_is_the_latent_of_the_image(ready):
    policy, cond, _ = ready(lora=False)
    same(policy.to_latent(images(2, 32, 32), cond), cond["reference"])


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_any_size_at_scale_4(make_tiny, kind, size):
    policy = make_tiny(kind, scale=4)
    sr = policy.predict(images(2, *size), steps=1)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])


def test_rows_are_a_memory_knob(ready):
    whole, cond, x = ready(lora=False, rows=8)
    cut, *_ = ready(lora=False, rows=1)
    torch.testing.assert_close(velocity(cut, x, cond), velocity(whole, x, cond), rtol=0, atol=1e-5)


def test_a_decode_in_tiles_is_close_and_differentiable(ready):
    whole, cond, x = ready(lora=False)
    tiled, *_ = ready(lora=False, decode_tile=32)
    with torch.no_grad():
        same(tiled.decode(x, cond), whole.decode(x, cond))
    wide = torch.cat([x, x], -1).requires_grad_()
    cond["size"] = torch.tensor([[32, 64]] * 2)
    image = tiled.decode(wide, cond)
    assert image.shape == (2, 3, 32, 64)
    image.mean().backward()
    assert wide.grad.abs().sum() > 0


def count_calls(policy, monkeypatch):
    calls = []
    encode_prompt = policy.pipe.encode_prompt
    monkeypatch.setattr(policy.pipe, "encode_prompt", lambda **kwargs: calls.append(1) or encode_prompt(**kwargs))
    return calls


def test_prompts_are_encoded_once_and_found_on_disk(make_tiny, kind, monkeypatch, tmp_path):
    obs = {"lr": images(1, 32, 32).expand(3, -1, -1, -1), "prompt": ["one", "two", "one"]}
    first = make_tiny(kind, cache=str(tmp_path))
    calls = count_calls(first, monkeypatch)
    cond = first.encode(obs)
    first.encode(obs)
    assert len(calls) == 2 and len(list(tmp_path.glob("*.safetensors"))) == 2
    second = make_tiny(kind, cache=str(tmp_path))
    calls = count_calls(second, monkeypatch)
    same(second.encode(obs), cond)
    assert not calls
    other = make_tiny(kind, cache=str(tmp_path))
    encoder = getattr(other.pipe, other.text_encoders[0])
    weight = next(encoder.parameters())
    try:  # another text encoder's embeddings are not these
        weight.data[..., 0] += 1
        third = make_tiny(kind, pipe=other.pipe, cache=str(tmp_path))
        calls = count_calls(third, monkeypatch)
        third.encode(obs)
        assert len(calls) == 2
    finally:
        weight.data[..., 0] -= 1


def test_dropped_encoders_leave_the_known_contexts(make_tiny, kind, start):
    policy = make_tiny(kind, text_encoder="drop", vae_encoder="drop", negative_prompt="")
    kept = make_tiny(kind, negative_prompt="")
    obs = {"lr": images(1, 32, 32)}
    cond = policy.encode(obs)
    assert getattr(policy.pipe, policy.text_encoders[0]) is None and isinstance(policy.vae.encoder, nn.Identity)
    same(policy.encode(obs), cond)
    same(kept.encode(obs), cond)
    x = start(policy, cond)
    with torch.no_grad():
        same(policy.decode(x, cond), kept.decode(x, cond))
    with pytest.raises(ValueError, match="vae encoder was dropped and this condition isn't in the cache"):
        policy.encode({"lr": images(1, 32, 32, seed=1)})
    with pytest.raises(ValueError, match="text encoder was dropped"):
        policy.encode({**obs, "prompt": ["another"]})


def test_offloaded_encoders_give_the_same(make_tiny, kind):
    obs = {"lr": images(1, 32, 32)}
    offloaded = make_tiny(kind, text_encoder="offload", vae_encoder="offload")
    same(offloaded.encode(obs), make_tiny(kind).encode(obs))


# On disk


def test_saved_with_adapters_names_its_base(make_tiny, kind, shake, start, saved, tmp_path):
    policy = make_tiny(kind, on_disk=True, negative_prompt="")
    policy.add_adapters(rank=2, alpha=7)
    for seed, name in enumerate(adapters.ADAPTERS):
        shake(policy, name, seed=seed)
    policy.save(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    assert described["config"]["path"] == str(saved(kind)) and not (tmp_path / "transformer").exists()
    loaded = load(tmp_path)
    assert loaded.config == policy.config
    cond = policy.encode({"lr": images(2, 32, 32)})
    x = start(policy, cond)
    seen = [velocity(policy, x, cond, name) for name in (*adapters.ADAPTERS, None)]
    for name, expected in zip((*adapters.ADAPTERS, None), seen, strict=True):
        same(velocity(loaded, x, cond, name), expected)
    assert all((seen[0] - other).abs().max() > 1e-4 for other in seen[1:])  # raw, old, average and base all differ


@pytest.mark.parametrize("change", ["merged", "trained in full"])
def test_a_base_that_changed_is_saved_too(make_tiny, kind, shake, start, tmp_path, change):
    policy = make_tiny(kind, on_disk=True)
    if change == "merged":
        learner = make_tiny(kind, on_disk=True)
        learner.add_adapters(rank=2, alpha=7)
        shake(learner)
        policy.add_deltas(learner.adapter_deltas())
        policy.add_adapters(rank=2)
    else:
        assert all(p.requires_grad for p in policy.core.parameters())
        with torch.no_grad():
            policy.trainable_parameters()[0][1].add_(0.1)
    policy.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.has_adapters == (change == "merged")
    cond = policy.encode({"lr": images(2, 32, 32)})
    x = start(policy, cond)
    same(velocity(loaded, x, cond), velocity(policy, x, cond))
    loaded.save(tmp_path / "again")
    same(velocity(load(tmp_path / "again"), x, cond), velocity(policy, x, cond))


@pytest.mark.parametrize("detached", [False, True])
def test_the_unconditional_velocity_may_have_no_gradient(make_tiny, detached):
    """Guidance g is g times the conditional velocity's gradient, and 1 - g times the other's unless it has none."""
    policy = make_tiny("sd3", scale=4, negative_prompt="blurry")
    policy.add_adapters(rank=2, alpha=4)
    cond = policy.encode({"lr": images(2, 32, 32)})
    x = torch.randn(2, *policy.latent_shape(cond), generator=torch.Generator().manual_seed(0))
    learner = [p for name, p in policy.trainable_parameters() if ".lora_B." in name]

    def gradient(v):
        return torch.cat([g.flatten() for g in torch.autograd.grad(v.sum(), learner)])

    guided = policy.guided_velocity(x, T, cond, 3.0, detached=detached)
    ours = gradient(policy.velocity(x, T, cond))
    other = policy.guided_velocity(x, T, cond, 0.0)
    expected = 3.0 * ours if detached else 3.0 * ours - 2.0 * gradient(other)
    torch.testing.assert_close(gradient(guided), expected, rtol=1e-3, atol=1e-5)
    assert float((3.0 * ours - expected).abs().max()) > 1e-3 or detached


# Sentences


def test_guidance_needs_a_negative_prompt(ready, kind, tiny_policy):
    policy, cond, x = ready(lora=False)
    with pytest.raises(ValueError, match=rf"guidance 2.0 needs a negative prompt: expected policy '{kind}' built with"):
        policy.guided_velocity(x, T, cond, 2.0)
    with pytest.raises(ValueError, match="policy 'compact' has no classifier-free guidance"):
        tiny_policy.predict(images(1, 8, 8), guidance=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale and rows are at least 1, got 0 and 8"),
        ({"decode_tile": 8}, "decode_tile is at least 32 pixels, got 8"),
        ({"text_encoder": "away"}, "text encoder: expected one of keep, offload, drop, got 'away'"),
        ({"cache_size": 0}, "keeps at least 1, got 0"),
        ({"path": "here"}, r"expected one of path \(a .*Pipeline on disk\) and pipe"),
    ],
)
def test_wrong_settings_are_sentences(make_tiny, kind, options, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(kind, **options)


def test_wrong_folders_are_sentences(saved, kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="which has no model_index.json"):
        make(kind, path=str(tmp_path))
    other = "sd3" if kind != "sd3" else "flux_kontext"
    with pytest.raises(ValueError, match=r"expected a \w+Pipeline in .*, got a \w+Pipeline"):
        make(kind, path=str(saved(other)))
    with pytest.raises(ValueError, match="dtype: expected float32, bfloat16 or float16, got 'float12'"):
        make(kind, path=str(saved(kind)), dtype="float12")


def test_a_policy_on_an_object_cannot_name_its_base(make_tiny, kind, tmp_path):
    with pytest.raises(ValueError, match="built on a pipeline object: expected path"):
        make_tiny(kind).save(tmp_path)


def test_prompts_must_match_the_contexts(make_tiny, kind):
    with pytest.raises(ValueError, match="expected a prompt for each of 2 contexts, got 1"):
        make_tiny(kind).encode({"lr": images(2, 32, 32), "prompt": ["one"]})


def test_an_unwanted_controlnet_is_refused(tiny):
    pipe = tiny("flux_controlnet")
    pipe.controlnet.input_hint_block = nn.Identity()
    with pytest.raises(ValueError, match="expected a ControlNet that takes latents, got one that takes pixels"):
        make("flux_controlnet", pipe=pipe)
