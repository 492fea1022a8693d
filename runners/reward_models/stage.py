"""The stage that trains a reward model: which model, and by which pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srgym.errors import Refusal
from srgym.policies import Policy
from srgym.runners.reward_models.compass import ScorerSettings, build_scorer
from srgym.runners.reward_models.finpercep import FinPercepSettings, build_finpercep
from srgym.runners.reward_models.lucid import LucidSettings, build_lucid
from srgym.settings import fill

__all__ = ["SCORERS", "train_scorer"]

SCORERS = ("compass", "finpercep", "lucid")


def train_scorer(
    options: Mapping[str, Any], policy: Policy, env: Mapping[str, Any], folder: Path, seed: int
) -> dict[str, float]:
    """Train the reward model `options["model"]` ("compass" when not said) and write it to `folder`/scorer.

    Args:
        options: the model's settings (`ScorerSettings`, `FinPercepSettings`, `LucidSettings`) and `model`.
        policy: makes the images to learn from, in contexts of the section `env`; "lucid" learns from contexts alone.

    Returns:
        seconds, updates and the figures on held-out images.

    Raises:
        ValueError: for an unknown model.
    """
    settings = dict(options)
    model = settings.pop("model", "compass")
    if model == "compass":
        return build_scorer(fill(ScorerSettings, settings, "scorer."), policy, env, folder, seed)
    if model == "finpercep":
        return build_finpercep(fill(FinPercepSettings, settings, "scorer."), policy, env, folder, seed)
    if model == "lucid":
        return build_lucid(fill(LucidSettings, settings, "scorer."), env, folder, seed)
    raise Refusal(f"scorer.model is one of {', '.join(SCORERS)}, got '{model}'")
