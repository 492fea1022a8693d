"""DiffusionNFT: negative-aware fine-tuning on the forward process (Zheng et al. 2025, arXiv 2509.16117; OARS eq. 6-8).

Each sample x0 of the old policy, of optimality r in [0, 1] among its group, is noised anew, and the learner's velocity
enters twice: mixed towards itself (v+) and away from itself (v-). Good samples pull v+ to their velocity v = eps - x0,
bad ones v-:

    v+ = (1 - b) v_old + b v_theta      v- = (1 + b) v_old - b v_theta
    loss = r ||v+ - v||^2 + (1 - r) ||v- - v||^2

With D = v_theta - v_old, A the clipped advantage, c its clip and norms that are means, (c/b) times that loss is
(c/b) ||v_old - v||^2 + c b ||D||^2 + 2 A <D, v_old - v>: c b is the trust region, and the best D is
E[A (v - v_old)] / (c b).
No likelihoods, no trajectories: any solver may collect.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Agent, Need
from srgym.agents.ema import old_decay
from srgym.agents.groups import STDS, Combine, GroupFilter, assess, from_config, optimality
from srgym.agents.rows import make_rows, shared
from srgym.agents.timesteps import corrupt, schedule_steps, share_of_steps
from srgym.errors import Refusal
from srgym.policies.base import FlowPolicy, Sampling
from srgym.policies.noise import Noise, derive_seeds
from srgym.policies.solvers import DPM2M, SOLVERS, Euler
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["FORMS", "DiffusionNFT", "nft_loss"]

FORMS = ("self_normalised", "plain")


def nft_loss(
    v_theta: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    r: Tensor,
    *,
    beta: float = 1.0,
    clip: float = 1.0,
    form: str = "self_normalised",
) -> Tensor:
    """DiffusionNFT's loss of each sample.

    Args:
        v_theta, v_old: the learner's and the old policy's velocities at (x_t, t), [B, ...].
        x_t: (1 - t) x0 + t eps, [B, ...]. t: [B] in (0, 1]. x0: the samples, [B, ...].
        r: their optimality, [B] in [0, 1].
        beta: b, how far v+ and v- lie from v_old.
        clip: c, the clip of the advantage behind r; only the self-normalised form is scaled by it.
        form: "plain", OARS eq. 8 as it stands; or "self_normalised", the published code's
            (c / b) [r L+ + (1 - r) L-] with L the squared error of the clean estimate x_t - t v+- over its own mean
            absolute error (at least 1e-5, no gradient), which equals t MSE(v+- - v) / MAE(v+- - v).

    Returns:
        [B].
    """
    if form not in FORMS:
        raise Refusal(f"nft_loss has the forms {' and '.join(FORMS)}, got '{form}'")
    v_old = v_old.detach()
    positive = (1 - beta) * v_old + beta * v_theta
    negative = (1 + beta) * v_old - beta * v_theta
    s = t.to(x_t.dtype).reshape(-1, *[1] * (x_t.dim() - 1))
    if form == "plain":
        v = (x_t - x0) / s
        return r * _mean((positive - v).square()) + (1 - r) * _mean((negative - v).square())

    def normalised(velocity: Tensor) -> Tensor:
        error = x_t - s * velocity - x0
        return _mean(error.square()) / _mean(error.detach().abs()).clamp_min(1e-5)

    return clip / beta * (r * normalised(positive) + (1 - r) * normalised(negative))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


class DiffusionNFT(Agent):
    """DiffusionNFT, and under `clip=1` OARS.

    Args:
        policy: with adapters: `default` learns, `old` collects, the base is what the KL term holds on to.
        reward: any.
        group_size: K.
        steps, solver: of the collecting rollout, deterministic and without guidance.
        beta: b.
        clip: c; 1 is OARS's text, 5 the published code's.
        form: see `nft_loss`.
        kl: k, the weight of mean (v_theta - v_base)^2; at 0 the base isn't run.
        old: how `old` follows the learner, once an iteration: "on_policy", "linear", "delayed", or a constant d.
        time_share: of the sampler's times, how many each sample is trained at: int(share * steps).
        epochs: optimiser steps of an iteration, each on all rows, with fresh noise.
        std: what advantages are divided by: the group's spread or the whole batch's.
        filter: fields of a `GroupFilter`; None: no group is filtered.
        combine: fields of a `Combine`, to weigh the reward's components anew; None: the reward as it is.
        ema, provides: see `Agent`.
    """

    name = "diffusion_nft"
    needs = frozenset({Need.GROUPS})
    sampler = "old"

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 24,
        steps: int = 6,
        solver: str = "dpm2m",
        beta: float = 1.0,
        clip: float = 1.0,
        form: str = "self_normalised",
        kl: float = 1e-4,
        old: str | float = "linear",
        time_share: float = 0.99,
        epochs: int = 1,
        std: str = "group",
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        super().__init__(policy, reward, group_size=group_size, epochs=epochs, ema=ema, provides=provides)
        self._require_adapters("the policy that sampled")
        if not (beta > 0 and clip > 0 and kl >= 0 and 0 < time_share <= 1):
            raise Refusal(
                "expected beta and clip above 0, kl of at least 0 and time_share in (0, 1], got "
                f"{beta}, {clip}, {kl} and {time_share}"
            )
        if form not in FORMS or std not in STDS or SOLVERS.get(solver) not in (Euler, DPM2M):
            raise Refusal(
                f"expected form of {FORMS}, std of {STDS} and a deterministic solver, got {form}, {std}, {solver}"
            )
        old_decay(old, 0)
        self.sampling = Sampling(steps=steps, solver=solver)
        self.beta, self.clip, self.form, self.kl = beta, clip, form, kl
        self.old, self.time_share, self.std = old, time_share, std
        kept = from_config(GroupFilter, filter)
        self.filter = kept.for_reward(reward) if kept is not None else None
        self.combine = from_config(Combine, combine)

    def prepare(self, rollout: TensorDict) -> TensorDict:
        assert self.sampling is not None
        groups = assess(rollout, self.group_size, std=self.std, filter=self.filter, combine=self.combine)
        self.stats = groups.stats
        samples = rollout.select("x0", "cond")
        keep, advantage = (column[groups.own].to(samples["x0"].device) for column in (groups.keep, groups.advantage))
        kept = keep.nonzero().flatten()
        seed = rollout["seed"][kept]
        times = self.policy.sigmas(self.sampling.steps, rollout["cond"])[: self.sampling.steps].to(kept.device)
        drawn = schedule_steps(seed, self.sampling.steps, self.time_share).to(kept.device)
        count = drawn.shape[1]
        sample = kept.repeat_interleave(count)
        return make_rows(
            samples,
            sample,
            t=times[drawn.flatten()],
            advantage=advantage[sample],
            optimality=optimality(advantage, self.clip)[sample],
            seed=seed.repeat_interleave(count),
            draw=torch.arange(count, device=kept.device).repeat(len(kept)),
        )

    def loss(self, batch: TensorDict) -> TensorDict:
        samples, sample = shared(batch)
        x0, cond, t = samples["x0"][sample], samples["cond"][sample], batch["t"]
        seeds = derive_seeds(0, self.updates, batch["seed"], batch["draw"], stream="diffusion_nft")
        eps = Noise(seeds, x0.device).normal(x0.shape[1:], x0.dtype)
        x_t = corrupt(x0, eps, t)
        # The base first: its activations are gone before the learner's graph is built.
        v_base = self._velocity_of(None, x_t, t, cond) if self.kl > 0 else None
        v = self._velocity(x_t, t, cond)
        v_old = self._old_velocity(v, x_t, t, cond)
        each = nft_loss(
            v, v_old, x_t, t, x0, batch["optimality"], beta=self.beta, clip=self.clip, form=self.form
        )  # fmt: skip
        terms = {"loss_policy": each.mean(), "deviation": (v.detach() - v_old).square().mean()}
        if v_base is not None:
            drift = (v - v_base).square().mean()
            terms |= {"loss_kl": self.kl * drift, "kl": drift.detach()}
        return TensorDict(terms)

    def old_decay(self) -> float:
        return old_decay(self.old, self.updates)

    def workload(self) -> Workload:
        assert self.sampling is not None
        steps = self.sampling.steps
        # Where `old` is the learner itself an iteration's first pass needs no forward of it.
        old = 1 - 1 / self.epochs if self.old in ("on_policy", 0) else 1.0
        beside = {"old": old} | ({None: 1.0} if self.kl > 0 else {})
        times = share_of_steps(steps, self.time_share)
        return Workload(self.group_size, steps=steps, times=times, epochs=self.epochs, beside=beside)
