"""A tiny policy that writes, and documents of it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from srgym import policies
from srgym.policies.noise import derive_seeds
from srgym.policies.tokens import AutoregressivePolicy, TokenSampling

TINY: dict[str, Any] = {
    "side": 32, "levels": [2, 3], "codec_width": 8, "width": 32, "layers": 2, "heads": 2,
}  # fmt: skip


def writer(adapters: bool = True, **options: Any) -> Any:
    """A compact VLCoT of HR images of 32 pixels, with adapters that have moved."""
    made = policies.make("compact_vlcot", weights=None, **{**TINY, **options})
    if adapters:
        made.add_adapters(rank=2, alpha=4.0)
        with torch.no_grad():
            for _, parameter in made.trainable_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        made.sync("default", "old")
    return made


def inputs(count: int) -> Tensor:
    """LR images of 8 x 8."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(policy: AutoregressivePolicy, count: int = 6, cut: int | None = None, **how: Any) -> TensorDict:
    """Documents of the first `count` inputs, `cut` at once."""
    seeds, sampling = derive_seeds(0, 0, torch.arange(count)), TokenSampling(**how)
    parts = [slice(i, i + (cut or count)) for i in range(0, count, cut or count)]
    with torch.no_grad():
        rolled = [policy.rollout({"lr": inputs(count)[part]}, sampling, seeds[part]) for part in parts]
    whole: TensorDict = torch.cat(rolled)
    return whole


# A policy of Lumina-mGPT's kind: real classes, tiny, with random weights

LAYOUT: dict[str, Any] = {
    "soi": 300, "eoi": 301, "newline": 302, "end": 303, "pad": 1, "grid": 310, "codes": [[4, 32], [400, 32]],
}  # fmt: skip
QUESTION = "Restore it."


def lumina_folder(folder: Path, heads: int = 4, seed: int = 0) -> Path:
    """A Chameleon of 432 tokens and its tokeniser, which spells words byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, **{letter: 36 + i for i, letter in enumerate(letters)}}
    spelling = Tokenizer(models.BPE(names, []))
    spelling.pre_tokenizer, spelling.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=spelling, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    vq = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": []}
    config = ChameleonConfig(
        vocab_size=432, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=4096, vocabulary_map={"<image>": 3}, vq_config=vq,
    )  # fmt: skip
    model = ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
            if "lm_head" in name:
                parameter.mul_(3)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({name: p.detach().clone() for name, p in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def vq8_file(path: Path) -> Path:
    """LlamaGen's VQ-8 with 64 codes, under LlamaGen's names, its codebook as training leaves it."""
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    torch.manual_seed(0)
    net = JanusVQVAE(
        JanusVQVAEConfig(
            base_channels=32, channel_multiplier=[1, 1, 2, 2], num_res_blocks=1, latent_channels=32, num_embeddings=64,
            embed_dim=8, num_patches=8,
        )
    )  # fmt: skip
    names = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    state = {}
    for name, tensor in net.state_dict().items():
        for side, blocks in (("encoder", "down"), ("decoder", "up")):
            name = name.replace(f"{side}.{blocks}.", f"{side}.conv_blocks.")
            for part, number in names.items():
                name = name.replace(f"{side}.mid.{part}.", f"{side}.mid.{number}.")
        state[name.replace(".block.", ".res.")] = tensor.clone()
    state["quantize.embedding.weight"] = torch.randn(64, 8) * (0.3 + torch.rand(64, 1))
    state["quantize.codebook_used"] = torch.zeros(10)
    torch.save({"model": state}, path)
    return path


def lumina(folder: Path, **options: Any) -> Any:
    """The policy over both, in float32, for HR images of 128 pixels."""
    if not (folder / "model").is_dir():
        lumina_folder(folder / "model")
        vq8_file(folder / "vq.pt")
    settings = {"path": str(folder / "model"), "vq": str(folder / "vq.pt"), "side": 128, "dtype": "float32"}
    return policies.make("lumina_vlcot", **{**settings, "question": QUESTION, "layout": LAYOUT, **options})
