"""Supervised fine-tuning of a judge on the questions that it will be asked in use, through TRL's SFTTrainer."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.serving.prompts import COMPASS_FIELDS
from srgym.runners.judges.trainer import TrainSettings, adapter, arguments, processes, processor

__all__ = ["Example", "Examples", "compass_answer", "from_png", "make_dataset", "open_image", "sft_trainer"]


@dataclass(frozen=True)
class Example:
    """One question and the answer to learn.

    Attributes:
        text: of the question. images: PNG files, shown before it. answer: the whole of it.
    """

    text: str
    images: tuple[bytes, ...]
    answer: str


class Examples(Protocol):
    """Examples by number, each made when it is asked for: images of a large set don't fit the memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


def compass_answer(scores: Mapping[str, float], description: str) -> str:
    """The answer to COMPASS's question: its scores with two decimals, and then the reasons.

    Args:
        scores: of `COMPASS_FIELDS`; without `fidelity` where that isn't known.

    Raises:
        Refusal: for a score that isn't in its range.
    """
    parts = []
    for name, (low, high) in COMPASS_FIELDS.items():
        if name in scores:
            if not low <= scores[name] <= high:
                raise Refusal(f"expected '{name}' in [{low:g}, {high:g}] as a label, got {scores[name]}")
            parts.append(f'"{name}":{scores[name]:.2f}')
    return "{" + ",".join([*parts, f'"description":{json.dumps(description, ensure_ascii=False)}']) + "}"


def make_dataset(examples: Examples) -> Any:
    """Examples as TRL takes them: `prompt` and `completion` as messages, and `images`, opened when a row is taken."""
    from datasets import Dataset

    def rendered(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        rows = [examples[i] for i in batch["row"]]
        return {
            "prompt": [[{"role": "user", "content": row.text}] for row in rows],
            "completion": [[{"role": "assistant", "content": row.answer}] for row in rows],
            "images": [[open_image(image) for image in row.images] for row in rows],
        }

    return Dataset.from_dict({"row": range(len(examples))}).with_transform(rendered)


def from_png(png: bytes) -> Tensor:
    """A PNG file as an image [3, H, W] in [0, 1]."""
    pixels = np.array(open_image(png))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def open_image(png: bytes) -> Any:
    """A PNG file as the engines that ask in use hand it to the processor."""
    return Image.open(io.BytesIO(png)).convert("RGB")


def sft_trainer(settings: TrainSettings, model: Path, examples: Examples, folder: Path) -> Any:
    """TRL's trainer of a model, by its folder, on examples; the loss is that of the answers alone.

    Raises:
        Refusal: if the batch isn't a multiple of what the processes hold at once, or larger than the set.
    """
    from trl import SFTConfig, SFTTrainer

    at_once = settings.microbatch * processes()
    if settings.batch % at_once:
        raise Refusal(
            f"batch={settings.batch}: expected a multiple of microbatch={settings.microbatch} times "
            f"{processes()} process(es)"
        )
    if len(examples) < settings.batch:
        raise Refusal(f"batch={settings.batch} is more than the {len(examples)} rows that there are to train on")
    config = SFTConfig(
        **arguments(settings, folder), per_device_train_batch_size=settings.microbatch,
        gradient_accumulation_steps=settings.batch // at_once, completion_only_loss=True, max_length=None,
    )  # fmt: skip
    return SFTTrainer(
        model=str(model), args=config, train_dataset=make_dataset(examples), peft_config=adapter(settings),
        processing_class=processor(settings, model),
    )  # fmt: skip
