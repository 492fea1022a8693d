"""The bandit as a TorchRL environment of batch [groups, group size]."""

from typing import Any

import numpy as np
import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase

from srgym.envs.spaces import RewardSpec, SourceSpec, build_task, fixed_size
from srgym.envs.task import Context
from srgym.errors import Refusal

__all__ = ["SuperResolutionTorchEnv"]


class SuperResolutionTorchEnv(EnvBase):
    """G contexts, each K times: episodes of one step, scored in one call.

    - Observations: `lr` float32 [G, K, 3, h, w] in [0, 1], the same along K; `index` int64 [G, K], the context's place
      in the source; `valid` bool [G, K, 1], whether the last action got a score (False before there was one); with
      prompts, `prompt`, a text each.
    - Action: `action` float32 [G, K, 3, h * scale, w * scale] in [0, 1], clipped to it.
    - Reward: float32 [G, K, 1]; NaN where `valid` is False, or the number chosen as `invalid_reward`.

    Every episode terminates after one step.

    A partial reset draws new contexts for whole groups.

    Args:
        groups, group_size: G and K.
        source, reward, prompts, invalid_reward: see `SuperResolutionEnv`.
        seed: of the generator that draws contexts; None: from the system.
        device: of the tensors, and where rewards are computed.

    Raises:
        Incompatible: when the reward needs what the source doesn't give.
        ValueError: for an unknown name or argument, or a source of images of different sizes.
    """

    batch_locked = True

    def __init__(
        self,
        groups: int = 1,
        group_size: int = 1,
        source: SourceSpec = "photographs",
        reward: RewardSpec = "psnr_y",
        prompts: bool | str = False,
        invalid_reward: float | None = None,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if groups < 1 or group_size < 1:
            raise Refusal(f"groups and group_size are at least 1, got {groups} and {group_size}")
        self.task = build_task(source, reward, prompts)
        super().__init__(device=torch.device(device), batch_size=torch.Size([groups, group_size]))
        self._invalid_reward = invalid_reward
        self._context: Context | None = None
        self._generator = np.random.default_rng(seed)
        self._make_specs()

    def _make_specs(self) -> None:
        shape, scale = tuple(self.batch_size), self.task.scale
        height, width = fixed_size(self.task)
        seen: dict[str, Any] = {
            "lr": Bounded(0.0, 1.0, (*shape, 3, height, width), dtype=torch.float32),
            "index": Bounded(0, len(self.task) - 1, shape, dtype=torch.int64),
            "valid": Binary(1, (*shape, 1), dtype=torch.bool),
        }
        if self.task.prompts:
            seen["prompt"] = NonTensor(shape, example_data="")
        flag = Binary(1, (*shape, 1), dtype=torch.bool)
        self.observation_spec = Composite(seen, shape=shape)
        self.action_spec = Bounded(0.0, 1.0, (*shape, 3, height * scale, width * scale), dtype=torch.float32)
        self.reward_spec = Unbounded((*shape, 1), dtype=torch.float32)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=shape)

    def _set_seed(self, seed: int | None) -> None:
        self._generator = np.random.default_rng(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        groups = self._groups_to_reset(tensordict)
        old = None if self._context is None else self._context.index.numpy()
        places = np.zeros(self.batch_size[0], np.int64) if old is None else old.copy()
        places[groups] = self._generator.integers(len(self.task), size=int(groups.sum()))
        self._context = self.task.context(torch.from_numpy(places))
        kept = ~torch.from_numpy(groups)[:, None, None].expand(*self.batch_size, 1).to(self.device)
        valid = torch.zeros_like(kept) if tensordict is None or not kept.any() else tensordict["valid"] & kept
        return TensorDict({**self._seen(self._context), "valid": valid, **self._flags(False)}, self.batch_size)

    def _groups_to_reset(self, tensordict: TensorDictBase | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None or self._context is None:
            return np.ones(self.batch_size[0], dtype=np.bool_)
        rows = mask.reshape(self.batch_size).cpu()
        if bool((rows.any(1) != rows.all(1)).any()):
            raise Refusal(
                f"expected a reset of whole groups of {self.batch_size[1]} rows, which share a context, "
                f"got {rows.tolist()}"
            )
        whole: np.ndarray[Any, np.dtype[np.bool_]] = rows.all(1).numpy()
        return whole

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        assert self._context is not None
        sr = tensordict["action"].flatten(0, 1).clamp(0, 1)
        scored = self.task.score(self._context, sr)
        reward = scored.total.detach().reshape(*self.batch_size, 1)
        valid = scored.valid.reshape(*self.batch_size, 1)
        if self._invalid_reward is not None:
            reward = torch.where(valid, reward, self._invalid_reward)
        after = {**self._seen(self._context), "valid": valid, "reward": reward, **self._flags(True)}
        return TensorDict(after, self.batch_size)

    def _seen(self, context: Context) -> dict[str, Any]:
        size = self.batch_size[1]
        seen: dict[str, Any] = {
            "lr": context.lr.to(self.device)[:, None].repeat(1, size, 1, 1, 1),
            "index": context.index.to(self.device)[:, None].repeat(1, size),
        }
        if context.prompt is not None:
            seen["prompt"] = NonTensorStack.from_list([[text] * size for text in context.prompt])
        return seen

    def _flags(self, over: bool) -> dict[str, Tensor]:
        flag = torch.full((*self.batch_size, 1), over, dtype=torch.bool, device=self.device)
        return {"done": flag, "terminated": flag.clone(), "truncated": torch.zeros_like(flag)}
