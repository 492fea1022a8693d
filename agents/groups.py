"""Groups: the K samples of one context, compared with each other.

A group is keyed by its context, never by its prompt: in super-resolution all contexts often share one prompt, and
keying on text would merge every image into one group. In a batch [N] groups are contiguous, N = G K.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.base import Incompatible, Reward
from srgym.rewards.composite import min_max

__all__ = [
    "ADVANTAGE_CLIP", "ADV_MODES", "Assessment", "Combine", "Comparison", "GroupFilter", "all_scores", "assess",
    "group_advantage", "group_moments", "optimality", "with_scores",
]  # fmt: skip

STDS = ("group", "batch")
ADVANTAGE_CLIP = 5.0  # of the agents that clip their advantages, in deviations
NORMALISATIONS = ("none", "per_component", "decoupled", "min_max")


@dataclass(frozen=True)
class _Batch:
    """Keeps TensorDict from taking the scores for columns of its own."""

    scores: TensorDict
    start: int


def with_scores(rollout: TensorDict, scores: TensorDict, start: int) -> TensorDict:
    """A rollout [N] that brings along the scores of the whole batch [M], which its own groups are a part of.

    Args:
        scores: `reward`, `valid`, `group` and `components` of all groups.
        start: where the rollout's own begin among them.
    """
    along: Any = NonTensorData(_Batch(scores, start), batch_size=rollout.batch_size)
    return rollout.copy().set("batch", along)


def all_scores(rollout: TensorDict) -> tuple[TensorDict, slice]:
    """The scores of the whole batch, and where among them the rollout's own are; most often it is the batch."""
    if "batch" not in rollout:
        return rollout, slice(0, len(rollout))
    batch: _Batch = rollout["batch"]
    return batch.scores, slice(batch.start, batch.start + len(rollout))


def _by_group(values: Tensor, group_size: int) -> Tensor:
    """[N] to [G, K]."""
    if group_size < 1 or values.dim() != 1 or len(values) % group_size:
        raise Refusal(
            f"expected scores [N] of whole groups of {group_size}, groups contiguous, got {tuple(values.shape)}"
        )
    return values.reshape(-1, group_size)


def _is_valid(score: Tensor, valid: Tensor | None) -> Tensor:
    finite = torch.isfinite(score)
    return finite if valid is None else finite & valid.bool()


def group_moments(score: Tensor, group_size: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation (of the population) and count of each group's valid scores: float64, float64, int64 [G].

    In float64, so that equal scores have a spread of exactly zero.
    """
    kept = _by_group(_is_valid(score, valid), group_size)
    scores = torch.where(kept, _by_group(score, group_size).double(), 0.0)
    count = kept.sum(1)
    mean = scores.sum(1) / count.clamp_min(1)
    variance = (torch.where(kept, scores - mean[:, None], 0.0).square().sum(1)) / count.clamp_min(1)
    return mean, variance.sqrt(), count


def group_advantage(
    score: Tensor, group_size: int, valid: Tensor | None = None, eps: float = 1e-4, *, std: str = "group"
) -> Tensor:
    """A = (score - mean of the group) / (std + eps), over the valid scores of each group.

    Args:
        score: [N], groups contiguous; non-finite scores count as invalid.
        group_size: K.
        valid: bool [N]; None: every finite score.
        eps: what keeps a group without spread at zero.
        std: "group" for each group's own, "batch" for that of all valid scores of the batch.

    Returns:
        [N], of the scores' type; 0 where invalid, and in a group of fewer than 2 valid scores.
    """
    if std not in STDS:
        raise Refusal(f"std is that of the group or of the batch, got '{std}'")
    valid = _is_valid(score, valid)
    mean, spread, count = group_moments(score, group_size, valid)
    if std == "batch":
        spread = group_moments(score, len(score), valid)[1].expand_as(spread)
    advantage = (_by_group(score, group_size).double() - mean[:, None]) / (spread[:, None] + eps)
    usable = _by_group(valid, group_size) & (count >= 2)[:, None]
    return torch.where(usable, advantage, 0.0).flatten().to(score.dtype)


ADV_MODES = ("all", "positive_only", "negative_only", "one_only", "binary")


def optimality(advantage: Tensor, clip: float = 1.0, mode: str = "all") -> Tensor:
    """How good a sample is among its group, in [0, 1]: r = clip(clip(A, -c, c) / (2c) + 1/2, 0, 1); OARS has c = 1.

    Args:
        mode: what is made of the clipped A first, as in DiffusionNFT's published code: "all" nothing; "positive_only"
            and "negative_only" 0 in place of the others; "one_only" 1 where it is above 0, else 0; "binary" its sign.
    """
    if mode not in ADV_MODES:
        raise Refusal(f"adv_mode is one of {', '.join(ADV_MODES)}, got '{mode}'")
    clipped = advantage.clamp(-clip, clip)
    if mode == "positive_only":
        clipped = clipped.clamp(min=0)
    elif mode == "negative_only":
        clipped = clipped.clamp(max=0)
    elif mode == "one_only":
        clipped = (clipped > 0).to(advantage.dtype)
    elif mode == "binary":
        clipped = clipped.sign()
    return (clipped / (2 * clip) + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class GroupFilter:
    """Drops groups that have nothing left to teach: all samples good, and alike (OARS).

    Attributes:
        mean: a group's mean is high from here on, on the scaled score.
        limit: its spread is low up to here.
        spread: "std" or "var".
        mode: "and" drops a group that is high and alike, "or" one that is either.
        scale: scores are divided by it, to lie in [0, 1] (COMPASS: 5). None: by the upper end of the reward's range.
    """

    mean: float = 0.9
    limit: float = 0.05
    spread: str = "std"
    mode: str = "and"
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.spread not in ("std", "var"):
            raise Refusal(f"a group filter's spread is std or var, got '{self.spread}'")
        if self.mode not in ("and", "or"):
            raise Refusal(f"a group filter's mode is and or or, got '{self.mode}'")
        if self.scale is not None and self.scale <= 0:
            raise Refusal(f"a group filter's scale is above 0, got {self.scale}")

    def for_reward(self, reward: Reward | None) -> "GroupFilter":
        """The filter with its scale settled.

        Raises:
            Incompatible: for a reward whose range has no upper end above 0, when no scale is given.
        """
        if self.scale is not None:
            return self
        top = reward.range[1] if reward is not None else float("inf")
        if not 0 < top < float("inf"):
            name = reward.name if reward is not None else "none"
            raise Incompatible(
                f"the group filter compares scores in [0, 1], but reward '{name}' has the upper end {top}: give "
                "filter.scale, what its scores are divided by, or leave the filter out"
            )
        return replace(self, scale=top)

    def drops(self, score: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
        """Which groups are dropped: score [N] to bool [G]."""
        mean, std, _ = group_moments(score / (self.scale or 1.0), group_size, valid)
        high, alike = mean >= self.mean, (std if self.spread == "std" else std.square()) <= self.limit
        return high & alike if self.mode == "and" else high | alike


@dataclass(frozen=True)
class Combine:
    """One score from a reward's components.

    Attributes:
        weights: of the components, by name.
        normalise: "none"; "per_component": each is standardised inside its group before the sum, so that a hard
            component isn't drowned by an easy one; "decoupled": and the sum is standardised over the batch, not over
            the group once more, whatever `std` says (GDPO, arXiv 2601.05242); "min_max": each is brought from its
            least to its greatest value in the group to [0, 1], as in GDPO-SR.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    normalise: str = "none"

    def __post_init__(self) -> None:
        if not self.weights:
            raise Refusal("combine.weights needs at least one component: expected {name: weight}, got none")
        if self.normalise not in NORMALISATIONS:
            raise Refusal(f"combine.normalise is one of {', '.join(NORMALISATIONS)}, got '{self.normalise}'")

    def __call__(
        self, components: Mapping[str, Tensor], group_size: int, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Components [N] by name to (score [N], valid [N]): valid where every weighted component is.

        Raises:
            ValueError: naming a weighted component that the reward doesn't give.
        """
        strange = sorted(set(self.weights) - set(components))
        if strange:
            raise Refusal(f"combine.weights names '{strange[0]}', but the reward gives {', '.join(components)}")
        parts = {name: components[name] for name in self.weights}
        for part in parts.values():
            valid = _is_valid(part, valid)
        if self.normalise in ("per_component", "decoupled"):
            parts = {name: group_advantage(part, group_size, valid) for name, part in parts.items()}
        if self.normalise == "min_max":
            group = torch.arange(len(next(iter(parts.values())))) // group_size
            parts = {
                name: min_max(part, torch.as_tensor(valid), group.to(part.device), flat=0.0)
                for name, part in parts.items()
            }
        score = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum(0)
        return score, torch.as_tensor(valid)


@dataclass(frozen=True)
class Assessment:
    """What the scores of a batch [M] say, of which a rollout's [N] are the part `own` (see `all_scores`).

    Attributes:
        score: [M], what the samples are compared by.
        advantage: [M], 0 where a sample is left out.
        keep: bool [M], the valid samples of the groups that stay.
        own: where the rollout's samples are.
        stats: counts of what was left out of the rollout.
    """

    score: Tensor
    advantage: Tensor
    keep: Tensor
    own: slice
    stats: dict[str, float]


def assess(
    rollout: TensorDict,
    group_size: int,
    *,
    std: str = "group",
    filter: GroupFilter | None = None,
    combine: Combine | None = None,
) -> Assessment:
    """Compare the samples of each group of a batch.

    A group with fewer than 2 valid samples, or under half of them valid, is dropped, and so is one that the filter
    (which looks at the reward itself) drops.

    Args:
        rollout: TensorDict [N] with `reward`, `group` and, where there are, `valid` and `components`; or `with_scores`.

    Raises:
        ValueError: if groups aren't contiguous.
    """
    scores, own = all_scores(rollout)
    group = _by_group(scores["group"], group_size)
    if bool((group != group[:, :1]).any()):
        raise Refusal(f"expected groups of {group_size} contiguous rows of one context each, got other groups")
    reward = scores["reward"]
    valid = _is_valid(reward, scores.get("valid", None))
    score = reward
    if combine is not None:
        std = "batch" if combine.normalise == "decoupled" else std
        score, valid = combine(dict(scores["components"].items()), group_size, valid)
    count = group_moments(score, group_size, valid)[2]
    poor = (count < 2) | (2 * count < group_size)
    dull = torch.zeros_like(poor) if filter is None else filter.drops(reward, group_size, valid) & ~poor
    keep = valid & ~(poor | dull).repeat_interleave(group_size)
    advantage = group_advantage(score, group_size, valid, std=std)
    groups = slice(own.start // group_size, own.stop // group_size)
    stats = {
        "groups": float(groups.stop - groups.start),
        "groups_invalid": float(poor[groups].sum()),
        "groups_filtered": float(dull[groups].sum()),
        "samples_invalid": float((~valid[own]).sum()),
    }
    return Assessment(score, torch.where(keep, advantage, 0.0), keep, own, stats)


class Comparison:
    """How an agent compares the samples of a group.

    Args:
        reward: what scores them; a filter asks for its range.
        group_size: K.
        std: what advantages are divided by: the "group"'s spread, or the whole "batch"'s.
        filter: fields of a `GroupFilter`; None: no group is filtered.
        combine: fields of a `Combine`, to weigh the reward's components anew; None: the reward as it is.
    """

    def __init__(
        self,
        reward: Reward | None,
        group_size: int,
        *,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
    ) -> None:
        if std not in STDS:
            raise Refusal(f"expected std of {STDS}, got {std}")
        kept = from_config(GroupFilter, filter)
        self.group_size, self.std = group_size, std
        self.filter = kept.for_reward(reward) if kept is not None else None
        self.combine = from_config(Combine, combine)

    def __call__(self, rollout: TensorDict) -> Assessment:
        return assess(rollout, self.group_size, std=self.std, filter=self.filter, combine=self.combine)


_Fields = TypeVar("_Fields", GroupFilter, Combine)


def from_config(kind: type[_Fields], value: _Fields | Mapping[str, Any] | None) -> _Fields | None:
    """A `GroupFilter` or `Combine` as given, from a mapping of its fields, or None."""
    if value is None or isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise Refusal(f"expected a mapping of {kind.__name__}'s fields or null, got {value!r}")
    known = set(kind.__dataclass_fields__)
    strange = sorted(set(value) - known)
    if strange:
        raise Refusal(f"{kind.__name__} has no '{strange[0]}': expected {', '.join(sorted(known))}")
    return kind(**value)
