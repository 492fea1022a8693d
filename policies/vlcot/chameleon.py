"""What a policy of Lumina-mGPT's kind is made of, opened from disk or without storage: transformers' Chameleon without
its own image tokeniser, a tokeniser of words, and one of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srgym.errors import MissingFile
from srgym.policies.vlcot.vq8 import VQ8
from srgym.sealed import Damaged, read_object, read_tensors

__all__ = ["Parts", "load_weights", "recompute"]

_PUBLISHED: dict[str, Any] = {
    "vocab_size": 73728, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 16384,
}  # fmt: skip
_SMALL_VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": []}


class Parts(NamedTuple):
    """What the policy is made of: a tokeniser of words, Chameleon, and a tokeniser of images."""

    tokenizer: Any
    model: Any
    vq: Any

    @classmethod
    def open(cls, path: str, vq: str, dtype: str) -> "Parts":
        """From disk."""
        return cls(_open_tokenizer(Path(path)), _open_model(Path(path), getattr(torch, dtype)), VQ8(vq))

    @classmethod
    def hollow(cls, path: str | None, dtype: str, codes: int) -> "Parts":
        """Without storage, on the meta device: of the folder's config, else of the published 7B model."""
        file = Path(path or "") / "config.json"
        settings = read_object(file, {}) if path and file.is_file() else _PUBLISHED
        return cls(_Mute(), _empty(settings, getattr(torch, dtype)).to("meta").requires_grad_(True), _Blind(codes))


class _Mute:
    """A tokeniser of words that has none."""

    all_special_ids: Sequence[int] = ()
    bos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """As many tokens as English has, by and large."""
        return [0] * (len(text) // 4)


class _Blind(nn.Module):
    """A tokeniser of images that has no network: what it needs is little beside the model."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes


def recompute(body: Any) -> None:
    """Let it recompute its layers in the backward pass; transformers is renaming how that is said."""
    enable = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise MissingFile(f"expected a model of Lumina-mGPT's kind at {folder}, found no tokenizer.json in it")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _open_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model without its own image tokeniser."""
    if not (folder / "config.json").is_file():
        raise MissingFile(f"expected a model of Lumina-mGPT's kind at {folder}, found no config.json in it")
    return load_weights(_empty(read_object(folder / "config.json", {}), dtype), folder)


def _empty(settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A Chameleon whose weights have no storage yet."""
    from accelerate import init_empty_weights
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    kept = {key: value for key, value in settings.items() if key not in ("architectures", "model_type", "vq_config")}
    named = {"<image>": 0, **(kept.pop("vocabulary_map", None) or {})}
    config = ChameleonConfig(**{**kept, "vocabulary_map": named, "vq_config": _SMALL_VQ, "dtype": dtype})
    with init_empty_weights(include_buffers=False):
        model = ChameleonForConditionalGeneration(config)
    del model.model.vqmodel
    return model.to(dtype)


def load_weights(model: Any, folder: Path) -> Any:
    """Read the weights, shard by shard.

    Raises:
        FileNotFoundError: without any. Damaged: naming the first tensor that differs.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MissingFile(f"expected weights in {folder}, found no safetensors")
    own: dict[str, Tensor] = dict(model.state_dict())
    read: set[str] = set()
    for file in files:
        tensors = {name: tensor for name, tensor in read_tensors(file).items() if ".vqmodel." not in name}
        for name, tensor in tensors.items():
            if name not in own:
                raise Damaged(f"{file}: '{name}' is no tensor of Chameleon's")
            if ".q_norm." in name or ".k_norm." in name:
                # Stored once, or once a shard of the heads; transformers has one for each head.
                tensor = tensor.reshape(-1, own[name].shape[-1])
                tensor = tensor.repeat_interleave(own[name].shape[0] // len(tensor), 0)
            if tensor.shape != own[name].shape:
                raise Damaged(f"{file}: '{name}': expected {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
            tensors[name] = tensor.to(own[name].dtype)
        model.load_state_dict(tensors, strict=False, assign=True)
        read |= set(tensors)
    missing = sorted(set(own) - read)
    if missing:
        raise Damaged(f"{folder}: expected '{missing[0]}' among the weights, found none")
    return model.requires_grad_(True)
