"""What the trainings of all judges have in common: their settings, TRL's arguments, and a log as JSON lines."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoProcessor, TrainerCallback

from srgym.errors import Refusal
from srgym.rewards.serving.server import model_folder
from srgym.settings import Count, Natural, Positive, Share, check_arguments

__all__ = ["JsonLines", "Lora", "Ranking", "TrainSettings", "adapter", "arguments", "processes", "processor"]


@dataclass(frozen=True)
class Lora:
    """A LoRA on the language model's linear layers."""

    rank: Count = 64
    alpha: Positive = 128.0
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        check_arguments(Lora, vars(self), "lora.")


@dataclass(frozen=True)
class Ranking:
    """Ranking GRPO (recipe `refreward`).

    Attributes:
        images: M of one LR that are ranked together. answers: K to each.
        contexts: LR images in a process's step.
        temperature: of the answers. tokens: the longest. beta: weight of the KL divergence from the start.
        form: of the ranking reward (`srgym.rewards.refreward.FORMS`).
        margin: labels this near are a tie.
        warm_up, warm_up_lr: steps of SFT on answers with scores at random before, for a model that can't write them.
        vllm: let vLLM write the answers, kept on the pattern of the scores; where transformers does, nothing does.
    """

    images: Count = 4
    answers: Count = 8
    contexts: Count = 1
    temperature: Positive = 1.0
    tokens: Count = 40
    beta: float = 0.0
    form: Literal["linear", "square_root"] = "linear"
    margin: float = 0.0
    warm_up: Natural = 0
    warm_up_lr: Positive = 1e-5
    vllm: bool = False

    def __post_init__(self) -> None:
        check_arguments(Ranking, vars(self), "ranking.")
        if min(self.images, self.answers) < 2:
            raise Refusal(
                "ranking: expected at least 2 images of an LR and 2 answers to each, since they are compared "
                f"with each other, got {self.images} and {self.answers}"
            )

    @property
    def rows(self) -> int:
        """Answers in a process's step."""
        return self.contexts * self.images * self.answers


@dataclass(frozen=True)
class TrainSettings:
    """How a judge is trained.

    Attributes:
        model: folder of the model to start from; "tiny": a random one of a million weights, for trying the chain.
        recipe: compass (scores by SFT), compare (a pairwise judge by SFT) or refreward (scores by ranking GRPO).
        split: of the set.
        labels: calibrated scores, or the anchor's own (the ablation).
        tuning: all weights, or a LoRA, which is merged into them at the end.
        dtype: of the weights. bfloat16 is for a LoRA's frozen ones: AdamW at 1e-5 moves 16% of weights kept so.
        autocast: compute in bfloat16.
        max_pixels: of an image; larger ones are made smaller, in training and in use alike.
        epochs: over the set. batch: rows in an optimiser step, over all processes; microbatch: at once in one of them.
        warmup: share of the steps. checkpoint_every: steps.
        steps: optimiser steps in place of whole epochs.
    """

    model: str
    recipe: Literal["compass", "compare", "refreward"] = "compass"
    split: str = "train"
    labels: Literal["calibrated", "anchor"] = "calibrated"
    tuning: Literal["full", "lora"] = "full"
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    gradient_checkpointing: bool = False
    max_pixels: Count = 1_048_576
    epochs: Positive = 8.0
    steps: Count | None = None
    batch: Count = 64
    microbatch: Count = 8
    lr: Positive = 1e-5
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: Share = 0.03
    weight_decay: float = 0.0
    checkpoint_every: Count = 100
    seed: Natural = 0
    lora: Lora = field(default_factory=Lora)
    ranking: Ranking = field(default_factory=Ranking)

    def __post_init__(self) -> None:
        check_arguments(TrainSettings, vars(self), "")
        if self.tuning == "full" and self.dtype == "bfloat16":
            raise Refusal(
                "tuning=full with dtype=bfloat16: at a learning rate of 1e-5 AdamW moves 16% of weights "
                "that are kept in bfloat16, and the others not at all; keep them in float32 (dtype=float32, "
                "autocast=true computes in bfloat16), or train a LoRA (tuning=lora)"
            )


def processes() -> int:
    """How many processes train together, as torchrun and accelerate say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processor(settings: TrainSettings, model: Path) -> Any:
    """The model's processor with `max_pixels` fixed in it, so that whoever loads what is saved shows images alike."""
    loaded = AutoProcessor.from_pretrained(model_folder(model), local_files_only=True)
    size = dict(loaded.image_processor.size)
    if size["shortest_edge"] > settings.max_pixels:
        raise Refusal(
            f"max_pixels: expected at least the {size['shortest_edge']} pixels that this model's processor "
            f"enlarges small images to, got {settings.max_pixels}"
        )
    loaded.image_processor.size = size | {"longest_edge": settings.max_pixels}
    return loaded


def adapter(settings: TrainSettings) -> Any:
    """The LoRA of peft; None where all weights are trained."""
    from peft import LoraConfig

    if settings.tuning == "full":
        return None
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = settings.lora
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers, task_type="CAUSAL_LM"
    )


def arguments(settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """What TRL's configurations of all recipes are given. The model is named by its path: one that is loaded already
    would keep the dtype of its file, where a path's is `dtype`."""
    import torch

    return {
        "output_dir": str(folder), "learning_rate": settings.lr, "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup, "weight_decay": settings.weight_decay, "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1, "save_strategy": "steps", "save_steps": settings.checkpoint_every,
        "save_total_limit": 2, "logging_steps": 1, "seed": settings.seed, "bf16": settings.autocast,
        "gradient_checkpointing": settings.gradient_checkpointing, "use_cpu": not torch.cuda.is_available(),
        "report_to": [], "remove_unused_columns": False, "dataloader_num_workers": 0, "disable_tqdm": True,
        "model_init_kwargs": {"dtype": settings.dtype}, "trust_remote_code": False,
    }  # fmt: skip


_PRINTED = ("loss", "reward", "pair_accuracy", "ties", "unreadable")


class JsonLines(TrainerCallback):
    """Appends what a trainer logs to a file, a line a step, and prints ten of the lines. Those of steps that a resumed
    training does again are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            told = ", ".join(f"{key} {logs[key]:.3g}" for key in _PRINTED if key in logs)
            if told and state.global_step % max(1, state.max_steps // 10) == 0:
                print(f"step {state.global_step} of {state.max_steps}: {told}", flush=True)
