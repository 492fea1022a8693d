"""Gymnasium's registry. Imports Gymnasium alone, so that `import srgym` stays cheap."""

import gymnasium

__all__ = ["ENV_ID", "register_envs"]

ENV_ID = "srgym/SuperResolution-v0"


def register_envs() -> None:
    """Register the environment with Gymnasium, once; `import srgym` does it.

    No `max_episode_steps`: an episode is one step and terminates by itself, and a limit of 1 would truncate it as well.
    """
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="srgym.envs.gym_env:SuperResolutionEnv",
            vector_entry_point="srgym.envs.vector_env:SuperResolutionVectorEnv",
        )
