"""What is predicted before anything is loaded is what torch counts once it is."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from writers import LAYOUT, QUESTION, TINY, lumina, writer

from srgym.policies.estimate import Batches, Workload, estimate
from srgym.policies.skeleton import blank_condition, skeleton
from srgym.policies.tracing import extended, traced

LORA = {"rank": 2, "alpha": 4}
BOTH = {"old": 1.0, None: 1.0}


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


def test_operations_and_bytes_of_a_linear_layer():
    with torch.device("meta"):
        layer = nn.Linear(100, 200, bias=False)
    x = meta(10, 100)
    flops, peak = traced(layer, lambda: layer(x))
    assert flops == 2 * 10 * 100 * 200 and peak == 4 * 10 * 200
    # forward, and the weight's gradient; alive at the end of the backward: that gradient beside the output's
    flops, peak = traced(layer, lambda: torch.autograd.backward(layer(x), meta(10, 200)))
    assert flops == 2 * 2 * 10 * 100 * 200
    assert peak >= 4 * 100 * 200 + 2 * 4 * 10 * 200 and layer.weight.grad is None


def test_what_is_freed_is_not_counted():
    with torch.device("meta"):
        chain = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    x = meta(32, 64)

    def forward():
        with torch.no_grad():
            chain(x)

    layer = 4 * 32 * 64
    assert traced(chain, forward)[1] == 2 * layer
    assert traced(chain, lambda: chain(x))[1] == 10 * layer


def deep(saved, kind, folder, layers=4):
    """The configs of a tiny pipeline with more blocks."""
    for part in ("transformer", "vae", "controlnet"):
        source = saved(kind) / part / "config.json"
        if source.is_file():
            config = json.loads(source.read_text())
            config |= {"num_layers": layers} if part == "transformer" else {}
            (folder / part).mkdir(parents=True)
            (folder / part / "config.json").write_text(json.dumps(config))
    return {"path": str(folder), "scale": 1, "dtype": "float32"}


def runs(policy, rows=2):
    cond = blank_condition(policy, rows, 32, 32)
    x, t = meta(rows, *policy.latent_shape(cond)), meta(rows)

    def forward():
        with torch.no_grad():
            policy.velocity(x, t, cond)

    return forward, lambda: torch.autograd.backward(policy.velocity(x, t, cond).square().mean())


def test_few_blocks_stand_for_all(saved, kind, tmp_path):
    policy = skeleton(kind, deep(saved, kind, tmp_path), LORA)
    for run in runs(policy):
        flops, peak = extended(policy, policy.core, run)
        whole_flops, whole_peak = traced(policy, run)
        assert flops == pytest.approx(whole_flops, rel=1e-9)
        # where the worst moment lies may move by a block
        assert peak == pytest.approx(whole_peak, rel=0.1)
    assert len(policy.core.transformer_blocks) == 4


def test_operations_are_what_torch_counts_on_the_real_policy(make_tiny, saved, kind, start):
    options = {"path": str(saved(kind)), "scale": 1, "dtype": "float32", "checkpointing": False, "text_image": 64}
    options |= {} if kind == "qwen_image_edit" else {"max_length": 16}
    options = {key: value for key, value in options.items() if key != "text_image" or kind == "qwen_image_edit"}
    policy, real = skeleton(kind, options, LORA), make_tiny(kind, checkpointing=False)
    real.add_adapters(**LORA)
    cond = real.encode({"lr": torch.rand(2, 3, 32, 32)})
    predicted = blank_condition(policy, 2, 32, 32)
    predicted["embeds"] = meta(2, cond["embeds"].shape[1], cond["embeds"].shape[2])
    for key in ("reference", "embeds", "pooled"):
        if cond.get(key, None) is not None:
            assert predicted[key].shape == cond[key].shape, key
    x, t = meta(2, *policy.latent_shape(predicted)), meta(2)
    noise, times = start(real, cond), torch.rand(2)

    def predict(grad):
        with torch.set_grad_enabled(grad):
            v = policy.velocity(x, t, predicted)
            if grad:
                torch.autograd.backward(v.square().mean())

    def measure(grad):
        with torch.set_grad_enabled(grad), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            v = real.velocity(noise, times, cond)
            if grad:
                v.square().mean().backward()
        return counter.get_total_flops()

    assert traced(policy, lambda: predict(False))[0] == measure(False)
    # fused attention makes its matrix again in the backward pass: five products in place of four
    both, expected = traced(policy, lambda: predict(True))[0], measure(True)
    assert expected < both < 1.15 * expected
    own = {name: p.shape for name, p in real.named_parameters()}
    assert {name: p.shape for name, p in policy.named_parameters()} == own
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == {
        n for n, p in real.named_parameters() if p.requires_grad
    }


def test_what_stays_is_what_the_tensors_weigh(make_tiny, saved, kind):
    options = {"path": str(saved(kind)), "scale": 1, "dtype": "bfloat16"}
    work = Workload(group_size=2, steps=3, times=2, beside=BOTH)
    predicted = estimate(kind, options, work, Batches(1, 2), height=32, width=32, lora=LORA)
    real = make_tiny(kind)
    real.add_adapters(**LORA)
    base = sum(p.numel() for n, p in real.core.named_parameters() if ".lora_" not in n)
    lora = sum(p.numel() for _, p in real.trainable_parameters())
    buffers = sum(b.numel() for b in real.core.buffers())
    assert predicted.parameters == {"network": base, "trainable": lora}
    assert predicted.resident["weights of the trained network"] == pytest.approx(2 * base + 2 * buffers, rel=0.05)
    assert predicted.resident["LoRA (learner, old, average)"] == 3 * 4 * lora
    assert predicted.resident["gradients and AdamW's moments"] == 3 * 4 * lora
    files = sum(file.stat().st_size for file in saved(kind).glob("text_encoder*/*.safetensors"))
    assert predicted.resident["weights of the text encoders"] == files
    assert predicted.peak == sum(predicted.resident.values()) + predicted.phases[predicted.worst]
    assert "memory at the worst" in str(predicted) and "parameters" in str(predicted)


def test_the_knobs_move_what_they_should(saved, tmp_path):
    options = deep(saved, "qwen_image_edit", tmp_path, layers=5)
    work = Workload(group_size=4, steps=6, times=2, beside=BOTH)

    def predict(work=work, microbatch=4, **changes):
        batches = Batches(1, microbatch)
        return estimate("qwen_image_edit", {**options, **changes}, work, batches, height=64, width=64, lora=LORA)

    plain = predict(checkpointing=False)
    saving = predict(checkpointing=True)
    assert saving.phases["update"] < 0.6 * plain.phases["update"]
    assert 1.1 < saving.flops["update"] / plain.flops["update"] < 1.5
    assert predict(reference=128).flops["sampling"] > 1.5 * plain.flops["sampling"]
    guided = predict(replace(work, guided=True), checkpointing=False)
    assert guided.flops["update"] == 2 * plain.flops["update"]
    assert guided.flops["sampling"] > 1.5 * plain.flops["sampling"]
    small = predict(replace(work, beside={}), microbatch=1, checkpointing=False)
    assert small.phases["update"] < 0.5 * plain.phases["update"]
    assert small.flops["update"] < 0.8 * plain.flops["update"]
    refl = predict(Workload(group_size=4, steps=5, reward_steps=1))
    assert "update" not in refl.phases and refl.phases["reward gradient"] > 0
    assert plain.seconds(1e12, 0.5) == 2 * plain.seconds(1e12, 1.0)


def test_offloaded_text_encoders_are_a_phase(saved, kind):
    options = {"path": str(saved(kind)), "scale": 1, "text_encoder": "offload"}
    predicted = estimate(kind, options, Workload(2, 6, 5, beside=BOTH), Batches(1, 1), height=32, width=32, lora=LORA)
    assert predicted.phases["encoding prompts"] > 0
    assert "weights of the text encoders" not in predicted.resident


def test_the_compact_policy_is_predicted_too():
    from srgym.policies.compact import CompactPolicy

    predicted = estimate("compact", {"scale": 4}, Workload(4, 6, 5, beside=BOTH), Batches(1, 8), height=16, width=16)
    policy = CompactPolicy(weights=None)
    assert predicted.parameters["network"] == sum(p.numel() for p in policy.core.parameters())
    assert predicted.parameters["trainable"] == sum(p.numel() for p in policy.parameters())
    assert predicted.flops["update"] > predicted.flops["sampling"] > 0


@pytest.mark.parametrize(
    ("name", "published"),
    [("sd3", 2.47e9), ("flux_kontext", 11.9e9), ("qwen_image_edit", 20.43e9)],
)
def test_the_published_models_have_their_published_size(name, published):
    """Stable Diffusion 3.5 Medium, FLUX.1 and Qwen-Image: parameters as their repositories state them. SD3's count
    its table of positions, and our widened convolution adds 0.1 million."""
    policy = skeleton(name, {})
    whole = sum(p.numel() for p in policy.core.parameters()) + sum(b.numel() for b in policy.core.buffers())
    assert whole == pytest.approx(published, rel=5e-3)


def test_a_reference_of_a_megapixel_costs_2_6_times_one_of_512():
    """At the width of Qwen-Image, an SR image of 512^2; two blocks have the whole model's proportions."""
    each = {}
    for side in (512, 1024):
        policy = skeleton("qwen_image_edit", {"reference": side})
        policy.core.transformer_blocks = policy.core.transformer_blocks[:2]
        cond = blank_condition(policy, 1, 128, 128)
        x = meta(1, *policy.latent_shape(cond))

        def forward(policy=policy, cond=cond, x=x):
            with torch.no_grad():
                policy.velocity(x, meta(1), cond)

        each[side], _ = traced(policy, forward)
    assert each[1024] / each[512] == pytest.approx(2.6, abs=0.15)


@pytest.mark.parametrize("kind", ["compact_vlcot", "lumina_vlcot"])
def test_documents_cost_what_they_cost(kind, tmp_path):
    """A document of full length, forward, and forward with backward: predicted on the meta device, counted here."""
    if kind == "compact_vlcot":
        policy, options, size = writer(adapters=False), {"scale": 4, **TINY}, 8
    else:
        policy, size = lumina(tmp_path, checkpointing=False, answer=500), 32
        options = {"path": policy.path, "vq": policy.vq_path, "scale": 4, "side": 128, "dtype": "float32",
                   "question": QUESTION, "layout": LAYOUT, "answer": 500, "checkpointing": False}  # fmt: skip
    policy.add_adapters(rank=2, alpha=4.0)
    predicted = estimate(
        kind, options, Workload(4, steps=1, times=1), Batches(2, 4), height=size, width=size, lora=LORA
    )
    assert predicted.parameters["trainable"] == sum(p.numel() for _, p in policy.trainable_parameters())
    length = policy.reading + policy.longest
    shape = (1, length) if policy.reads_tokens else (1, length, 32)
    inputs = torch.ones(*shape, dtype=torch.int64) if policy.reads_tokens else torch.randn(*shape)
    assert policy.prefix(policy.encode({"lr": torch.rand(1, 3, size, size)})).shape[1] == policy.reading or (
        kind == "lumina_vlcot"  # its words are counted by their letters there
    )

    def run():
        return policy.logits(policy.network(inputs)[0][:, -policy.longest :]).sum()

    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            run()
        with FlopCounterMode(display=False) as both:
            run().backward()
    assert predicted.flops["writing"] == pytest.approx(8 * forward.get_total_flops(), rel=0.05)
    # Fused attention, which is predicted, computes its scores once more in the backward pass.
    assert predicted.flops["update"] == pytest.approx(8 * both.get_total_flops(), rel=0.15)
    assert predicted.phases["writing"] == pytest.approx(2 * 8 * (length * 2 * 32) * 4, rel=0.03)
