"""`srgym merge`: the merged model does what the fine-tuned one and the LoRA do together, or is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from srgym.policies import load
from srgym.policies.compact import CompactPolicy
from srgym.policies.merging import merge, merge_policies, read_lora, run

LR = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(torch.nn.Module):
    """A linear layer, a convolution and a normalisation: what the merge must know to change or leave."""

    def __init__(self, width=6):
        super().__init__()
        self.linear = torch.nn.Linear(4, width)
        self.patch = torch.nn.Conv2d(3, width, 2, stride=2)
        self.norm = torch.nn.LayerNorm(width)

    def forward(self, x, image):
        return self.norm(self.linear(x) + self.patch(image).flatten(2).mean(2))


def write_model(folder, model, dtype=torch.float32, shards=2):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    parts = [dict(list(state.items())[i::shards]) for i in range(shards)]
    names = [f"diffusion_pytorch_model-{i}.safetensors" for i in range(shards)]
    if shards == 1:
        names = ["diffusion_pytorch_model.safetensors"]
    else:
        where = {name: names[i] for i, part in enumerate(parts) for name in part}
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": where}))
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)


def read_model(folder):
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 2 and alpha 7 as a saved policy has it: two adapters of one shape."""
    folder = tmp_path / "lora"
    folder.mkdir()
    for seed, adapter in enumerate(("default", "ema")):
        tensors = {
            "linear.lora_A.weight": noise(2, 4, seed=seed), "linear.lora_B.weight": noise(6, 2, seed=seed + 10),
            "patch.lora_A.weight": noise(2, 3, 2, 2, seed=seed + 20),
            "patch.lora_B.weight": noise(6, 2, 1, 1, seed=seed + 30),
        }  # fmt: skip
        save_file(tensors, folder / f"adapter_{adapter}.safetensors")
    described = {"rank": 2, "alpha": 7.0, "targets": ["linear", "patch"], "adapters": ["default", "ema"]}
    (folder / "adapters.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("adapter", ["default", "ema"])
def test_the_merged_forward_is_the_tuned_one_plus_the_lora(tmp_path, lora, dtype, shards, adapter):
    model = Block().to(dtype).float()
    write_model(tmp_path / "tuned" / "transformer", model, dtype, shards)
    (tmp_path / "tuned" / "model_index.json").write_text("{}")
    report = merge(lora, tmp_path / "tuned", tmp_path / "out", adapter=adapter, weight=0.5)
    assert report.changed == 2 and report.worst <= 1e-5
    merged = read_model(tmp_path / "out" / "transformer")
    assert (tmp_path / "out" / "model_index.json").is_file()
    assert set(merged) == set(model.state_dict()) and {t.dtype for t in merged.values()} == {dtype}
    x, image = noise(5, 4, seed=50), noise(5, 3, 4, 4, seed=51)
    tensors = load_file(lora / f"adapter_{adapter}.safetensors")
    linear = x @ tensors["linear.lora_A.weight"].T @ tensors["linear.lora_B.weight"].T
    low = torch.nn.functional.conv2d(image, tensors["patch.lora_A.weight"], stride=2)
    patch = torch.nn.functional.conv2d(low, tensors["patch.lora_B.weight"])
    hidden = model.linear(x) + 1.75 * linear + (model.patch(image) + 1.75 * patch).flatten(2).mean(2)
    expected = model.norm(hidden)
    model.load_state_dict({name: tensor.float() for name, tensor in merged.items()})
    # bf16 stores 8 bits of each weight
    torch.testing.assert_close(model(x, image), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert (report.rounding == 0) == (dtype == torch.float32)


def test_bf16_is_rounded_once(tmp_path, lora):
    model = Block()
    write_model(tmp_path / "tuned", model, torch.bfloat16, 1)
    merge(lora, tmp_path / "tuned", tmp_path / "out")
    delta = read_lora(lora).delta("linear")
    expected = (model.linear.weight.detach().bfloat16().float() + delta).bfloat16()
    assert torch.equal(read_model(tmp_path / "out")["linear.weight"], expected)


def test_another_architecture_is_refused_by_its_first_tensor(tmp_path, lora):
    write_model(tmp_path / "other", Block(width=7))
    with pytest.raises(
        ValueError, match=r"first tensor that differs is 'linear\.weight', expected \(6, 4\), got \(7, 4"
    ):
        merge(lora, tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_whole_base_is_compared_where_it_is_known(tmp_path, lora):
    """The LoRA fits both, but a tensor that it leaves alone says that its base was another model."""
    write_model(tmp_path / "base" / "transformer", Block())
    described = {"policy": "x", "config": {"path": str(tmp_path / "base")}, "adapters": True}
    (lora / "policy.json").write_text(json.dumps(described))
    tuned = Block()
    write_model(tmp_path / "same", tuned)
    assert merge(lora, tmp_path / "same", tmp_path / "out").changed == 2
    tuned.extra = torch.nn.Linear(2, 2)
    write_model(tmp_path / "tuned", tuned)
    with pytest.raises(ValueError, match=r"differs is 'extra\.bias', expected no such tensor, got \(2,\)"):
        merge(lora, tmp_path / "tuned", tmp_path / "out2")


def test_compact_policies_merge_too(tmp_path, tiny_policy):
    tiny_policy.save(tmp_path / "tuned")
    tiny_policy.add_adapters(rank=2, alpha=7)
    with torch.no_grad():
        for _, parameter in tiny_policy.trainable_parameters():
            parameter.add_(0.1 * noise(*parameter.shape))
    tiny_policy.save(tmp_path / "lora")
    report = run({"lora": tmp_path / "lora", "into": tmp_path / "tuned", "out": tmp_path / "out", "adapter": "default"})
    merged = load(tmp_path / "out")
    assert (
        report.changed > 0
        and "tensors changed" in str(report)
        and isinstance(merged, CompactPolicy)
        and not merged.has_adapters
    )
    torch.testing.assert_close(merged.predict(LR), tiny_policy.predict(LR, adapter="default"), rtol=0, atol=1e-5)


def test_a_merged_policy_holds_the_weighed_lora_and_what_it_learnt_before(tmp_path, tiny_policy):
    """Three shares, each read off the files: the base, the target's own average, and the weighed LoRA of the other."""
    tiny_policy.save(tmp_path / "base")
    weights = {name: p.detach().clone() for name, p in tiny_policy.core.named_parameters()}
    for i, name in enumerate(("tuned", "learnt")):
        policy = load(tmp_path / "base")
        policy.add_adapters(rank=2, alpha=7, seed=i)
        with torch.no_grad():
            for k, (_, parameter) in enumerate(policy.trainable_parameters()):
                parameter.add_(0.1 * noise(*parameter.shape, seed=100 * i + k))
        policy.sync("default", "ema")
        policy.save(tmp_path / name)
    merged = dict(merge_policies(tmp_path / "tuned", tmp_path / "learnt", weight=0.5).core.named_parameters())
    changed = 0
    for name, weight in weights.items():
        expected = weight.clone()
        for folder, share in (("tuned", 1.0), ("learnt", 0.5)):
            tensors = load_file(tmp_path / folder / "adapter_ema.safetensors")
            key = name.removesuffix(".weight")
            if f"{key}.lora_A.weight" in tensors:
                a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
                changed += 1
                expected += share * 3.5 * torch.tensordot(b.reshape(len(b), -1), a, 1).reshape(weight.shape)
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6)
    assert changed > 2


def test_wrong_calls_are_sentences(tmp_path, lora):
    with pytest.raises(ValueError, match="merge expects lora=FOLDER into=FOLDER out=FOLDER: out is missing"):
        run({"lora": lora, "into": tmp_path})
    with pytest.raises(ValueError, match="merge knows lora, into, out, adapter, weight; got 'base'"):
        run({"lora": lora, "into": tmp_path, "out": tmp_path / "o", "base": 1})
    with pytest.raises(FileNotFoundError, match="expected adapter 'old' in"):
        read_lora(lora, "old")
    with pytest.raises(FileNotFoundError, match="expected a saved policy with adapters or a LoRA file"):
        read_lora(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="found no config.json beside safetensors"):
        merge(lora, tmp_path / "nothing", tmp_path / "out")
    write_model(tmp_path / "tuned", Block())
    with pytest.raises(ValueError, match="expected an empty folder for the merged model"):
        merge(lora, tmp_path / "tuned", tmp_path / "tuned")
