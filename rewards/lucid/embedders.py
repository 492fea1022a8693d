"""Frozen networks that say in one vector what an image shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import Refusal
from srgym.rewards.deep_features import Lite0
from srgym.rewards.serving.server import model_folder

__all__ = ["EMBEDDERS", "Embedder", "Lite0Embedder", "Qwen3VLEmbedder", "make_embedder"]

_INSTRUCTION = "Represent the user's input."  # of the published scorer, and of Qwen3-VL-Embedding


class Embedder(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to vectors [B, D], each image's its own.

    Attributes:
        width: D. differentiable: whether a gradient reaches the images.
    """

    width: int
    differentiable: bool


class Lite0Embedder(Embedder):
    """EfficientNet-Lite0's last two maps of features, averaged over 3 x 3 places, so that it matters where things are.

    For machines without an accelerator; it knows nothing of words. Its weights lie in a package: `srgym[judges]`.
    """

    differentiable = True

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        self.network = Lite0("lucid_consistency", path).requires_grad_(False)
        self.width = 9 * sum(level.shape[1] for level in self.network(torch.zeros(1, 3, 32, 32))[-2:])

    def forward(self, images: Tensor) -> Tensor:
        places = [F.adaptive_avg_pool2d(level, 3).flatten(1) for level in self.network(images)[-2:]]
        return torch.cat([F.layer_norm(level, level.shape[1:]) for level in places], 1)


class Qwen3VLEmbedder(Embedder):
    """Qwen3-VL, such as Qwen3-VL-Embedding-8B: the last layer at the last token of a turn that holds the image alone.

    Args:
        path: the folder of the model and its processor; nothing is downloaded.

    Raises:
        FileNotFoundError: if `path` holds no model. ValueError: without a path.
    """

    differentiable = False

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        if path is None:
            raise Refusal("lucid_consistency: the embedder 'qwen3_vl' needs path, the folder of a Qwen3-VL, got none")
        from transformers import AutoModel, AutoProcessor

        folder = model_folder(path)
        self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model: Any = AutoModel.from_pretrained(folder, dtype="auto", local_files_only=True)
        self.model.requires_grad_(False).eval()
        self.width = int(self.model.config.text_config.hidden_size)
        system = {"role": "system", "content": [{"type": "text", "text": _INSTRUCTION}]}
        self._turn = [system, {"role": "user", "content": [{"type": "image"}]}]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        prompt = self.processor.apply_chat_template(self._turn, add_generation_prompt=True, tokenize=False)
        rows = []
        for image in (images.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8):
            inputs = self.processor(text=[prompt], images=[to_pil_image(image)], return_tensors="pt").to(
                self.model.device
            )
            rows.append(self.model(**inputs).last_hidden_state[0, -1].float())
        return torch.stack(rows).to(images.device)


EMBEDDERS: dict[str, Callable[..., Embedder]] = {"lite0": Lite0Embedder, "qwen3_vl": Qwen3VLEmbedder}


def make_embedder(name: str, path: str | None = None) -> Embedder:
    """An embedder by name; `path`: its weights, where they aren't in a package.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in EMBEDDERS:
        raise Refusal(f"lucid_consistency: expected an embedder of {', '.join(EMBEDDERS)}, got '{name}'")
    return EMBEDDERS[name](path)
