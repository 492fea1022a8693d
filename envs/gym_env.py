"""The bandit as a Gymnasium environment."""

import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
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

__all__ = ["SuperResolutionEnv"]


class SuperResolutionEnv(gymnasium.Env[Any, npt.NDArray[np.float32]]):
    """
    ## Description

    Super-resolution as a contextual bandit. The observation is a low-resolution photograph, the action a
    super-resolved one, and the reward whatever function of the two (and of the ground truth, which the agent doesn't
    see) was chosen.

    ## Observation Space

    `Box(0, 255, (h, w, 3), uint8)`: the LR image, RGB, rows first. With `prompts`, a `Dict` of that as `lr` and of
    `prompt`, a `Text`: what the image shows.

    ## Action Space

    `Box(0, 1, (h * scale, w * scale, 3), float32)`: the SR image, RGB, rows first. Values outside are clipped, as
    saving them as an image would. An action of another shape, or of integers, is refused with a `ValueError`.

    ## Rewards

    The reward's total, higher is better; its parts are in `info["components"]`. Where there is no score (the action
    holds NaN, a reward model gives no answer) `info["valid"]` is False and the reward is NaN, which no training loop
    can mistake for a score; Gymnasium's checker warns of it. `invalid_reward` puts a number of your own choice there.

    ## Starting State

    A context drawn uniformly by the environment's generator; `options={"index": i}` asks for context i of the source.

    ## Episode End

    Every episode terminates after one step, and is never truncated. The observation returned then is that of the
    episode again. A further `step` without `reset` raises `gymnasium.error.ResetNeeded`.

    ## Information

    `reset` and `step` return `id` ("photograph/crop") and `index` (the context's place in the source); `step` also
    `valid` and `components`, the parts of the score that there are, by name.

    ## Arguments

    ```python
    import gymnasium, srgym
    env = gymnasium.make("srgym/SuperResolution-v0", source={"name": "photographs", "size": 64}, reward="ssim_y")
    ```

    Args:
        source: a name, `{"name": ..., **arguments}`, or a made `Source`. Plain values keep the `EnvSpec` JSON.
        reward: a name, `{"name": ..., **options}`, or a made `Reward`.
        prompts: True for the source's own prompts, a text for the same everywhere, False for none.
        invalid_reward: told instead of NaN where there is no score.
        device: where rewards are computed.
        render_mode: "rgb_array" (LR | SR | HR side by side, and the reward's map of faults if it has one) or None.

    Raises:
        Incompatible: when the reward needs what the source doesn't give.
        ValueError: for an unknown name or argument, or a source of images of different sizes.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        source: SourceSpec = "photographs",
        reward: RewardSpec = "psnr_y",
        prompts: bool | str = False,
        invalid_reward: float | None = None,
        device: str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise Refusal(f"render_mode is 'rgb_array' or None, got '{render_mode}'")
        self.task = build_task(source, reward, prompts)
        self.observation_space = observation_space(self.task)
        self.action_space = action_space(self.task)
        self.render_mode = render_mode
        self._invalid_reward = invalid_reward
        self._device = torch.device(device)
        self._context: Context | None = None
        self._sr: Tensor | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a context, or take `options["index"]`."""
        super().reset(seed=seed)
        index = (options or {}).get("index")
        if index is None:
            index = int(self.np_random.integers(len(self.task)))
        self._context, self._sr = self.task.context([int(index)]), None
        return self._observation(self._context), self._about(self._context)

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Score an SR image; the episode ends."""
        if self._context is None or self._sr is not None:
            raise ResetNeeded("an episode is one step: expected reset() before another step()")
        sr = read_actions(np.asarray(action)[None], (1, *self.action_space.shape), self._device)
        scored = self.task.score(self._context, sr)
        self._sr = sr[0]
        # NaN stands for a part that this image hasn't got, so such a part isn't told at all.
        parts = {name: float(value[0]) for name, value in scored.components.items()}
        info = {
            **self._about(self._context),
            "valid": bool(scored.valid[0]),
            "components": {name: value for name, value in parts.items() if math.isfinite(value)},
        }
        reward = float(numpy_reward(scored.total, self._invalid_reward)[0])
        return self._observation(self._context), reward, True, False, info

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The episode as one frame: LR | SR | HR | the reward's map; grey before the step. None without a mode."""
        if self.render_mode is None:
            return None
        if self._context is None:
            raise ResetNeeded("there is nothing to render: expected reset() before render()")
        hr = None if self._context.hr is None else self._context.hr[0]
        mapped = self.task.reward.has_map
        fault = self.task.map(self._context, self._sr[None])[0] if mapped and self._sr is not None else None
        return panels(self._context.lr[0], self._sr, hr, self.task.scale, fault=fault, mapped=mapped)

    def _observation(self, context: Context) -> Any:
        image = pixels(context.lr[0])
        return image if context.prompt is None else {"lr": image, "prompt": context.prompt[0]}

    def _about(self, context: Context) -> dict[str, Any]:
        return {"id": context.ids[0], "index": int(context.index[0])}
