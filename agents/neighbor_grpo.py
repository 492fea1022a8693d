"""Neighbor GRPO: policy gradients without a stochastic sampler (He et al. 2025, arXiv 2511.16955).

The samples of a group begin near one another, eps_i = sqrt(1 - s^2) eps + s delta_i (eq. 7), and go on by any
deterministic solver. One of them is the anchor: a step of the learner leads from its state to x_theta, and a policy
that exists for training alone leaps from there to one of the group's next states x_i, the likelier the nearer (eq. 8),

    pi_theta(i) = softmax over the group of -||x_i - x_theta||^2,   rho_i = pi_theta(i) / pi_old(i),
    loss = sum over the group of max(-A_i rho_i, -A_i clip(rho_i, 1 - e, 1 + e))   (eq. 9),

so x_theta is drawn to good neighbours and kept from bad ones. A few samples of each group are anchors. Advantages are
divided by their group's quasi-norm (sum |A|^p)^(1/p), which leaves less to a group of flat rewards (eq. 11).

The norm is a mean over elements here, over a temperature, as likelihoods are in Flow-GRPO. The equations are taken from
accounts of the paper, which has no published code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.flow import FlowAgent
from srgym.agents.flow_grpo import grpo_loss
from srgym.agents.groups import Combine, Comparison, GroupFilter
from srgym.agents.rows import make_rows, shared
from srgym.agents.timesteps import schedule_steps, share_of_steps
from srgym.errors import Refusal
from srgym.policies.flow import FlowPolicy, Sampling
from srgym.policies.noise import derive_seeds
from srgym.policies.solvers import DPM2M, SOLVERS, Euler, euler_step
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["NeighborGRPO", "leap_log_prob", "quasi_normalised"]


def leap_log_prob(x: Tensor, candidates: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log pi of leaping from x [B, ...] to each of the candidates [B, K, ...]: [B, K]."""
    distance = (candidates - x[:, None]).square().flatten(2).mean(2)
    return (-distance / temperature).log_softmax(1)


def quasi_normalised(advantage: Tensor, group_size: int, p: float) -> Tensor:
    """A / (sum of the group's |A|^p)^(1/p), 0 where all are: [N], groups contiguous."""
    groups = advantage.reshape(-1, group_size)
    norm = groups.abs().pow(p).sum(1, keepdim=True).pow(1 / p)
    return torch.where(norm > 0, groups / norm.clamp_min(1e-12), 0.0).flatten()


class NeighborGRPO(FlowAgent):
    """Neighbor GRPO.

    Args:
        policy: with adapters; `old` keeps who sampled, for the updates after the first.
        reward: any.
        group_size: K; 12 in the paper.
        steps, solver: of the collecting rollout, deterministic; 8 of DPM-Solver++ in the paper.
        spread: s; best at 0.3 in the paper.
        anchors: of each group; 4 in the paper.
        time_share: of the sampler's steps, how many each group is trained at.
        quasi_norm: p, best at 0.8 in the paper; None: advantages as they are.
        temperature: of the leap.
        clip: e.
        std, filter, combine: see `Comparison`. epochs, ema, provides: see `Agent`.
    """

    name = "neighbor_grpo"
    needs = frozenset({Need.GROUPS})

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 12,
        steps: int = 8,
        solver: str = "dpm2m",
        spread: float = 0.3,
        anchors: int = 4,
        time_share: float = 0.5,
        quasi_norm: float | None = 0.8,
        temperature: float = 1.0,
        clip: float = 1e-4,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(policy, reward, group_size=group_size, **options)
        self._require_adapters("the policy that sampled")
        if not (1 <= anchors <= group_size and 0 < time_share <= 1 and temperature > 0 and clip > 0):
            raise Refusal(
                "expected anchors of 1 to group_size, time_share in (0, 1], temperature and clip above 0, got "
                f"{anchors}, {time_share}, {temperature} and {clip}"
            )
        if not 0 < spread <= 1 or not (quasi_norm is None or 0 < quasi_norm <= 2):
            raise Refusal(f"expected spread in (0, 1] and quasi_norm in (0, 2] or None, got {spread} and {quasi_norm}")
        if SOLVERS.get(solver) not in (Euler, DPM2M):
            raise Refusal(f"expected a deterministic solver (euler, dpm2m), got {solver}")
        self.sampling = Sampling(steps=steps, solver=solver, record=True, group=group_size, spread=spread)
        self.anchors, self.time_share, self.quasi_norm = anchors, time_share, quasi_norm
        self.temperature, self.clip = temperature, clip
        self.compare = Comparison(reward, group_size, std=std, filter=filter, combine=combine)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        groups, size, device = self.compare(rollout), self.group_size, rollout["x0"].device
        advantage = groups.advantage[groups.own].to(device)
        if self.quasi_norm is not None:
            advantage = quasi_normalised(advantage, size, self.quasi_norm)
        self.stats = groups.stats
        self.policy.sync("default", "old")
        samples = rollout.select("latents", "t", "cond").set("advantage", advantage)
        first = (advantage.reshape(-1, size) != 0).any(1).nonzero().flatten() * size  # of each group that teaches
        seed = rollout["seed"][first]
        steps = schedule_steps(seed, self.sampling.steps, self.time_share).to(device)
        drawn = schedule_steps(derive_seeds(0, 0, seed, stream="anchors"), size, 1.0)[:, : self.anchors].to(device)
        times = steps.shape[1]
        return make_rows(
            samples,
            (first[:, None] + drawn).flatten().repeat_interleave(times),
            step=steps.repeat_interleave(self.anchors, 0).flatten(),
            first=first.repeat_interleave(self.anchors * times),
        )

    def loss(self, batch: TensorDict) -> TensorDict:
        samples, sample = shared(batch)
        step = batch["step"]
        x, cond = samples["latents"][sample, step], samples["cond"][sample]
        t, t_next = samples["t"][sample, step], samples["t"][sample, step + 1]
        group = batch["first"][:, None] + torch.arange(self.group_size, device=step.device)
        candidates, advantage = samples["latents"][group, step[:, None] + 1], samples["advantage"][group]
        v = self._velocity(x, t, cond)
        v_old = self._velocity_beside(v, "old", x, t, cond)
        now, before = (
            leap_log_prob(euler_step(u, x, t, t_next), candidates, temperature=self.temperature) for u in (v, v_old)
        )  # fmt: skip
        each = grpo_loss(now, before, advantage, clip=self.clip).sum(1)
        change = torch.expm1((now - before).detach()).abs()
        clipped = (change > self.clip).float().mean()
        return TensorDict({"loss_policy": each.mean(), "ratio_error": change.mean(), "clipped": clipped})

    def workload(self) -> Workload:
        steps = self.sampling.steps
        times = self.anchors * share_of_steps(steps, self.time_share) / self.group_size
        return Workload(self.group_size, steps, times, self.epochs, {"old": 1 - 1 / self.epochs})
