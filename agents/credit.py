"""Which token of a document earned what.

A reward's components look at parts of a document: the degradation's at its first section, the understanding's at the
second. What is written after them can't change them, so it needn't be told of them (`to_go`); and some tokens are
scored one by one, a degradation label or a patch of the final image (`compare`).
"""

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.groups import Assessment, Combine, group_advantage
from srgym.document import SECTIONS
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.rewards.base import Incompatible, Reward

__all__ = ["CREDITS", "LAST", "LEVELS", "aggregate", "check_credit", "compare", "credited", "to_go"]

LEVELS = ("sequence", "token", "section")
CREDITS = ("sum", "to_go", "local")

LAST = {"degradation": "degradation", "understanding": "rough_understand"}
"""The last section that a component of realsr_r1 looks at; any other looks at the whole document."""

_EPS = 1e-2  # of a component's spread in a group: one that hardly differs is no lesson


def check_credit(credit: str, level: str, policy: Policy, combine: Combine | None) -> None:
    """Refuse a credit or a level that isn't one, or that doesn't go with the policy or with other weights.

    Raises:
        Incompatible: for a policy that doesn't say which token earned what.
    """
    if level not in LEVELS or credit not in CREDITS:
        raise Refusal(f"expected level of {LEVELS} and credit of {CREDITS}, got '{level}' and '{credit}'")
    if credit != "sum" and combine is not None:
        raise Refusal(f"credit='{credit}' weighs the reward's components itself: leave combine out, or credit='sum'")
    if credit == "local" and not hasattr(policy, "answers"):
        raise Incompatible(
            f"credit='local' asks which token earned what, and '{policy.name}' doesn't say: take compact_vlcot, or "
            "credit='to_go'"
        )


def credited(
    credit: str, rollout: TensorDict, groups: Assessment, section: Tensor, group_size: int, reward: Reward | None
) -> Tensor:
    """Advantages of tokens.

    Args:
        credit: "sum": a token gets the advantage of its document; "to_go": each component of the reward is
            standardised in its group, and a token gets those that it can still change; "local": besides, a token that
            is scored alone (a degradation label, a sentence of the rough understanding, a patch of the final image)
            gets what it earned itself in place of that, which is biased, and far less noisy.
        rollout: [N], with `components` and, for "local", `answers`. groups: what its scores say.
        section: of each token, int64 [N, L].
        group_size: K. reward: what scored it.

    Returns:
        [N, L].

    Raises:
        Incompatible: for a reward whose components have no weights.
    """
    own, keep = groups.own, groups.keep[groups.own].to(section.device)
    if credit == "sum":
        return groups.advantage[own].to(section.device)[:, None].expand(section.shape)
    weights = getattr(reward.score, "weights", None) if reward is not None else None
    if not isinstance(weights, Mapping):
        raise Incompatible(
            f"credit='{credit}' gives out a reward's components by their weights, and "
            f"'{reward.name if reward else None}' has none: take realsr_r1, or credit='sum'"
        )
    present = set(rollout["components"].keys())
    weights = {name: weight for name, weight in weights.items() if weight and name in present}
    components = {name: rollout["components"][name] for name in weights}
    advantage = to_go(components, weights, section, group_size, keep)
    if credit == "local":
        alone = compare(rollout["answers"], torch.arange(len(section), device=section.device) // group_size)
        advantage = torch.where((rollout["answers", "key"] >= 0) & keep[:, None], alone, advantage)
    return advantage


def to_go(
    components: Mapping[str, Tensor], weights: Mapping[str, float], section: Tensor, group_size: int, keep: Tensor
) -> Tensor:
    """Advantages of tokens: the weighted sum of the components that they can still change.

    Args:
        components: [N] by name, each standardised in its group, else the loudest is all that is heard; NaN counts as
            no score.
        weights: of the components; those without one are left out.
        section: of each token, int64 [N, L].
        group_size: K. keep: bool [N], who is compared.

    Returns:
        [N, L], 0 where `keep` is False.
    """
    total = torch.zeros(section.shape, device=section.device)
    for name, weight in weights.items():
        last = SECTIONS.index(LAST[name]) if name in LAST else len(SECTIONS) - 1
        own = group_advantage(components[name], group_size, keep, eps=_EPS)
        total += weight * own[:, None] * (section <= last)
    return torch.where(keep[:, None], total, 0.0)


def compare(answers: TensorDict, group: Tensor) -> Tensor:
    """Advantages of tokens that were scored one by one, among those of a group that answer for the same.

    Args:
        answers: `key` int64 [N, L], what a token answers for (-1: nothing), and `value` [N, L], how well it did.
        group: int64 [N].

    Returns:
        [N, L]; 0 where a token answers for nothing.
    """
    key, value = answers["key"], answers["value"].double()
    asked = key >= 0
    keys = int(key.max()) + 1 if bool(asked.any()) else 1
    place = (group[:, None] * keys + key)[asked]
    counts = torch.bincount(place).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add_(0, place, values) / counts

    off = value[asked] - mean(value[asked])[place]
    advantage = torch.zeros_like(value)
    advantage[asked] = off / (mean(off.square()).sqrt()[place] + _EPS)
    return advantage.float()


def aggregate(values: Tensor, free: Tensor, level: str, section: Tensor, usual: Tensor | float = 1.0) -> Tensor:
    """A document's value from its tokens': [N, L] to [N].

    Args:
        free: bool [N, L], the tokens that count.
        level: "sequence": their mean; "token": their sum, for a mean over all tokens of the batch alike; "section": the
            mean of the sections' means, so that many image tokens don't drown a word.
        section: int64 [N, L].
        usual: what "token" divides by, the usual number of tokens.
    """
    weight = free.to(values.dtype)
    if level == "section":
        member = torch.nn.functional.one_hot(section, len(SECTIONS)).to(values.dtype) * weight[..., None]
        sums, counts = (member * values[..., None]).sum(1), member.sum(1)
        return (sums / counts.clamp_min(1)).sum(1) / (counts > 0).sum(1).clamp_min(1)
    total = (weight * values).sum(1)
    return total / usual if level == "token" else total / weight.sum(1).clamp_min(1)
