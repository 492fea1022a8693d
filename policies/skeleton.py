"""A policy without storage: its own networks on torch's meta device, to count on before anything is loaded."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from srgym.policies import adapters
from srgym.policies.base import Policy
from srgym.policies.diffusers_policy import DiffusersPolicy
from srgym.policies.flow import FlowPolicy
from srgym.policies.registry import policy_class
from srgym.policies.vlcot.chameleon import Parts
from srgym.policies.vlcot.lumina import Layout, LuminaVLCoT
from srgym.sealed import read_object

__all__ = ["MODELS", "blank_condition", "skeleton"]

# The published models, for where no folder of theirs is at hand: diffusers' own defaults are Qwen-Image's and FLUX's.
_SD35_MEDIUM = {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
_KL_VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 16,
    "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611,
}  # fmt: skip
_KLEIN_4B = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
    "guidance_embeds": False,
}  # fmt: skip
_T5, _CLIP_L, _CLIP_G, _QWEN_VL, _QWEN3_4B = 4.76e9, 0.123e9, 0.695e9, 8.29e9, 4.02e9
MODELS: dict[str, dict[str, Any]] = {
    "qwen_image_edit": {
        "transformer": ("QwenImageTransformer2DModel", {}), "vae": ("AutoencoderKLQwenImage", {}), "text": _QWEN_VL,
    },
    "flux_kontext": {
        "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}), "vae": ("AutoencoderKL", _KL_VAE),
        "text": _T5 + _CLIP_L,
    },
    "flux_controlnet": {
        "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}), "vae": ("AutoencoderKL", _KL_VAE),
        "controlnet": ("FluxControlNetModel", {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True}),
        "text": _T5 + _CLIP_L,
    },
    "flux2_klein": {
        "transformer": ("Flux2Transformer2DModel", _KLEIN_4B), "vae": ("AutoencoderKLFlux2", {}), "text": _QWEN3_4B,
    },
    "sd3": {
        "transformer": ("SD3Transformer2DModel", _SD35_MEDIUM), "vae": ("AutoencoderKL", _KL_VAE),
        "text": _T5 + _CLIP_L + _CLIP_G,
    },
}  # fmt: skip


def skeleton(name: str, options: Mapping[str, Any], lora: Mapping[str, Any] | None = None) -> Policy:
    """A policy on the meta device: of the models in the folder that `options` names, else of the published ones.

    Args:
        name: the policy's name.
        options: its keyword arguments.
        lora: rank, alpha and targets of its adapters; None: all weights are trained.
    """
    kept = {key: value for key, value in options.items() if key not in ("path", "controlnet", "cache")}
    with torch.device("meta"):
        if name in MODELS:
            dtype = getattr(torch, str(options.get("dtype", "bfloat16")))
            kept |= {"compiled": False, "text_encoder": "keep", "vae_encoder": "keep"}
            policy: Policy = policy_class(name)(pipe=_pipe(name, options).to(dtype), **kept)  # type: ignore[call-arg]
        elif name == "lumina_vlcot":
            policy = _hollow_writer(options)
        else:
            kind = policy_class(name)
            policy = kind(**kept | ({"weights": None} if "weights" in signature(kind).parameters else {}))
        if lora is not None:
            targets = tuple(lora.get("targets") or policy.lora_targets)
            policy.lora = adapters.LoraSettings(lora["rank"], lora["alpha"], targets, policy.lora_exclude)
            adapters.inject(policy.core, policy.lora)
            learner = {id(parameter) for _, parameter in adapters.parameters(policy.core, "default")}
            for parameter in policy.parameters():
                parameter.requires_grad_(id(parameter) in learner)
    return policy.to("meta")  # transformers can leave torch.linspace behind with the CPU as its device


def _hollow_writer(options: Mapping[str, Any]) -> LuminaVLCoT:
    kept = {key: value for key, value in options.items() if key not in ("path", "vq")}
    codes = sum(count for _, count in Layout(**(kept.get("layout") or {})).codes)
    return LuminaVLCoT(pipe=Parts.hollow(options.get("path"), kept.get("dtype", "bfloat16"), codes), **kept)


class _Pipe(SimpleNamespace):
    """What a policy takes of a pipeline, without its text encoders."""

    def to(self, dtype: torch.dtype) -> "_Pipe":
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                nn.Module.to(part, dtype)
        return self


def _pipe(name: str, options: Mapping[str, Any]) -> _Pipe:
    import diffusers

    known, folder = MODELS[name], options.get("path")
    parts: dict[str, Any] = {}
    for part in ("transformer", "vae", "controlnet"):
        if part not in known:
            continue
        kind, arguments = known[part]
        where = Path(options["controlnet"]) if part == "controlnet" and options.get("controlnet") else None
        if where is None and folder is not None and (Path(folder) / part / "config.json").is_file():
            where = Path(folder) / part
        model = getattr(diffusers, kind)
        if where is not None:
            parts[part] = model.from_config(read_object(where / "config.json", {}))
        else:
            parts[part] = model(**arguments)
    vae = parts["vae"].config
    factor = 2 ** (len(vae.temperal_downsample) if name == "qwen_image_edit" else len(vae.block_out_channels) - 1)
    return _Pipe(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae_scale_factor=factor, **parts)


def blank_condition(policy: FlowPolicy, count: int, height: int, width: int) -> TensorDict:
    """A condition [count] of the right shapes on the meta device, for LR images of height x width."""
    tall, wide = policy.scale * height, policy.scale * width
    size = torch.tensor([[tall, wide]]).expand(count, 2)
    if not isinstance(policy, DiffusersPolicy):
        with torch.no_grad():
            encoded = policy.encode({"lr": torch.empty(count, 3, height, width, device="meta")})
        encoded["size"] = size  # read on the way, so it must have values
        return encoded
    config = policy.transformer.config
    with torch.no_grad():
        reference = policy._reference(torch.empty(1, 3, tall, wide, device="meta"))
    options = policy._options
    tokens = options.get("max_length", 0) + (77 if policy.name == "sd3" else 0)
    if policy.name == "qwen_image_edit":  # the picture's tokens, and some words
        tokens = round(options["text_image"] / 28) ** 2 + 32 + len(policy.prompt.split()) * 3 // 2
    embeds = torch.empty(count, tokens, config.joint_attention_dim, device="meta", dtype=policy.dtype)
    cond = {
        "size": size,
        "reference": reference.expand(count, -1, -1, -1),
        "embeds": embeds,
    }
    if "pooled_projection_dim" in config:
        cond["pooled"] = torch.empty(count, config.pooled_projection_dim, device="meta", dtype=policy.dtype)
    whole: TensorDict = TensorDict(cond, batch_size=[count])
    return whole
