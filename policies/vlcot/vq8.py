"""LlamaGen's VQ-8 tokeniser (Sun et al. 2024, arXiv 2406.06525) in transformers' JanusVQVAE, which is the same network.

16,384 codes of 8 x 8 pixels; Lumina-mGPT's kind of policy with it is PURE's and RealSR-R1's.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile
from srgym.sealed import Damaged, read_tensors

__all__ = ["PATCH", "VQ8", "convert"]

PATCH = 8
_MIDDLE = ("block_1", "attn_1", "block_2")


class VQ8(nn.Module):
    """Images to codes and back.

    Args:
        path: LlamaGen's file (`vq_ds8_c2i.pt`, opened without running anything in it), or its tensors as safetensors.

    Raises:
        FileNotFoundError: if there is none. Damaged: naming a tensor that isn't LlamaGen's.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        stored = _read(Path(path).expanduser())
        config, tensors = convert(stored, Path(path))
        from transformers.models.janus.configuration_janus import JanusVQVAEConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        self.net = JanusVQVAE(JanusVQVAEConfig(**config))
        result = self.net.load_state_dict(tensors, strict=False)
        strange = [*result.unexpected_keys, *result.missing_keys]
        if strange:
            raise Damaged(f"{path}: '{strange[0]}' isn't as in LlamaGen's VQ-8")
        self.requires_grad_(False).eval()
        self.codes = int(config["num_embeddings"])

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1], sides multiples of 8, to codes int64 [N, H/8 * W/8], row by row."""
        codes: Tensor = self.net.encode((2 * image - 1).to(self._dtype), return_dict=True).image_tokens
        return codes.view(len(image), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [N, H/8 * W/8] to images [N, 3, H, W] in [0, 1]."""
        self.net.quantize.quant_state_dims = [height // PATCH, width // PATCH]  # else of its own one size alone
        images: Tensor = self.net.decode(codes)
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.net.parameters()).dtype
        return dtype


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingFile(f"expected LlamaGen's VQ-8 (vq_ds8_c2i.pt) at {path}, found no such file")
    if path.suffix == ".safetensors":
        return dict(read_tensors(path))
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names a dozen kinds
        raise Damaged(f"{path}: expected tensors alone, got something else ({error})") from error
    for name in ("ema", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
            break
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise Damaged(f"{path}: expected LlamaGen's tensors by name, got {type(held).__name__}")
    return dict(held)


def convert(stored: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LlamaGen's tensors as (arguments of JanusVQVAEConfig, tensors of JanusVQVAE).

    LlamaGen divides the rows of its codebook by their norm when it looks one up; here they are stored so.

    Raises:
        Damaged: naming what is missing.
    """
    try:
        base = stored["encoder.conv_in.weight"].shape[0]
        codes, dim = stored["quantize.embedding.weight"].shape
        latent = stored["encoder.conv_out.weight"].shape[0]
        pattern = re.compile(r"encoder\.conv_blocks\.(\d+)\.res\.(\d+)\.conv1\.weight")
        found = [(int(m[1]), int(m[2]), stored[m[0]].shape[0]) for m in map(pattern.fullmatch, stored) if m]
        widths = {block: width for block, _, width in found}
        multipliers = [widths[i] // base for i in range(max(widths) + 1)]
    except (KeyError, ValueError) as error:
        raise Damaged(f"{path}: expected LlamaGen's VQ-8, which has {error}") from error
    config = {
        "base_channels": base, "channel_multiplier": multipliers, "num_res_blocks": max(i for _, i, _ in found) + 1,
        "num_embeddings": codes, "embed_dim": dim, "latent_channels": latent, "num_patches": PATCH,
    }  # fmt: skip
    tensors = {_renamed(name): tensor for name, tensor in stored.items() if "codebook_used" not in name}
    tensors["quantize.embedding.weight"] = F.normalize(tensors["quantize.embedding.weight"].float(), dim=-1)
    return config, tensors


def _renamed(name: str) -> str:
    name = name.replace("encoder.conv_blocks.", "encoder.down.").replace("decoder.conv_blocks.", "decoder.up.")
    for side in ("encoder", "decoder"):
        for i, part in enumerate(_MIDDLE):
            name = name.replace(f"{side}.mid.{i}.", f"{side}.mid.{part}.")
    return name.replace(".res.", ".block.")
