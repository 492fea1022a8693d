"""Stable Diffusion 3 as a super-resolution policy: the LR image's latents are more input channels.

Concatenation was chosen over an LR stream of its own in DiT4SR's manner (arXiv 2503.23580): it adds no tokens, so a
forward costs what text-to-image costs, and but for one convolution every module is the stock transformer's, so LoRA,
checkpointing, sharding and the export stay those of diffusers. A plain SD3 knows nothing of the added channels: they
start at zero, and a cold start teaches them (the first convolution is among the LoRA targets for that).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.policies.diffusers_policy import DiffusersPolicy

__all__ = ["SD3Policy", "conditioned", "widen"]


@torch.no_grad()
def widen(transformer: Any) -> None:
    """Let an `SD3Transformer2DModel` take the LR latents beside its own: input channels doubled, the new ones at zero.

    A transformer that is widened already is left alone.

    Raises:
        ValueError: for a transformer with other input channels.
    """
    own, channels = transformer.config.out_channels, transformer.config.in_channels
    if channels == 2 * own:
        return
    if channels != own:
        raise Refusal(
            f"sd3: expected a transformer with {own} input channels, or {2 * own} once widened, got {channels}"
        )
    old = transformer.pos_embed.proj
    new = nn.Conv2d(2 * own, old.out_channels, old.kernel_size, stride=old.stride, bias=old.bias is not None)
    new = new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.weight.zero_()
    new.weight[:, :own].copy_(old.weight)
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    transformer.pos_embed.proj = new
    transformer.register_to_config(in_channels=2 * own)


@contextlib.contextmanager
def conditioned(pipe: Any, reference: Tensor) -> Iterator[None]:
    """Let a stock `StableDiffusion3Pipeline` with a widened transformer see `reference` [1, C, h, w] in every forward.

    Hand the pipeline its starting latents [1, C, h, w] too: it would draw them with the widened number of channels.
    """

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x = kwargs["hidden_states"]
        kwargs["hidden_states"] = torch.cat([x, reference.to(x).expand(len(x), -1, -1, -1)], 1)
        return args, kwargs

    handle = pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class SD3Policy(DiffusersPolicy):
    """Stable Diffusion 3 or 3.5 (2 to 8 billion parameters, Stability AI Community licence).

    Args:
        max_length: tokens of the T5 prompt.
        path, pipe, **options: see `DiffusersPolicy`. The transformer may be widened already.
    """

    name = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    lora_targets = (
        "pos_embed.proj", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    def __init__(self, path: str | None = None, *, max_length: int = 256, **options: Any) -> None:
        super().__init__(path, **options)
        self._max_length = max_length
        self._options["max_length"] = max_length
        # The text of the last block leads nowhere: LoRA there would never see a gradient.
        last = len(self.transformer.transformer_blocks) - 1
        self.lora_exclude = (f"transformer_blocks.{last}.attn.add_q_proj",)

    def _prepare(self, checkpointing: bool, compiled: bool) -> None:
        widen(self.transformer)
        super()._prepare(checkpointing, compiled)

    def _text_key(self, image: Tensor) -> tuple[str]:
        return (str(self._max_length),)

    def _encode_text(self, prompt: str, image: Tensor) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            device=image.device,
            max_sequence_length=self._max_length,
        )
        return {"embeds": embeds[0], "pooled": pooled[0]}

    def _start(self, steps: int) -> None:
        return None

    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        v: Tensor = self.transformer(
            hidden_states=torch.cat([x, cond["reference"]], 1).to(self.dtype),
            timestep=1000 * t.float(),
            encoder_hidden_states=text["embeds"].to(self.dtype),
            pooled_projections=text["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
        return v.float()
