"""`srgym.envs.preferences`, under the name that other people's configurations use."""

from srgym.envs.preferences import *  # noqa: F403
