"""FLUX.2 klein as a super-resolution policy: the LR image is the reference image of an edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.errors import Refusal
from srgym.policies import diffusers_common as common
from srgym.policies.diffusers_policy import DiffusersPolicy

__all__ = ["Flux2KleinPolicy"]

_REFERENCE = 10  # the first coordinate of the reference's tokens; the target's is 0


class Flux2KleinPolicy(DiffusersPolicy):
    """FLUX.2 [klein] (4 billion parameters, Apache-2.0; 9 billion, FLUX non-commercial licence).

    Its distilled models sample in four steps and take no guidance; the base models take `Sampling.guidance`, against
    the empty prompt in the stock pipeline.

    Args:
        path, pipe, **options: see `DiffusersPolicy`.
        reference: the side s of the reference's area s^2, in pixels; None: the size of the SR image. Tokens of the
            reference cost as much as those of the SR image.
        max_length: tokens of the prompt.
        text_layers: which layers of the text encoder are taken, one after another.
    """

    name = "flux2_klein"
    pipeline = "Flux2KleinPipeline"
    lora_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_qkv_mlp_proj",
    )  # fmt: skip

    def __init__(
        self,
        path: str | None = None,
        *,
        reference: int | None = None,
        max_length: int = 512,
        text_layers: Sequence[int] = (9, 18, 27),
        **options: Any,
    ) -> None:
        if reference is not None and reference < 32:
            raise Refusal(f"flux2_klein: reference is at least 32 pixels, got {reference}")
        super().__init__(path, **options)
        self._reference_side, self._max_length, self._text_layers = reference, max_length, tuple(text_layers)
        self._options |= {"reference": reference, "max_length": max_length, "text_layers": list(text_layers)}

    def _text_key(self, image: Tensor) -> tuple[str, str]:
        return (str(self._max_length), str(self._text_layers))

    def _encode_text(self, prompt: str, image: Tensor) -> dict[str, Tensor]:
        embeds, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            device=image.device,
            max_sequence_length=self._max_length,
            text_encoder_out_layers=self._text_layers,
        )
        return {"embeds": embeds[0]}

    def _token_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the packed tokens [4 C], which the VAE's batch normalisation keeps."""
        norm, eps = self.vae.bn, self.vae.config.batch_norm_eps
        return norm.running_mean.to(like).float(), (norm.running_var.to(like).float() + eps).sqrt()

    def _to_latent(self, image: Tensor) -> Tensor:
        latent = self.vae.encode((2 * image - 1).to(self.vae.dtype)).latent_dist.mode().float()
        mean, spread = self._token_scale(latent)
        return common.unpack((common.pack(latent) - mean) / spread, *latent.shape[-2:])

    def _to_image(self, latent: Tensor) -> Tensor:
        mean, spread = self._token_scale(latent)
        latent = common.unpack(common.pack(latent) * spread + mean, *latent.shape[-2:])
        image: Tensor = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return image.float() / 2 + 0.5

    def _reference(self, image: Tensor) -> Tensor:
        if self._reference_side is None:
            return super()._reference(image)
        size = common.reference_size(image.shape[-2], image.shape[-1], self._reference_side)
        return self._to_latent(common.resize(image, *size))

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        """The stock schedule, whose shift is fitted to the numbers of tokens and of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        if steps == 1:
            return torch.tensor([1.0, 0.0])
        _, height, width = self.latent_shape(cond)
        mu = compute_empirical_mu(height * width // 4, steps)
        self._scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        times: Tensor = self._scheduler.sigmas.float().cpu().clone()
        return times

    @staticmethod
    def _ids(latent: Tensor, image: int) -> Tensor:
        """Positions (image, row, column, 0) of a latent's patches: [h w / 4, 4]."""
        rows, columns = (torch.arange(side // 2, device=latent.device) for side in latent.shape[-2:])
        one = torch.tensor([0], device=latent.device)
        return torch.cartesian_prod(one + image, rows, columns, one)

    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        reference, embeds = cond["reference"], text["embeds"].to(self.dtype)
        tokens = torch.cat([common.pack(x), common.pack(reference)], 1)
        words = torch.zeros(embeds.shape[1], 4, device=x.device, dtype=torch.int64)
        words[:, 3] = torch.arange(len(words))
        v = self.transformer(
            hidden_states=tokens.to(self.dtype),
            timestep=t.float(),
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=words,
            img_ids=torch.cat([self._ids(x, 0), self._ids(reference, _REFERENCE)]),
            return_dict=False,
        )[0]
        height, width = x.shape[-2:]
        return common.unpack(v[:, : height * width // 4].float(), height, width)
