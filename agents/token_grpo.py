"""VLCoT-GRPO: group-relative policy optimisation over the tokens of words and images (RealSR-R1, arXiv 2506.16796).

    max(-A rho, -A clip(rho, 1 - e, 1 + e)) + beta k3,   rho = p(token) / p_old(token),
    k3 = p_base / p - log(p_base / p) - 1

of each token that was drawn, p being the likelihood at the temperature of the rollout. A is the advantage of the whole
document (eq. 1; `credit` says what else it may be). The paper prints neither e nor beta. The released code takes one
update a rollout, so that its ratio is 1 and nothing is clipped, and no KL.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Agent, Need
from srgym.agents.credit import aggregate, compare, to_go
from srgym.agents.flow_grpo import OLD_LOG_PROBS
from srgym.agents.groups import STDS, Assessment, Combine, GroupFilter, assess, from_config
from srgym.agents.rows import make_rows, shared
from srgym.errors import Refusal
from srgym.policies.tokens import IMAGE, WORD, AutoregressivePolicy, TokenSampling
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["CREDITS", "LEVELS", "TokenGRPO", "token_grpo_loss"]

LEVELS = ("sequence", "token", "section")
CREDITS = ("sum", "to_go", "local")
TRAINED = {"all": (WORD, IMAGE), "text": (WORD,), "image": (IMAGE,)}


def token_grpo_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float = 0.2, clip_high: float | None = None
) -> Tensor:
    """The clipped objective of every token, to be minimised: [...] each."""
    rho = (log_prob - old_log_prob).exp()
    bounded = rho.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(-advantage * rho, -advantage * bounded)


class TokenGRPO(Agent):
    """VLCoT-GRPO.

    Args:
        policy: what writes.
        reward: what documents are worth; `realsr_r1` judges both words and images.
        group_size: K; 3 in the paper, 5 in its code.
        temperature: of the rollout, and of the likelihood: a token is scored under what it was drawn from. The code
            samples at 0.9 and scores at 1, so that rho is off from the start.
        clip, clip_high: e, and another one for the upper end (None: the same).
        kl: beta.
        level: "sequence": a document's tokens are averaged (the code); "token": all tokens of the batch count alike;
            "section": the seven sections of a document count alike.
        credit: "sum": a token gets the advantage of its document (the paper); "to_go": each component of the reward is
            standardised in its group, and a token gets those that it can still change; "local": besides, a token that
            is scored alone (a degradation label, a sentence of the rough understanding, a patch of the final image)
            gets what it earned itself in place of that, which is biased, and far less noisy.
        train: "all" tokens, those of the "text", or those of the "image".
        std: see `group_advantage`.
        updates_per_iteration: the groups of a rollout are dealt out over so many optimiser steps.
        epochs: passes over them.
        filter, combine: see `DiffusionNFT`; combine belongs to credit "sum" alone.
        old_log_prob, ratio_tolerance: see `FlowGRPO`. Key-value caches round otherwise than whole sequences do.
        ema, provides: see `Agent`.

    Raises:
        Incompatible: for a flow policy, or a credit that the policy or the reward can't tell.
        ValueError: for a hyperparameter out of its range.
    """

    name = "token_grpo"
    needs = frozenset({Need.GROUPS})
    trains: ClassVar[Any] = AutoregressivePolicy
    policy: AutoregressivePolicy

    def __init__(
        self,
        policy: AutoregressivePolicy,
        reward: Reward | None = None,
        *,
        group_size: int = 8,
        temperature: float = 1.0,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl: float = 0.0,
        level: str = "sequence",
        credit: str = "sum",
        train: str = "all",
        std: str = "group",
        updates_per_iteration: int = 1,
        epochs: int = 1,
        filter: GroupFilter | Mapping[str, Any] | None = None,
        combine: Combine | Mapping[str, Any] | None = None,
        old_log_prob: str | None = None,
        ratio_tolerance: float = 1e-3,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        self.needs = self.needs | ({Need.CREDIT} if credit == "local" else set())
        super().__init__(policy, reward, group_size=group_size, epochs=epochs, ema=ema, provides=provides)
        if level not in LEVELS or credit not in CREDITS or train not in TRAINED or std not in STDS:
            raise Refusal(
                f"expected level of {LEVELS}, credit of {CREDITS}, train of {tuple(TRAINED)} and std of {STDS}, got "
                f"'{level}', '{credit}', '{train}' and '{std}'"
            )
        if not (temperature > 0 and 0 < clip < 1 and (clip_high is None or clip_high > 0) and kl >= 0):
            raise Refusal(
                f"expected a temperature above 0, clip in (0, 1), clip_high above 0 and kl of at least 0, got "
                f"{temperature}, {clip}, {clip_high} and {kl}"
            )
        if updates_per_iteration < 1 or not ratio_tolerance > 0 or old_log_prob not in (None, *OLD_LOG_PROBS):
            raise Refusal(
                f"expected at least 1 update, ratio_tolerance above 0 and old_log_prob of {OLD_LOG_PROBS} or None, got "
                f"{updates_per_iteration}, {ratio_tolerance} and {old_log_prob!r}"
            )
        if credit != "sum" and combine is not None:
            raise Refusal(
                f"credit='{credit}' weighs the reward's components itself: leave combine out, or credit='sum'"
            )
        if credit == "local" and not hasattr(policy, "answers"):
            raise Incompatible(
                f"credit='local' asks which token earned what, and '{policy.name}' doesn't say: take compact_vlcot, or "
                "credit='to_go'"
            )
        half = next(policy.core.parameters()).dtype in (torch.float16, torch.bfloat16)
        self.old_log_prob = old_log_prob or ("recomputed" if half and policy.has_adapters else "sampled")
        if kl > 0 or self.old_log_prob == "recomputed":
            self._require_adapters("the base (kl above 0), or the policy that sampled (old_log_prob='recomputed')")
        self.sampling = TokenSampling(temperature)
        self.temperature, self.clip, self.clip_high, self.kl = temperature, clip, clip_high, kl
        self.level, self.credit, self.train, self.std = level, credit, train, std
        self.updates_per_iteration, self.ratio_tolerance = updates_per_iteration, ratio_tolerance
        kept = from_config(GroupFilter, filter)
        self.filter = kept.for_reward(reward) if kept is not None else None
        self.combine = from_config(Combine, combine)
        self._first = True

    def prepare(self, rollout: TensorDict) -> TensorDict:
        groups = assess(rollout, self.group_size, std=self.std, filter=self.filter, combine=self.combine)
        section = self.policy.sections(rollout["tokens"])
        advantage = self._credited(rollout, groups, section).to(section.device)
        taught = groups.keep[groups.own].to(section.device) & (advantage != 0).any(1)
        self.stats = groups.stats | {
            "samples_without_advantage": float(groups.keep[groups.own].sum() - taught.sum()),
            "documents_broken": float((~rollout["complete"]).sum()),
        }
        self._first = True
        if self.old_log_prob == "recomputed":
            self.policy.sync("default", "old")
        # Dealt out by whole groups, over the groups of all processes.
        whole = torch.arange(len(groups.keep))[groups.own] // self.group_size % self.updates_per_iteration
        kept = taught.nonzero().flatten()
        drawn = self._trained(rollout["place"])[kept].sum(1).float()
        return make_rows(
            rollout.select("tokens", "place", "log_prob", "cond"), kept,
            advantage=advantage[kept].float(), section=section[kept], part=whole.to(section.device)[kept],
            usual=drawn.mean().clamp_min(1).expand(len(kept)),
        )  # fmt: skip

    def _credited(self, rollout: TensorDict, groups: Assessment, section: Tensor) -> Tensor:
        """Advantages of tokens [N, L]."""
        own, keep = groups.own, groups.keep[groups.own].to(section.device)
        if self.credit == "sum":
            return groups.advantage[own].to(section.device)[:, None].expand(section.shape)
        weights = self._weights(rollout)
        components = {name: rollout["components"][name] for name in weights}
        advantage = to_go(components, weights, section, self.group_size, keep)
        if self.credit == "local":
            group = torch.arange(len(section), device=section.device) // self.group_size
            alone = compare(rollout["answers"], group)
            advantage = torch.where((rollout["answers", "key"] >= 0) & keep[:, None], alone, advantage)
        return advantage

    def _weights(self, rollout: TensorDict) -> Mapping[str, float]:
        """The weights of the reward's components, of those that the rollout has."""
        weights = getattr(self.reward.score, "weights", None) if self.reward is not None else None
        if not isinstance(weights, Mapping):
            raise Incompatible(
                f"credit='{self.credit}' gives out a reward's components by their weights, and "
                f"'{self.reward.name if self.reward else None}' has none: take realsr_r1, or credit='sum'"
            )
        present = set(rollout["components"].keys())
        return {name: weight for name, weight in weights.items() if weight and name in present}

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        for _ in range(self.epochs):
            for part in range(self.updates_per_iteration):
                yield rows[rows["part"] == part]

    def workload(self) -> Workload:
        again = 1 - 1 / (self.updates_per_iteration * self.epochs)
        old = {"old": again} if self.old_log_prob == "recomputed" else {}
        beside = old | ({None: 1.0} if self.kl > 0 else {})
        return Workload(self.group_size, steps=1, times=1, epochs=self.epochs, beside=beside)

    def loss(self, batch: TensorDict) -> TensorDict:
        samples, sample = shared(batch)
        document = (samples["tokens"][sample], samples["place"][sample], samples["cond"][sample], self.temperature)
        base = self._log_prob_of(None, *document) if self.kl else None
        log_prob, entropy, _ = self.policy.log_prob(*document)
        old = samples["log_prob"][sample]
        moved = {}
        if self.old_log_prob == "recomputed":
            same = self.policy.same_adapters("default", "old")
            anew = log_prob.detach() if same else self._log_prob_of("old", *document)
            moved = {"anchor_shift": (anew - old).abs().sum() / (old != 0).sum().clamp_min(1)}
            old = anew
        self._check_ratio(log_prob, old)
        mode, free = self.policy.grammar.modes(document[1]), self._trained(document[1])
        each = token_grpo_loss(log_prob, old, batch["advantage"], clip=self.clip, clip_high=self.clip_high)
        terms = {"loss_policy": self._mean(each, free, batch), **moved}
        if base is not None:
            drift = self._mean((base - log_prob).expm1() - (base - log_prob), free, batch)
            terms |= {"loss_kl": self.kl * drift, "kl": drift.detach()}
        with torch.no_grad():
            off = (log_prob - old).expm1().abs()[free]
            terms |= {"ratio_error": off.mean(), "clipped": (off > self.clip).float().mean()}
            for name, kind in (("word", WORD), ("image", IMAGE)):
                terms[f"entropy_{name}"] = entropy[mode == kind].mean().nan_to_num()
        return TensorDict(terms)

    @torch.no_grad()
    def _log_prob_of(self, adapter: str | None, *document: Any) -> Tensor:
        with self.policy.adapter(adapter):
            return self.policy.log_prob(*document).log_prob

    def _trained(self, place: Tensor) -> Tensor:
        """The tokens that are trained: bool [N, L]."""
        mode = self.policy.grammar.modes(place)
        return torch.stack([mode == kind for kind in TRAINED[self.train]]).any(0)

    def _mean(self, values: Tensor, free: Tensor, batch: TensorDict) -> Tensor:
        """The mean of a batch's documents; at level "token" sums, by the usual number of tokens of the iteration."""
        documents = aggregate(values, free, self.level, batch["section"])
        return (documents / batch["usual"] if self.level == "token" else documents).mean()

    def _check_ratio(self, log_prob: Tensor, old: Tensor) -> None:
        """Before the first update the learner is the sampler; see `FlowGRPO`."""
        if not self._first:
            return
        error = float((log_prob.detach() - old).abs().max())
        if not error <= self.ratio_tolerance:
            raise Refusal(
                f"TokenGRPO: before the first update a token's log-probability must be what it was drawn with, and it "
                f"is off by {error:.1e} (at most {self.ratio_tolerance:.0e} was expected). Look for dropout or weights "
                "changed in between; half precision, autocast too, needs old_log_prob='recomputed'"
            )

    def after_update(self) -> None:
        super().after_update()
        self._first = False
