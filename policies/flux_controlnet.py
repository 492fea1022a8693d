"""FLUX.1 with a ControlNet that sees the LR image, as a super-resolution policy."""

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.policies import diffusers_common as common
from srgym.policies.diffusers_policy import open_pipeline
from srgym.policies.flux_kontext import Flux

__all__ = ["FluxControlNetPolicy"]


class FluxControlNetPolicy(Flux):
    """FLUX.1 [dev] and a ControlNet for it: the ControlNet stays frozen, the LoRA goes on the transformer.

    The control is the mode of the VAE's distribution of the enlarged LR image; the stock pipeline draws a sample of it.

    Args:
        controlnet: a folder with the ControlNet, where `path` is a plain FLUX.1; None: `path` is a pipeline with both.
        conditioning_scale: what the ControlNet's residuals are multiplied by.
        path, pipe, embedded_guidance, max_length, **options: see `Flux` and `DiffusersPolicy`.

    Raises:
        ValueError: for a ControlNet that takes pixels in place of latents (XLabs').
    """

    name = "flux_controlnet"
    pipeline = "FluxControlNetPipeline"

    def __init__(
        self,
        path: str | None = None,
        *,
        controlnet: str | None = None,
        conditioning_scale: float = 0.7,
        **options: Any,
    ) -> None:
        self._controlnet_path = str(Path(controlnet).expanduser().resolve()) if controlnet is not None else None
        super().__init__(path, **options)
        if self.pipe.controlnet.input_hint_block is not None:
            raise Refusal("flux_controlnet: expected a ControlNet that takes latents, got one that takes pixels")
        self._conditioning_scale = conditioning_scale
        self._options |= {"controlnet": self._controlnet_path, "conditioning_scale": conditioning_scale}

    def _open(self, path: str, dtype: str) -> Any:
        if self._controlnet_path is None:
            return open_pipeline(path, self.pipeline, dtype)
        from diffusers import FluxControlNetModel

        if not (Path(self._controlnet_path) / "config.json").is_file():
            raise MissingFile(f"expected a FLUX ControlNet in {self._controlnet_path}, which has no config.json")
        model = FluxControlNetModel.from_pretrained(
            self._controlnet_path, dtype=getattr(torch, dtype), local_files_only=True
        )
        return open_pipeline(path, self.pipeline, dtype, controlnet=model)

    def _prepare(self, checkpointing: bool, compiled: bool) -> None:
        self.controlnet = self.pipe.controlnet
        super()._prepare(checkpointing, compiled)

    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        tokens = common.pack(x).to(self.dtype)
        inputs = self._inputs(x, t, text, self._ids(x, 0))
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):  # else nothing trained precedes it
            blocks, single_blocks = self._control(x, t, cond)
        v = self.transformer(
            hidden_states=tokens,
            guidance=self._guidance(self.transformer, x),
            controlnet_block_samples=blocks,
            controlnet_single_block_samples=single_blocks,
            **inputs,
        )[0]
        return common.unpack(v.float(), *x.shape[-2:])

    def _control(self, x: Tensor, t: Tensor, cond: TensorDict) -> tuple[Any, Any]:
        """The ControlNet's residuals, always under the positive prompt, as the stock pipeline has it."""
        residuals: tuple[Any, Any] = self.controlnet(
            hidden_states=common.pack(x).to(self.dtype),
            controlnet_cond=common.pack(cond["reference"]).to(self.dtype),
            conditioning_scale=self._conditioning_scale,
            guidance=self._guidance(self.controlnet, x),
            **self._inputs(x, t, cond, self._ids(x, 0)),
        )
        return residuals
