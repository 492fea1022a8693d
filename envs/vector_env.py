"""The bandit as a Gymnasium vector environment, in groups."""

from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from srgym.envs.rendering import panels, pixels
from srgym.envs.spaces import (
    RewardSpec,
    SourceSpec,
    action_space,
    build_task,
    numpy_reward,
    observation_space,
    read_actions,
)
from srgym.envs.task import Context
from srgym.errors import Refusal
from srgym.rewards.base import RewardOutput

__all__ = ["SuperResolutionVectorEnv"]

_Flags = npt.NDArray[np.bool_]


class SuperResolutionVectorEnv(VectorEnv[Any, npt.NDArray[np.float32], npt.NDArray[Any]]):
    """Many episodes of `SuperResolutionEnv` at once: contexts in groups, scored in one call.

    The `num_envs` rows are `num_envs / group_size` groups; the rows of a group are contiguous and have one context,
    drawn afresh for every episode. A reward that compares a group's images sees whole groups.

    Observations are uint8 [num_envs, h, w, 3]; with prompts, a dict of that as `lr` and of `prompt`, a tuple of texts.
    Actions are float32 [num_envs, h * scale, w * scale, 3] in [0, 1]. Infos are dicts of arrays with Gymnasium's masks
    (`_valid` beside `valid`): `id`, `index`, `group`, and of a step `valid` and `components`. Invalid scores are told
    as `SuperResolutionEnv` says.

    An episode is one step. After it:

    - autoreset "Disabled" (the default): call `reset()`, or `reset(options={"reset_mask": rows})` for whole groups.
    - "SameStep": the step returns the next episodes' observations; `infos["final_obs"]` and `infos["final_info"]` are
      those of the episodes that ended.
    - "NextStep" is refused: every other step would take an action, ignore it and tell a reward of 0.

    Args:
        num_envs: rows, a multiple of `group_size`.
        group_size: rows of one context.
        autoreset_mode: "Disabled" or "SameStep", or Gymnasium's enumeration of them.
        source, reward, prompts, invalid_reward, device, render_mode: see `SuperResolutionEnv`.

    Raises:
        Incompatible, ValueError: as `SuperResolutionEnv`, and for the arguments above.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": ["rgb_array"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int = 1,
        group_size: int = 1,
        source: SourceSpec = "photographs",
        reward: RewardSpec = "psnr_y",
        prompts: bool | str = False,
        invalid_reward: float | None = None,
        device: str = "cpu",
        autoreset_mode: str | AutoresetMode = AutoresetMode.DISABLED,
        render_mode: str | None = None,
    ) -> None:
        if group_size < 1 or num_envs < 1 or num_envs % group_size:
            raise Refusal(f"num_envs is a multiple of group_size, got {num_envs} rows in groups of {group_size}")
        if render_mode not in (None, "rgb_array"):
            raise Refusal(f"render_mode is 'rgb_array' or None, got '{render_mode}'")
        self.metadata = {**self.metadata, "autoreset_mode": _mode(autoreset_mode)}
        self.task = build_task(source, reward, prompts)
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = action_space(self.task)
        self.num_envs, self.group_size, self.render_mode = num_envs, group_size, render_mode
        self._invalid_reward = invalid_reward
        self._device = torch.device(device)
        self._same_step = self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        self._context: Context | None = None
        self._sr: Tensor | None = None
        self._done = np.ones(self._groups, dtype=np.bool_)

    # A batch of actions' bounds takes as much memory as the batch itself, and nobody asks for them to step.
    @cached_property
    def observation_space(self) -> gymnasium.Space[Any]:
        """`single_observation_space`, `num_envs` times; built when it is first asked for."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> gymnasium.Space[Any]:
        """`single_action_space`, `num_envs` times; built when it is first asked for."""
        return batch_space(self.single_action_space, self.num_envs)

    @property
    def _groups(self) -> int:
        return self.num_envs // self.group_size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a context for each group.

        Args:
            seed: of the generator that draws.
            options: `reset_mask`, bool [num_envs]: the rows to draw for, whole groups; `index`, int [groups drawn for]:
                their contexts, instead of drawing.
        """
        super().reset(seed=seed)
        asked = options or {}
        groups = self._read_mask(asked.get("reset_mask"))
        self._draw(groups, asked.get("index"))
        assert self._context is not None
        return self._observation(self._context), self._about(self._context, self._rows(groups))

    def step(
        self, actions: npt.NDArray[np.float32]
    ) -> tuple[Any, npt.NDArray[np.float64], _Flags, _Flags, dict[str, Any]]:
        """Score an SR image of each row; every episode ends."""
        if self._context is None or self._done.any():
            raise ResetNeeded("an episode is one step: expected reset() of all groups before another step()")
        sr = read_actions(actions, (self.num_envs, *self.single_action_space.shape), self._device)
        scored = self.task.score(self._context, sr)
        rewards = numpy_reward(scored.total, self._invalid_reward)
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        observation, info = self._observation(self._context), self._about(self._context, everyone)
        info |= self._scores(scored, everyone)
        self._sr, self._done = sr, np.ones(self._groups, dtype=np.bool_)
        if self._same_step:
            ended = _masked({"final_obs": self._each(observation), "final_info": info}, everyone)
            self._draw(self._done, None)
            observation, info = self._observation(self._context), self._about(self._context, everyone) | ended
        return observation, rewards, everyone, np.zeros(self.num_envs, dtype=np.bool_), info

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """A frame a row: LR | SR | HR | the reward's map; grey before the step. None without a render mode."""
        if self.render_mode is None:
            return None
        if self._context is None:
            raise ResetNeeded("there is nothing to render: expected reset() before render()")
        frames, mapped = [], self.task.reward.has_map
        faults = self.task.map(self._context, self._sr) if mapped and self._sr is not None else None
        for row in range(self.num_envs):
            group = row // self.group_size
            hr = None if self._context.hr is None else self._context.hr[group]
            sr = None if self._sr is None or not self._done[group] else self._sr[row]
            fault = None if faults is None or sr is None else faults[row]
            frames.append(panels(self._context.lr[group], sr, hr, self.task.scale, fault=fault, mapped=mapped))
        return tuple(frames)

    def _draw(self, groups: _Flags, index: npt.ArrayLike | None) -> None:
        """New contexts for some groups, drawn or given; the others keep theirs."""
        count = int(groups.sum())
        drawn = self.np_random.integers(len(self.task), size=count) if index is None else np.asarray(index)
        if drawn.shape != (count,):
            raise Refusal(f"expected options['index'] for {count} groups, got {list(drawn.shape)}")
        places = np.zeros(self._groups, np.int64) if self._context is None else self._context.index.numpy().copy()
        places[groups] = drawn
        self._context = self.task.context(torch.from_numpy(places))
        self._done = self._done & ~groups

    def _read_mask(self, mask: Any) -> _Flags:
        """Rows to reset, bool [num_envs], as groups."""
        if mask is None:
            return np.ones(self._groups, dtype=np.bool_)
        rows = np.asarray(mask)
        if rows.shape != (self.num_envs,) or rows.dtype != np.bool_ or not rows.any():
            raise Refusal(
                f"expected options['reset_mask'] as bool [{self.num_envs}] with at least one row, "
                f"got {rows.dtype} {list(rows.shape)}"
            )
        grouped = rows.reshape(self._groups, self.group_size)
        if (grouped.any(1) != grouped.all(1)).any():
            raise Refusal(
                f"expected options['reset_mask'] of whole groups of {self.group_size} rows, which share a context, "
                f"got {rows.tolist()}"
            )
        if self._context is None and not rows.all():
            raise ResetNeeded("the first reset() is of all rows, got a mask that leaves some out")
        return np.asarray(grouped.all(1))

    def _rows(self, of_groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.repeat(of_groups, self.group_size, axis=0)

    def _observation(self, context: Context) -> Any:
        images = self._rows(np.stack([pixels(image) for image in context.lr]))
        if context.prompt is None:
            return images
        return {"lr": images, "prompt": tuple(self._rows(np.array(context.prompt, dtype=object)).tolist())}

    def _each(self, observation: Any) -> npt.NDArray[np.object_]:
        """A batch of observations as an object array of single ones."""
        single = np.empty(self.num_envs, dtype=object)
        for row in range(self.num_envs):
            if isinstance(observation, dict):
                single[row] = {key: value[row] for key, value in observation.items()}
            else:
                single[row] = observation[row]
        return single

    def _about(self, context: Context, rows: _Flags) -> dict[str, Any]:
        ids = self._rows(np.array(context.ids, dtype=object))
        index, group = self._rows(context.index.numpy()), self._rows(np.arange(self._groups))
        return _masked({"id": ids, "index": index, "group": group}, rows)

    def _scores(self, scored: RewardOutput, rows: _Flags) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for name, values in scored.components.items():
            value = values.detach().double().cpu().numpy()
            there = np.isfinite(value)
            parts |= _masked({name: np.where(there, value, 0.0)}, there)
        return _masked({"valid": scored.valid.cpu().numpy().copy(), "components": parts}, rows)


def _masked(values: dict[str, Any], rows: _Flags) -> dict[str, Any]:
    """Gymnasium's infos: beside each key the rows that have it."""
    return values | {f"_{key}": rows.copy() for key in values}


def _mode(asked: str | AutoresetMode) -> AutoresetMode:
    by_name = {mode.value: mode for mode in AutoresetMode} | {mode.name: mode for mode in AutoresetMode}
    mode = asked if isinstance(asked, AutoresetMode) else by_name.get(asked)
    if mode is AutoresetMode.NEXT_STEP:
        raise Refusal(
            "autoreset_mode 'NextStep' doesn't go with episodes of one step: every other action would be ignored; "
            "expected 'Disabled' or 'SameStep'"
        )
    if mode is None:
        raise Refusal(f"autoreset_mode is 'Disabled' or 'SameStep', got '{asked}'")
    return mode
