"""What a judge's training will need, said before anything is loaded: parameters, memory on every GPU, and time."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srgym.policies.estimate import PEAKS
from srgym.rewards.serving.prompts import COMPASS_FIELDS, REFREWARD, compass
from srgym.runners.judges.trainer import TrainSettings

__all__ = ["Sizes", "bytes_per_gpu", "model_sizes", "plan", "seconds"]

_GIB = 2**30
_DEVICE, _SHARE = "H100", 0.4
_STREAM = 3e12  # bytes a second that such a device reads of its memory
_PATCH = 32  # pixels a side of what becomes one token
_WORD = 4  # letters of a token, about
_ANSWER = 60  # tokens, with a sentence of reasons

# Qwen3-VL-8B, as its configuration says.
_TEXT_8B = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
_VISION_8B = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 4096, "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model: all, of the vision tower, of a LoRA on the language model's layers; and what activations
    are made of."""

    whole: int
    vision: int
    lora: int
    layers: int
    width: int
    vocabulary: int


def model_sizes(model: Path | None, rank: int) -> Sizes:
    """Of a model's folder; of Qwen3-VL-8B when None. Nothing is loaded."""
    from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3VLConfig

    if model is None:
        config: Any = Qwen3VLConfig(text_config=_TEXT_8B, vision_config=_VISION_8B, tie_word_embeddings=False)
    else:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        core = AutoModelForImageTextToText.from_config(config)
    layers = [m for name, m in core.named_modules() if isinstance(m, torch.nn.Linear) and "_proj" in name]
    text = config.get_text_config()
    return Sizes(
        sum(p.numel() for p in core.parameters()),
        sum(p.numel() for name, p in core.named_parameters() if "visual" in name),
        sum(rank * (layer.in_features + layer.out_features) for layer in layers),
        text.num_hidden_layers, text.hidden_size, text.vocab_size,
    )  # fmt: skip


def bytes_per_gpu(sizes: Sizes, settings: TrainSettings, gpus: int, tokens: int) -> dict[str, float]:
    """Bytes on each of the GPUs, by what for.

    Full training: float32 weights, gradients and AdamW's two moments, 16 bytes a parameter, sharded (FSDP2). A LoRA:
    the frozen weights on every GPU, and 16 bytes a parameter of its own. Activations, of a microbatch: what every layer
    is given where gradients are checkpointed (else about 17 of that), and the logits with their gradient in float32.
    """
    frozen = {"float32": 4, "bfloat16": 2}[settings.dtype]
    width = 2 if settings.autocast or settings.dtype == "bfloat16" else 4
    kept = 1 if settings.gradient_checkpointing else 17
    state = {"weights, gradients, moments": 16 * sizes.whole / gpus}
    if settings.tuning == "lora":
        state = {"frozen weights": float(frozen * sizes.whole), "LoRA": 16.0 * sizes.lora}
    elif gpus > 1:
        state["a gathered layer"] = width * (sizes.whole - sizes.vision) / sizes.layers
    rows = settings.microbatch
    return {
        **state, "activations": float(rows * tokens * sizes.width * width * sizes.layers * kept),
        "logits": 8.0 * rows * tokens * sizes.vocabulary,
    }  # fmt: skip


def seconds(sizes: Sizes, settings: TrainSettings, gpus: int, rows: int, tokens: int) -> tuple[float, float]:
    """Seconds of updates, and of writing answers, on the GPUs; `rows` are questions, each as often as it is met.

    2 operations a parameter and token forward, 4 backward (2 where weights are frozen), 2 to compute a checkpointed
    layer again. Answers (ranking) read the weights once a token, for all that are written together.
    """
    per = 2 + (2 if settings.tuning == "lora" else 4) + (2 if settings.gradient_checkpointing else 0)
    answers = settings.ranking.answers if settings.recipe == "refreward" else 1
    operations = per * sizes.whole * tokens * rows * answers
    speed = gpus * PEAKS[_DEVICE] * _SHARE
    if settings.recipe != "refreward":
        return operations / speed, 0.0
    at_once = settings.ranking.rows
    steps = rows * answers / at_once / gpus
    reading = settings.ranking.tokens * 2 * sizes.whole / _STREAM
    prefill = 2 * sizes.whole * tokens * at_once / (PEAKS[_DEVICE] * _SHARE)
    return operations / speed, steps * (reading + prefill)


def tokens_of(settings: TrainSettings) -> int:
    """Of a question with its images, at most, and its answer."""
    images = 3 if settings.recipe == "compare" else 2
    text = REFREWARD if settings.recipe == "refreward" else compass("synthetic")
    answer = {"compass": _ANSWER + 6 * len(COMPASS_FIELDS), "compare": 2, "refreward": settings.ranking.tokens}
    return images * math.ceil(settings.max_pixels / _PATCH**2) + len(text) // _WORD + answer[settings.recipe]


def plan(settings: TrainSettings, model: Path | None, rows: int, gpus: int) -> str:
    """The plan in words.

    Args:
        model: the folder to start from; None where it isn't here, which is reckoned as Qwen3-VL-8B.
        rows: of the set. gpus: how many.
    """
    sizes, tokens = model_sizes(model, settings.lora.rank), tokens_of(settings)
    memory = bytes_per_gpu(sizes, settings, gpus, tokens)
    batch = settings.batch if settings.recipe != "refreward" else settings.ranking.rows * gpus
    per_step = batch if settings.recipe != "refreward" else batch // settings.ranking.answers
    steps = settings.steps or math.ceil(settings.epochs * rows / per_step)
    update, writing = seconds(sizes, settings, gpus, steps * per_step, tokens)
    named = str(model) if model is not None else "Qwen3-VL-8B (the model's folder isn't here)"
    lines = [
        f"recipe {settings.recipe}, {settings.tuning} training of {named}",
        f"  {sizes.whole / 1e9:.3f} B parameters, {sizes.vision / 1e9:.2f} B of them vision"
        + (f"; LoRA of rank {settings.lora.rank}: {sizes.lora / 1e6:.0f} M" if settings.tuning == "lora" else ""),
        f"  {rows} rows, {tokens} tokens each at most, {steps} steps of {batch} rows",
        f"  {sum(memory.values()) / _GIB:.1f} GiB on each of {gpus} GPU(s): "
        + ", ".join(f"{name} {size / _GIB:.1f}" for name, size in memory.items()),
        f"  {_time(update + writing)} on {gpus} {_DEVICE}(s) at {_SHARE:.0%} of the peak"
        + (f", of which writing answers {_time(writing)}" if writing else ""),
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"
