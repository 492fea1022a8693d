"""Weighted sums of rewards, themselves rewards."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.base import Reward, RewardOutput
from srgym.rewards.info import RewardInfo
from srgym.rewards.later import Later, gathered, then
from srgym.rewards.registry import make

__all__ = ["NORMALISATIONS", "Sum", "make_sum", "min_max", "standardise"]

NORMALISATIONS = ("none", "per_component")


def standardise(score: Tensor, valid: Tensor, group: Tensor, eps: float = 1e-4) -> Tensor:
    """(score - mean) / (std + eps) over the valid rows of each group; 0 in a group of one, NaN where invalid. All [B].

    The standard deviation is the population's. `eps` keeps a group of equal scores at 0.
    """
    same = ((group[:, None] == group[None, :]) & valid[None, :]).to(score.dtype)
    filled = torch.where(valid, score, torch.zeros_like(score))
    count = same.sum(1).clamp_min(1)
    mean = same @ filled / count
    # Two passes: E[x^2] - E[x]^2 loses the spread of large scores, such as decibels, to rounding.
    spread = ((same * (filled[None, :] - mean[:, None]).square()).sum(1) / count).sqrt()
    return torch.where(valid, (filled - mean) / (spread + eps), torch.full_like(score, torch.nan))


def min_max(score: Tensor, valid: Tensor, group: Tensor, *, flat: float) -> Tensor:
    """From the least to the greatest valid score of each group to [0, 1]; `flat` in a group without spread, and where
    a row is invalid. All [B]."""
    place = torch.unique(group, return_inverse=True)[1]
    ends = [
        torch.full((len(score),), -sign * torch.inf, dtype=score.dtype, device=score.device).scatter_reduce_(
            0, place, torch.where(valid, score, -sign * torch.inf), reduction
        )[place]
        for sign, reduction in ((-1, "amin"), (1, "amax"))
    ]
    low, span = ends[0], ends[1] - ends[0]
    return torch.where(valid & (span > 0), (score - low) / torch.where(span > 0, span, 1.0), flat)


class Sum:
    """sum_i w_i r_i over rewards; invalid wherever one of them is.

    Components are each part's own total, unweighted, under the part's name, and its components as `part/component`.

    Args:
        parts: rewards by name. weights: one for each; a negative one turns a part's direction round.
        normalise: "none", or "per_component": each part is standardised inside its group first, so that the weights
            weigh spreads and not units. The sum then must see whole groups, and isn't offered as differentiable: a
            standardised score says which sample is better, and its slope along all of them together is zero.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float], normalise: str = "none") -> None:
        self.parts, self.weights, self.normalise = dict(parts), dict(weights), normalise
        if any(part.has_map for part in parts.values()):
            self.map = self._map

    def __call__(self, sr: Tensor, group: Tensor | None = None, **context: Any) -> Later[dict[str, Tensor]]:
        """Images [B, 3, H, W] and whatever context the parts name to `total`, `valid` and components, all [B]."""
        parts = {name: part.begin(sr, group=group, **context) for name, part in self.parts.items()}
        return then(gathered(parts), lambda outputs: self._summed(sr, group, outputs))

    def _summed(self, sr: Tensor, group: Tensor | None, outputs: Mapping[str, RewardOutput]) -> dict[str, Tensor]:
        total, valid, components = sr.new_zeros(len(sr)), sr.new_ones(len(sr), dtype=torch.bool), {}
        for name, output in outputs.items():
            score = output.total
            if self.normalise == "per_component" and group is not None:
                score = standardise(score, output.valid, group)
            total, valid = total + self.weights[name] * score, valid & output.valid
            components[name] = output.total
            components |= {f"{name}/{key}": value for key, value in output.components.items()}
        return {**components, "total": total, "valid": valid}

    def _map(self, sr: Tensor, **context: Any) -> Tensor:
        """[B, 1, H, W]: at each place what the worst of the parts' maps says."""
        maps = [part.map(sr, **context) for part in self.parts.values() if part.has_map]
        return torch.stack(maps).amax(0)


def make_sum(sum: Mapping[str, Any], normalise: str = "none", name: str = "sum", **unknown: Any) -> Reward:
    """Make a weighted sum.

    Args:
        sum: weight by reward name; or by any label `{"weight": w, "name": reward, **options}`, where `name` may be left
            out if the label is the name, and `weight` if it is 1.
        normalise: see `Sum`.
        name: what the sum is called.

    Raises:
        ValueError: for an empty sum, an unknown normalisation or key, or a weight that isn't a finite number.
    """
    if unknown:
        raise Refusal(f"a composite reward takes 'sum', 'normalise' and 'name', got also {', '.join(sorted(unknown))}")
    if normalise not in NORMALISATIONS:
        raise Refusal(f"expected normalise as one of {', '.join(NORMALISATIONS)}, got '{normalise}'")
    if not isinstance(sum, Mapping) or not sum:
        raise Refusal(f"expected 'sum' as {{reward: weight, ...}} with at least one reward, got {sum!r}")
    parts, weights = {}, {}
    for label, entry in sum.items():
        options = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weights[label] = _weight(label, options.pop("weight", 1.0))
        inner = options.pop("name", label) if "sum" not in options else {"sum": options.pop("sum")}
        parts[label] = make({**inner, **options}) if isinstance(inner, dict) else make(inner, **options)
    return Reward(Sum(parts, weights, normalise), _describe(name, parts, weights, normalise))


def _weight(label: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
        raise Refusal(f"composite reward: expected the weight of '{label}' as a finite number, got {weight!r}")
    return float(weight)


def _describe(name: str, parts: Mapping[str, Reward], weights: Mapping[str, float], normalise: str) -> RewardInfo:
    """What the sum declares, from what its parts do."""
    grouped = normalise == "per_component" or any(part.group for part in parts.values())
    ends = [sorted(weights[label] * end if weights[label] else 0.0 for end in parts[label].range) for label in parts]
    low, high = (float(sum(end[side] for end in ends)) for side in (0, 1))
    bounded = normalise == "none" and low < high
    return RewardInfo(
        name=name,
        path="srgym.rewards.composite:Sum",
        needs=frozenset().union(*(part.needs for part in parts.values())),
        wants=frozenset().union(*(part.wants for part in parts.values())) - ({"group"} if grouped else set()),
        range=(low, high) if bounded else RewardInfo.range,
        direction="none" if all(part.direction == "none" for part in parts.values()) else "higher",
        differentiable=normalise == "none" and all(part.differentiable for part in parts.values()),
        group=grouped,
        licence="; ".join(sorted({part.licence for part in parts.values()})),
        weights="; ".join(sorted({part.weights for part in parts.values()} - {"none"})) or "none",
        doc=" + ".join(f"{weights[label]:g} {label}" for label in parts)
        + (", each standardised inside its group" if normalise == "per_component" else ""),
    )
