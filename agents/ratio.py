"""Agents whose loss is a ratio of likelihoods: the learner's over those of the policy that sampled."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Agent, Need
from srgym.agents.groups import Combine, Comparison, GroupFilter
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.rewards.base import Reward

__all__ = ["OLD_LOG_PROBS", "RatioAgent"]

OLD_LOG_PROBS = ("sampled", "recomputed")


class RatioAgent(Agent):
    """What such agents share.

    Args:
        policy: with adapters where another policy is asked for its likelihoods.
        reward: any.
        updates_per_iteration: optimiser steps that the samples of an iteration are dealt out to.
        old_log_prob: what the ratio's denominator is: "sampled", recorded by the rollout, which costs nothing and is
            right in float32; or "recomputed" by the policy that sampled, as it was, on the very rows that are trained
            on, which costs a forward of each row after the first update. Half precision needs that: its kernels round
            as the batch is cut. None: recomputed where the policy's weights aren't in float32.
        ratio_tolerance: how far the ratio may be from 1 before the first update.
        std, filter, combine: see `Comparison`.
        group_size, epochs, ema, provides: see `Agent`.
    """

    needs = frozenset({Need.GROUPS})

    def __init__(
        self,
        policy: Policy,
        reward: Reward | None = None,
        *,
        updates_per_iteration: int = 1,
        old_log_prob: str | None = None,
        ratio_tolerance: float = 1e-6,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, **options)
        if updates_per_iteration < 1 or not ratio_tolerance > 0:
            raise Refusal(
                "expected at least 1 update and ratio_tolerance above 0, got "
                f"{updates_per_iteration} and {ratio_tolerance}"
            )
        if old_log_prob not in (None, *OLD_LOG_PROBS):
            raise Refusal(f"expected old_log_prob of {OLD_LOG_PROBS} or None, got '{old_log_prob}'")
        half = next(policy.core.parameters()).dtype in (torch.float16, torch.bfloat16)
        self.old_log_prob = old_log_prob or ("recomputed" if half and policy.has_adapters else "sampled")
        if self.recomputes:
            self._require_adapters("the policy that sampled (old_log_prob='recomputed')")
        self.updates_per_iteration, self.ratio_tolerance = updates_per_iteration, ratio_tolerance
        self.compare = Comparison(reward, self.group_size, std=std, filter=filter, combine=combine)
        self._first = True

    @property
    def recomputes(self) -> bool:
        """Whether `loss` asks the policy that sampled."""
        return self.old_log_prob == "recomputed"

    def _begin(self) -> None:
        """A rollout came: its sampler is the learner, which `old` remembers for the updates after the first."""
        self._first = True
        if self.recomputes:
            self.policy.sync("default", "old")

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for _ in range(self.epochs):
            for part in range(self.updates_per_iteration):
                yield rows[rows["part"] == part]

    def after_update(self) -> None:
        super().after_update()
        self._first = False

    def _beside(self) -> dict[str | None, float]:
        """Forwards beside each trained row, for `workload`: of `old`, which is the learner until the first update."""
        return {"old": 1 - 1 / (self.updates_per_iteration * self.epochs)} if self.recomputes else {}

    def _check_ratio(self, log_prob: Tensor, old_log_prob: Tensor) -> None:
        """Before the first update the learner is the sampler; a ratio that isn't 1 means that something else is."""
        if not self._first:
            return
        error = float(torch.expm1(log_prob.detach() - old_log_prob).abs().max())
        if not error <= self.ratio_tolerance:
            raise Refusal(
                f"{type(self).__name__}: before the first update the ratio of likelihoods must be 1, and it is off by "
                f"{error:.1e} (at most {self.ratio_tolerance:.0e} was expected): the policy that is trained isn't the "
                "one that sampled. Look for dropout or weights changed in between; half precision, autocast too, needs "
                "old_log_prob='recomputed'"
            )
