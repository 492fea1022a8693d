"""Qwen-Image-Edit-2509 or -2511 as a super-resolution policy: the LR image is the reference image of an edit.

The policy of OARS (`../configs/experiment/oars_qwen.yaml`), over diffusers' `QwenImageEditPlusPipeline`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.policies import diffusers_common as common
from srgym.policies.diffusers_policy import DiffusersPolicy

__all__ = ["QwenImageEditPolicy", "restore_positions"]


def restore_positions(text_encoder: nn.Module) -> None:
    """Give Qwen2.5-VL the token types from which it computes three-dimensional positions.

    The stock pipeline passes `image_grid_thw` but not `mm_token_type_ids`; transformers 5 then numbers image tokens as
    if they were words, without a warning, and the embeddings come out wrong. A call that has them is left alone.
    """

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids, grid = kwargs.get("input_ids"), kwargs.get("image_grid_thw")
        if kwargs.get("mm_token_type_ids") is None and ids is not None and grid is not None:
            images = (ids == module.config.image_token_id).int()
            kwargs["mm_token_type_ids"] = images + 2 * (ids == module.config.video_token_id).int()
        return args, kwargs

    if not getattr(text_encoder, "_positions_restored", False):
        text_encoder.register_forward_pre_hook(hook, with_kwargs=True)
        text_encoder._positions_restored = True  # type: ignore[assignment]


class QwenImageEditPolicy(DiffusersPolicy):
    """Qwen-Image-Edit-2509 or -2511 (20 billion parameters, Apache-2.0).

    Both have one pipeline; 2511's transformer is told that the reference is clean (`zero_cond_t` in its configuration).
    The LR image goes in twice: as latents behind those of the target, and through the text encoder with the prompt.

    Args:
        path, pipe, **options: see `DiffusersPolicy`.
        reference: the side s of the reference's area s^2, in pixels; None: the size of the SR image. At an SR image of
            512^2 a reference of 512^2 doubles the image tokens, and one of 1024^2, the stock pipeline's, costs 2.6
            times that in all (`srgym train --dry-run` says what it costs at yours).
        text_image: the side of the area at which the text encoder sees the LR image; the stock pipeline's is 384.
    """

    name = "qwen_image_edit"
    pipeline = "QwenImageEditPlusPipeline"
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    def __init__(
        self, path: str | None = None, *, reference: int | None = None, text_image: int = 384, **options: Any
    ) -> None:
        for name, side in (("reference", reference), ("text_image", text_image)):
            if side is not None and side < 32:
                raise Refusal(f"qwen_image_edit: {name} is at least 32 pixels, got {side}")
        super().__init__(path, **options)
        self._reference_side, self._text_side = reference, text_image
        self._options |= {"reference": reference, "text_image": text_image}
        # The text of the last block leads nowhere: LoRA there would never see a gradient.
        last = f"transformer_blocks.{len(self.transformer.transformer_blocks) - 1}"
        unused = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2", "txt_mod.1")
        self.lora_exclude = tuple(f"{last}.{name}" for name in unused)
        if getattr(self.pipe, "text_encoder", None) is not None:
            restore_positions(self.pipe.text_encoder)

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(v, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)
            for v in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def _to_latent(self, image: Tensor) -> Tensor:
        distribution = self.vae.encode((2 * image - 1).to(self.vae.dtype).unsqueeze(2)).latent_dist
        mean, std = self._latent_scale(image)
        latent: Tensor = (distribution.mode().squeeze(2).float() - mean) / std
        return latent

    def _to_image(self, latent: Tensor) -> Tensor:
        mean, std = self._latent_scale(latent)
        frames = (latent * std + mean).to(self.vae.dtype).unsqueeze(2)
        image: Tensor = self.vae.decode(frames, return_dict=False)[0].squeeze(2)
        return image.float() / 2 + 0.5

    def _reference(self, image: Tensor) -> Tensor:
        if self._reference_side is None:
            return super()._reference(image)
        size = common.reference_size(image.shape[-2], image.shape[-1], self._reference_side)
        return self._to_latent(common.resize(image, *size))

    def _picture(self, image: Tensor) -> Any:
        """What the text encoder sees: 8 bits, resized as the stock pipeline does."""
        from torchvision.transforms.functional import to_pil_image

        height, width = common.reference_size(image.shape[-2], image.shape[-1], self._text_side)
        levels = (image[0] * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        return self.pipe.image_processor.resize(to_pil_image(levels), height, width)

    def _text_key(self, image: Tensor) -> Sequence[str | bytes | Tensor]:
        picture = self._picture(image)
        return (str(picture.size), picture.tobytes())

    def _encode_text(self, prompt: str, image: Tensor) -> dict[str, Tensor]:
        embeds, _ = self.pipe.encode_prompt(prompt=[prompt], image=[self._picture(image)], device=image.device)
        return {"embeds": embeds[0], "mask": torch.ones(embeds.shape[1], dtype=torch.bool)}

    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        reference, mask = cond["reference"], text.get("mask", None)
        tokens = torch.cat([common.pack(x), common.pack(reference)], 1)
        grids = [(1, image.shape[-2] // 2, image.shape[-1] // 2) for image in (x, reference)]
        v = self.transformer(
            hidden_states=tokens.to(self.dtype),
            timestep=t.float(),
            encoder_hidden_states=text["embeds"].to(self.dtype),
            encoder_hidden_states_mask=None if mask is None or mask.all() else mask,
            img_shapes=[grids] * len(x),
            return_dict=False,
        )[0]
        height, width = x.shape[-2:]
        return common.unpack(v[:, : height * width // 4].float(), height, width)

    def _combine(self, positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
        """The guided velocity at the length of the conditional one, token by token."""
        guided = common.pack(super()._combine(positive, negative, guidance))
        length = common.pack(positive).norm(dim=-1, keepdim=True)
        return common.unpack(guided * (length / guided.norm(dim=-1, keepdim=True)), *positive.shape[-2:])
