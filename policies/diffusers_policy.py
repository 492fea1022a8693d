"""A flow policy over a diffusers pipeline: what Qwen-Image-Edit, FLUX and SD3 have in common.

The pipeline's own transformer, VAE, text encoders and scheduler do the work; a policy says how they are called.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import MissingFile, Refusal
from srgym.policies import diffusers_common as common
from srgym.policies.flow import FlowPolicy
from srgym.sealed import read_object

__all__ = ["DiffusersPolicy", "core_state", "open_pipeline", "write_core"]


def open_pipeline(path: str | Path, class_name: str, dtype: str, **components: Any) -> Any:
    """A diffusers pipeline from a local folder, nothing fetched.

    Raises:
        FileNotFoundError: if there is no pipeline in the folder.
        ValueError: for another pipeline's folder, or an unknown type of number.
    """
    folder = Path(path).expanduser()
    index = folder / "model_index.json"
    if not index.is_file():
        raise MissingFile(
            f"expected a {class_name} saved by diffusers in {folder}, which has no model_index.json; "
            "fetch the model's repository into a folder and give that as path"
        )
    named = read_object(index, {}).get("_class_name")
    if named != class_name and not components:
        raise Refusal(f"expected a {class_name} in {folder}, got a {named}")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise Refusal(f"dtype: expected float32, bfloat16 or float16, got '{dtype}'")
    import diffusers

    kind = getattr(diffusers, class_name)
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, **components)


def core_state(core: nn.Module) -> dict[str, Tensor]:
    """A transformer's own weights under their own names, whatever adapters sit on it."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in core.state_dict().items() if ".lora_" not in name
    }


def write_core(core: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a transformer as diffusers does: `config.json` and safetensors, in shards of 5 GB."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    core.save_config(folder)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_torch_state_dict(whole, folder, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")


class DiffusersPolicy(FlowPolicy):
    """What the four foundation-model policies share.

    A condition is a TensorDict [G] with `reference` (the LR image, bicubically enlarged, as latents [C, h, w]), `size`
    (the SR image's height and width), the prompt's `embeds` [L, D] with `mask` or `pooled` where the model wants them,
    and `negative`, the same of the negative prompt, where there is one.

    Args:
        path: a folder in diffusers' format; nothing is downloaded.
        pipe: a pipeline object in its place.
        scale: how many times larger the SR image is, from 1.
        prompt: for contexts without their own.
        negative_prompt: for classifier-free guidance (`Sampling.guidance` above 1, twice the cost); None: no guidance.
        dtype: of the base's weights, "bfloat16", "float16" or "float32". LoRA, latents and times are float32 always.
        checkpointing: recompute blocks, and the decoder, in the backward pass: a third more time, far less memory.
        compiled: `torch.compile` the transformer's blocks: a minute at first, and again for each adapter.
        decode_tile: decode in tiles of this many pixels a side; None: whole.
        rows: samples in one forward where no gradient is kept. A memory knob.
        text_encoder, vae_encoder: "keep" on the device, "offload" to the CPU between uses, or "drop" after the first.
        cache: a folder for the prompts' embeddings, which other runs of the same text encoder share.
        cache_size: contexts whose conditions stay in memory.
        lora_targets: endings of the modules that carry LoRA; None: the attention's projections.

    Raises:
        ValueError: for settings out of range, or where both or neither of `path` and `pipe` are given.
        FileNotFoundError: if there is no pipeline at `path`.
    """

    pipeline: ClassVar[str]
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(
        self,
        path: str | None = None,
        *,
        pipe: Any = None,
        scale: int = 4,
        prompt: str = "",
        negative_prompt: str | None = None,
        dtype: str = "bfloat16",
        checkpointing: bool = True,
        compiled: bool = False,
        decode_tile: int | None = None,
        rows: int = 8,
        text_encoder: str = "keep",
        vae_encoder: str = "keep",
        cache: str | None = None,
        cache_size: int = 256,
        lora_targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if (path is None) == (pipe is None):
            raise Refusal(f"{self.name}: expected one of path (a {self.pipeline} on disk) and pipe (such an object)")
        if scale < 1 or rows < 1:
            raise Refusal(f"{self.name}: scale and rows are at least 1, got {scale} and {rows}")
        self.path = str(Path(path).expanduser().resolve()) if path is not None else None
        self.pipe = pipe if pipe is not None else self._open(str(path), dtype)
        self.scale, self.prompt, self.negative_prompt = scale, prompt, negative_prompt
        self._options: dict[str, Any] = {
            "scale": scale, "prompt": prompt, "negative_prompt": negative_prompt, "dtype": dtype,
            "checkpointing": checkpointing, "compiled": compiled, "decode_tile": decode_tile, "rows": rows,
            "text_encoder": text_encoder, "vae_encoder": vae_encoder, "cache": cache, "cache_size": cache_size,
            "lora_targets": list(lora_targets) if lora_targets is not None else None,
        }  # fmt: skip
        if lora_targets is not None:
            self.lora_targets = tuple(lora_targets)
        self.transformer: Any = self.pipe.transformer
        self.vae: Any = self.pipe.vae
        self.factor: int = self.pipe.vae_scale_factor
        if decode_tile is not None and decode_tile < 8 * self.factor:
            raise Refusal(f"{self.name}: decode_tile is at least {8 * self.factor} pixels, got {decode_tile}")
        self.rows, self._decode_tile = rows, decode_tile and decode_tile // self.factor
        self._scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        self._changed = False
        self._prepare(checkpointing, compiled)
        self._texts = common.ConditionCache(cache_size, Path(cache).expanduser() if cache is not None else None)
        self._latents = common.ConditionCache(cache_size)
        encoders = [getattr(self.pipe, name, None) for name in self.text_encoders]
        self._text = common.OnDemand("text encoder", encoders, text_encoder, self._forget_text_encoders)
        parts = [getattr(self.vae, name, None) for name in ("encoder", "quant_conv")]
        self._vae_encoder = common.OnDemand("vae encoder", parts, vae_encoder, self._forget_vae_encoder)

    def _open(self, path: str, dtype: str) -> Any:
        return open_pipeline(path, self.pipeline, dtype)

    def _prepare(self, checkpointing: bool, compiled: bool) -> None:
        for name in self.text_encoders:
            encoder = getattr(self.pipe, name, None)
            if encoder is not None:
                encoder.requires_grad_(False).eval()
        self.requires_grad_(False).eval()
        self.core.requires_grad_(True)
        self._checkpointing = checkpointing
        models: list[Any] = list(self.children())
        for model in models:
            if checkpointing and getattr(model, "_supports_gradient_checkpointing", False):
                model.enable_gradient_checkpointing()
        if compiled:
            # Not by diffusers' compile_repeated_blocks: SD3's transformer and the ControlNets don't name theirs.
            for name in ("transformer_blocks", "single_transformer_blocks"):
                for block in (block for model in models for block in getattr(model, name, ())):
                    block.compile()

    def _forget_text_encoders(self) -> None:
        for name in self.text_encoders:
            setattr(self.pipe, name, None)

    def _forget_vae_encoder(self) -> None:
        self.vae.encoder = self.vae.quant_conv = nn.Identity()  # a VAE looks through its modules when it decodes

    def drop_encoders(self) -> None:
        """Free the text encoders and the VAE's encoder: from here on only contexts in the cache can be encoded."""
        self._text.drop()
        self._vae_encoder.drop()

    @property
    def core(self) -> nn.Module:
        core: nn.Module = self.transformer
        return core

    @property
    def dtype(self) -> torch.dtype:
        """The base's type of number."""
        return next(p.dtype for name, p in self.core.named_parameters() if ".lora_" not in name)

    # What a model says

    @abstractmethod
    def _encode_text(self, prompt: str, image: Tensor) -> dict[str, Tensor]:
        """A prompt's embeddings without the batch: `embeds` [L, D], and what else the transformer wants."""

    @abstractmethod
    def _predict(self, x: Tensor, t: Tensor, cond: TensorDict, text: TensorDict) -> Tensor:
        """The transformer's velocity [N, C, h, w] under the texts `text` (of `cond`, or its `negative`)."""

    def _text_key(self, image: Tensor) -> Sequence[str | bytes | Tensor]:
        """What a prompt's embedding depends on beside the prompt and the text encoder."""
        return ()

    def _reference(self, image: Tensor) -> Tensor:
        """The LR image at the SR image's size, [1, 3, H, W] in [0, 1], as the condition's latents [1, C, h, w]."""
        return self._to_latent(common.pad_to(image, 2 * self.factor))

    def _to_latent(self, image: Tensor) -> Tensor:
        distribution = self.vae.encode((2 * image - 1).to(self.vae.dtype)).latent_dist
        latent: Tensor = (distribution.mode().float() - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return latent

    def _to_image(self, latent: Tensor) -> Tensor:
        latent = latent / self.vae.config.scaling_factor + self.vae.config.shift_factor
        image: Tensor = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return image.float() / 2 + 0.5

    def _start(self, steps: int) -> Sequence[float] | None:
        """The times before the schedule's shift; None: the scheduler's own."""
        return list(np.linspace(1.0, 1 / steps, steps))

    def _combine(self, positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
        return negative + guidance * (positive - negative)

    # The interface

    @torch.no_grad()
    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        lr, prompts = obs["lr"], obs.get("prompt")
        prompts = [self.prompt] * len(lr) if prompts is None else list(prompts)
        if len(prompts) != len(lr):
            raise Refusal(f"expected a prompt for each of {len(lr)} contexts, got {len(prompts)}")
        device = self.device
        lr = lr.to(device)
        rows = [self._encode_one(lr[i : i + 1], prompt) for i, prompt in enumerate(prompts)]
        self._text.settle()
        self._vae_encoder.settle()
        size = torch.tensor([self.scale * lr.shape[-2], self.scale * lr.shape[-1]]).expand(len(lr), 2)
        cond = TensorDict({"size": size.clone()}, batch_size=[len(lr)])
        cond["reference"] = torch.stack([row["reference"]["latent"] for row in rows])
        cond.update(_stack([row["text"] for row in rows]))
        if self.negative_prompt is not None:
            cond["negative"] = _stack([row["negative"] for row in rows])
        return cond.to(device)

    def _encode_one(self, lr: Tensor, prompt: str) -> dict[str, dict[str, Tensor]]:
        """One context, alone: what it gives doesn't depend on the batch it came in."""
        image = common.resize(lr, self.scale * lr.shape[-2], self.scale * lr.shape[-1])

        def latent() -> dict[str, Tensor]:
            with self._vae_encoder.on(lr.device):
                return {"latent": self._reference(image)[0]}

        def text(words: str) -> Callable[[], dict[str, Tensor]]:
            def run() -> dict[str, Tensor]:
                with self._text.on(lr.device):
                    return self._encode_text(words, image)

            return run

        def key(words: str) -> str:
            return common.digest(self.name, self._text.fingerprint, words, *self._text_key(image))

        encoded = {
            "reference": self._latents.get(common.digest(lr), latent),
            "text": self._texts.get(key(prompt), text(prompt)),
        }
        if self.negative_prompt is not None:
            encoded["negative"] = self._texts.get(key(self.negative_prompt), text(self.negative_prompt))
        return encoded

    def velocity(self, x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
        return self._rowwise(lambda x, t, cond: self._predict(x, t, cond, cond), x, t, cond)

    def guided_velocity(
        self, x: Tensor, t: Tensor, cond: TensorDict, guidance: float, *, detached: bool = False
    ) -> Tensor:
        """Classifier-free guidance against the negative prompt.

        Raises:
            ValueError: if the policy was built without a negative prompt.
        """
        if cond.get("negative", None) is None:
            raise Refusal(
                f"guidance {guidance} needs a negative prompt: expected policy '{self.name}' built with "
                "negative_prompt, got None"
            )

        def guided(x: Tensor, t: Tensor, cond: TensorDict) -> Tensor:
            positive = self._predict(x, t, cond, cond)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
                negative = self._predict(x, t, cond, cond["negative"])
            return self._combine(positive, negative, guidance)

        return self._rowwise(guided, x, t, cond)

    def _rowwise(
        self, run: Callable[[Tensor, Tensor, TensorDict], Tensor], x: Tensor, t: Tensor, cond: TensorDict
    ) -> Tensor:
        if torch.is_grad_enabled() or len(x) <= self.rows:
            return run(x, t, cond)
        cuts = [slice(i, i + self.rows) for i in range(0, len(x), self.rows)]
        return torch.cat([run(x[cut], t[cut], cond[cut]) for cut in cuts])

    def decode(self, x0: Tensor, cond: TensorDict) -> Tensor:
        height, width = cond["size"][0].tolist()
        images = [
            common.decode_tiled(
                self._to_image, row, self.factor, self._decode_tile, checkpointed=self._checkpointing
            )[..., :height, :width]
            for row in torch.split(x0, 1)
        ]  # fmt: skip
        return torch.cat(images).clamp(0, 1)

    @torch.no_grad()
    def to_latent(self, image: Tensor, cond: TensorDict) -> Tensor:
        padded = common.pad_to(image.to(self.device), 2 * self.factor)
        with self._vae_encoder.on(self.device):
            return torch.cat([self._to_latent(row) for row in torch.split(padded, 1)])

    def latent_shape(self, cond: TensorDict) -> tuple[int, ...]:
        height, width = cond["size"][0].tolist()
        cell = 2 * self.factor
        return (cond["reference"].shape[1], 2 * -(-height // cell), 2 * -(-width // cell))

    def sigmas(self, steps: int, cond: TensorDict) -> Tensor:
        _, height, width = self.latent_shape(cond)
        return common.set_shifted_sigmas(self._scheduler, steps, height * width // 4, self._start(steps))

    # On disk

    @property
    def config(self) -> dict[str, Any]:
        if self.path is None:
            raise Refusal(f"policy '{self.name}' was built on a pipeline object: expected path, to name its base")
        return {"path": self.path, **self._options}

    def add_deltas(self, deltas: Mapping[str, Tensor], weight: float = 1.0) -> None:
        super().add_deltas(deltas, weight)
        self._changed = True

    def save_base(self, folder: Path) -> None:
        """The transformer, where it is no longer the one at `path`: trained in full, or merged into."""
        if self._changed or not self.has_adapters:
            write_core(self.core, core_state(self.core), folder / "transformer")

    def load_base(self, folder: Path) -> None:
        if not (folder / "transformer").is_dir():
            return
        core: Any = self.core
        stored = type(core).from_pretrained(folder / "transformer", dtype=self.dtype, local_files_only=True)
        core.load_state_dict(stored.state_dict())
        self._changed = True


def _stack(rows: Sequence[Mapping[str, Tensor]]) -> TensorDict:
    """Texts of contexts to one TensorDict [G]: `embeds` padded with zeros to the longest; `mask`, where there is one,
    says which are there."""
    length = max(len(row["embeds"]) for row in rows)
    padded = [
        {
            name: nn.functional.pad(value, (0, 0) * (value.dim() - 1) + (0, length - len(value)))
            if name in ("embeds", "mask")
            else value
            for name, value in row.items()
        }
        for row in rows
    ]
    names = padded[0].keys()
    return TensorDict({name: torch.stack([row[name] for row in padded]) for name in names}, batch_size=[len(rows)])
