"""Steps of a stochastic sampler, under the learner and under the policy that sampled."""

from dataclasses import dataclass

from torch import Tensor

from srgym.agents.flow import matching_error
from srgym.policies.solvers import Transition

__all__ = ["Steps"]


@dataclass(frozen=True)
class Steps:
    """Steps of a batch of rows [B].

    Attributes:
        log_prob, old_log_prob: under the learner and under the policy that sampled.
        advantage: A.
        t: [B, T+1], the schedule. number: which step of it each is, int64.
        now: the learner's transition. old_mean: mu of the policy that sampled, [B, ...], for an agent that
            `compares_means`.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    t: Tensor
    number: Tensor
    now: Transition
    old_mean: Tensor | None

    @property
    def dt(self) -> Tensor:
        """How much time a step takes: [B], above 0."""
        here = self.number[:, None]
        return (self.t.gather(1, here) - self.t.gather(1, here + 1))[:, 0]

    def divergence(self) -> Tensor:
        """The KL divergence from the step of the policy that sampled, a mean over elements: mean (dmu^2) / (2 q^2)."""
        assert self.old_mean is not None
        return matching_error(self.now.mean, self.old_mean) / (2 * self.now.std.flatten().square())
