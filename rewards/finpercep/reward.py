"""FinPercep-RM as a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.rewards.base import follow
from srgym.rewards.finpercep.model import FinPercepRM, load
from srgym.rewards.registry import register_reward

__all__ = ["SHIPPED", "FinPercep"]

SHIPPED = Path(__file__).parents[1] / "weights" / "finpercep_compact"
_TOTALS = ("score", "global_map")


@register_reward(
    "finpercep",
    differentiable=True,
    range=(0.0, 1.0),
    weights="a compact model ships with the package, and fails 8 of its audit's 25 lines (mild blur, ringing, ranks "
    "under faint noise, its gradient); or a folder of your own",
    purpose="perceptual",
    kin=("compass",),  # whose compact scorer looks with it
)
class FinPercep:
    """FinPercep-RM: a perceptual score steered by a map of the image's faults.

    Components: `score`, and of the map `fault_mean` and `fault_max`.

    Args:
        weights: the folder of a saved model; the one that ships with the package when None; or "random", for tests.
        total: "score", the paper's; or "global_map", its ablation w1 S_global + w2 (1 - max M).
        mix: w1 and w2 of "global_map"; they sum to 1.
        seed: of random weights.
        options: of the model (`FinPercepRM`), with random weights only.

    Raises:
        FileNotFoundError: if there are no such weights; a substitute is never taken silently.
        ValueError: for an unknown total, or weights of the mix that don't sum to 1.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        total: str = "score",
        mix: Sequence[float] = (0.5, 0.5),
        seed: int = 0,
        **options: Any,
    ) -> None:
        if total not in _TOTALS:
            raise Refusal(f"finpercep: expected a total of {', '.join(_TOTALS)}, got '{total}'")
        if len(mix) != 2 or min(mix) < 0 or abs(sum(mix) - 1) > 1e-6:
            raise Refusal(f"finpercep: expected two weights that sum to 1 as mix, got {list(mix)}")
        if options and weights != "random":
            raise Refusal(f"finpercep: '{next(iter(options))}' is a property of the weights; leave it out")
        self.model = _random(seed, options) if weights == "random" else _stored(weights)
        self.total, self.mix = total, (float(mix[0]), float(mix[1]))

    def __call__(self, sr: Tensor) -> dict[str, Tensor]:
        """SR [B, 3, H, W] in [0, 1] to `total` and the components, all [B], differentiable in SR."""
        follow(self.model, sr.device)
        score, fault = self.model(sr)
        worst = fault.flatten(1).amax(1)
        total = score
        if self.total == "global_map":
            total = self.mix[0] * self.model.global_score(sr) + self.mix[1] * (1 - worst)
        return {"total": total, "score": score, "fault_mean": fault.mean((1, 2, 3)), "fault_max": worst}

    def map(self, sr: Tensor) -> Tensor:
        """Where SR [B, 3, H, W] is bad: [B, 1, H, W] in [0, 1]."""
        with torch.no_grad():
            return self.model.map(sr)


def _random(seed: int, options: dict[str, Any]) -> FinPercepRM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FinPercepRM(**options).eval().requires_grad_(False)


def _stored(weights: str | Path | None) -> FinPercepRM:
    if weights is None and not SHIPPED.is_dir():
        raise MissingFile(
            f"reward 'finpercep' needs weights, and none ship in '{SHIPPED}': name the folder of a trained model "
            "(weights=FOLDER; srgym train experiment=finpercep_compact makes one), or say weights=random"
        )
    return load(SHIPPED if weights is None else weights)
