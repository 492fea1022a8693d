"""Which token of a document earned what.

A reward's components look at parts of a document: the degradation's at its first section, the understanding's at the
second. What is written after them can't change them, so it needn't be told of them (`to_go`); and some tokens are
scored one by one, a degradation label or a patch of the final image (`compare`).
"""

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.groups import group_advantage
from srgym.document import SECTIONS

__all__ = ["LAST", "aggregate", "compare", "to_go"]

LAST = {"degradation": "degradation", "understanding": "rough_understand"}
"""The last section that a component of realsr_r1 looks at; any other looks at the whole document."""

_EPS = 1e-2  # of a component's spread in a group: one that hardly differs is no lesson


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


def aggregate(values: Tensor, free: Tensor, level: str, section: Tensor) -> Tensor:
    """A document's value from its tokens': [N, L] to [N].

    Args:
        free: bool [N, L], the tokens that count.
        level: "sequence": their mean; "token": their sum, for a mean over all tokens of the batch alike; "section": the
            mean of the sections' means, so that many image tokens don't drown a word.
        section: int64 [N, L].
    """
    weight = free.to(values.dtype)
    if level == "section":
        member = torch.nn.functional.one_hot(section, len(SECTIONS)).to(values.dtype) * weight[..., None]
        sums, counts = (member * values[..., None]).sum(1), member.sum(1)
        return (sums / counts.clamp_min(1)).sum(1) / (counts > 0).sum(1).clamp_min(1)
    total = (weight * values).sum(1)
    return total if level == "token" else total / weight.sum(1).clamp_min(1)
