"""What the two Gymnasium faces share: the task from plain arguments, spaces, observations, actions, scores."""

import string
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space, spaces
from torch import Tensor

from srgym import rewards
from srgym.envs import sources
from srgym.envs.sources import Source
from srgym.envs.task import SRTask
from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.base import Reward

__all__ = [
    "RewardSpec",
    "SourceSpec",
    "action_space",
    "build_task",
    "fixed_size",
    "observation_space",
    "read_actions",
    "numpy_reward",
]

SourceSpec = Spec | Source
RewardSpec = Spec | Reward


def build_task(source: SourceSpec, reward: RewardSpec, prompts: bool | str) -> SRTask:
    """The task of an environment's arguments."""
    return SRTask(sources.make(source), rewards.make(reward), prompts=prompts)


def fixed_size(task: SRTask) -> tuple[int, int]:
    """(h, w) of every LR image.

    Raises:
        ValueError: when they differ: a space has one shape.
    """
    if task.source.size is None:
        raise Refusal(
            f"an environment needs images of one size, and those of the source '{task.source.name}' differ: "
            "give it size=..., the side of a crop in HR pixels, or use srgym.envs.SRTask, which takes any"
        )
    return task.source.size


def observation_space(task: SRTask) -> Space[Any]:
    """LR as uint8 [h, w, 3], alone or, with prompts, as `lr` beside `prompt`."""
    image = spaces.Box(0, 255, (*fixed_size(task), 3), np.uint8)
    if not task.prompts:
        return image
    texts = [task.prompts] if isinstance(task.prompts, str) else task.source.prompts()
    # A Text space lists its characters, so it has to know what the prompts hold beyond ASCII.
    alphabet = frozenset("".join(texts)) | frozenset(string.ascii_letters + string.digits + string.punctuation + " ")
    longest = max(1, *(len(text) for text in texts)) if texts else 1
    return spaces.Dict({"lr": image, "prompt": spaces.Text(longest, min_length=0, charset=alphabet)})


def action_space(task: SRTask) -> spaces.Box:
    """SR as float32 [h * scale, w * scale, 3] in [0, 1]."""
    height, width = fixed_size(task)
    return spaces.Box(0.0, 1.0, (height * task.scale, width * task.scale, 3), np.float32)


def read_actions(actions: npt.ArrayLike, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Actions [N, H, W, 3] as images [N, 3, H, W] on a device, clipped to [0, 1]; NaN stays.

    Raises:
        ValueError: for another shape, or for integers: levels of 0 to 255 would be taken for white.
    """
    array = np.asarray(actions)
    if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
        raise Refusal(
            f"expected SR as floats in [0, 1] of shape {list(shape)}, got {array.dtype} of {list(array.shape)}"
        )
    images = torch.tensor(array, dtype=torch.float32, device=device)
    return images.movedim(-1, -3).clamp(0, 1).contiguous()


def numpy_reward(total: Tensor, invalid_reward: float | None) -> npt.NDArray[np.float64]:
    """Totals as the environment tells them: NaN where there is no score, or the number that the user chose for it."""
    rewards_ = total.detach().double().cpu().numpy().copy()
    if invalid_reward is not None:
        rewards_[np.isnan(rewards_)] = invalid_reward
    return rewards_
