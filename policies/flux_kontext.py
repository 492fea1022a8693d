"""FLUX.1 Kontext as a super-resolution policy: the LR image is the context image of an edit."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.policies import diffusers_common as common
from srgym.policies.diffusers_policy import DiffusersPolicy

__all__ = ["Flux", "FluxKontextPolicy"]


class Flux(DiffusersPolicy):
    """What the two FLUX policies share: CLIP and T5 prompts, position ids, the embedded guidance.

    Args:
        path, pipe, **options: see `DiffusersPolicy`.
        embedded_guidance: the guidance scale that a guidance-distilled FLUX takes as an input; it costs nothing and is
            not `Sampling.guidance`, which is classifier-free.
        max_length: tokens of the T5 prompt.
    """

    text_encoders = ("text_encoder", "text_encoder_2")
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    def __init__(
        self, path: str | None = None, *, embedded_guidance: float = 2.5, max_length: int = 512, **options: Any
    ) -> None:
        super().__init__(path, **options)
        self._embedded_guidance, self._max_length = embedded_guidance, max_length
        self._options |= {"embedded_guidance": embedded_guidance, "max_length": max_length}

    def _text_key(self, image: Tensor) -> tuple[str]:
        return (str(self._max_length),)

    def _encode_text(self, prompt: str, image: Tensor) -> dict[str, Tensor]:
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt], prompt_2=None, device=image.device, max_sequence_length=self._max_length
        )
        return {"embeds": embeds[0], "pooled": pooled[0]}

    def _inputs(self, x: Tensor, t: Tensor, text: TensorDict, ids: Tensor) -> dict[str, Any]:
        """What both the transformer and a ControlNet take; ids [tokens, 3] are the image's positions."""
        embeds = text["embeds"].to(self.dtype)
        return {
            "timestep": t.float(),
            "encoder_hidden_states": embeds,
            "pooled_projections": text["pooled"].to(self.dtype),
            "txt_ids": torch.zeros(embeds.shape[1], 3, device=x.device),
            "img_ids": ids,
            "return_dict": False,
        }

    def _guidance(self, model: nn.Module, x: Tensor) -> Tensor | None:
        """The embedded guidance [N], raw (the model multiplies it by 1000), for the models that take one."""
        if not model.config.guidance_embeds:  # type: ignore[union-attr]
            return None
        return torch.full((len(x),), self._embedded_guidance, device=x.device)

    @staticmethod
    def _ids(latent: Tensor, image: int) -> Tensor:
        """Positions (image, row, column) of a latent's patches: [h w / 4, 3]."""
        rows, columns = latent.shape[-2] // 2, latent.shape[-1] // 2
        device = latent.device
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        return torch.stack([torch.full_like(row, image), row, column], -1).reshape(-1, 3).float()


class FluxKontextPolicy(Flux):
    """FLUX.1 Kontext [dev] (12 billion parameters, FLUX.1 [dev] non-commercial licence).

    Args:
        reference: the side s of the reference's area s^2, in pixels; None: the size of the SR image. Tokens of the
            reference cost as much as those of the SR image.
        path, pipe, embedded_guidance, max_length, **options: see `Flux` and `DiffusersPolicy`.
    """

    name = "flux_kontext"
    pipeline = "FluxKontextPipeline"

    def __init__(self, path: str | None = None, *, reference: int | None = None, **options: Any) -> None:
        if reference is not None and reference < 32:
            raise Refusal(f"flux_kontext: reference is at least 32 pixels, got {reference}")
        super().__init__(path, **options)
        self._reference_side = reference
        self._options["reference"] = reference

    def _reference(self, image: Tensor) -> Tensor:
        if self._reference_side is None:
            return super()._reference(image)
        size = common.reference_size(image.shape[-2], image.shape[-1], self._reference_side)
        return self._to_latent(common.resize(image, *size))

    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        reference = cond["reference"]
        tokens = torch.cat([common.pack(x), common.pack(reference)], 1)
        ids = torch.cat([self._ids(x, 0), self._ids(reference, 1)])
        v = self.transformer(
            hidden_states=tokens.to(self.dtype),
            guidance=self._guidance(self.transformer, x),
            **self._inputs(x, t, text, ids),
        )[0]
        height, width = x.shape[-2:]
        return common.unpack(v[:, : height * width // 4].float(), height, width)
