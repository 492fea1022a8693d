"""`srgym.runners.measure.statistics`, under the name that other people's code imports."""

from srgym.runners.measure.statistics import *  # noqa: F403
