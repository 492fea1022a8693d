"""VLCoT-GRPO: group-relative policy optimisation over the tokens of words and images (RealSR-R1, arXiv 2506.16796).

    max(-A rho, -A clip(rho, 1 - e, 1 + e)) + beta k3,   rho = p(token) / p_old(token),
    k3 = p_base / p - log(p_base / p) - 1

of each token that was drawn, p being the likelihood at the temperature of the rollout. A is the advantage of the whole
document (eq. 1; `credit` says what else it may be). The paper prints neither e nor beta. The released code takes one
update a rollout, so that its ratio is 1 and nothing is clipped, and no KL.
"""

from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.base import Need
from srgym.agents.credit import aggregate, check_credit, credited
from srgym.agents.flow_grpo import grpo_loss
from srgym.agents.ratio import RatioAgent
from srgym.agents.rows import make_rows, shared
from srgym.errors import Refusal
from srgym.policies.tokens import IMAGE, WORD, AutoregressivePolicy, TokenSampling
from srgym.policies.workload import Workload
from srgym.rewards.base import Reward

__all__ = ["TokenGRPO"]

TRAINED = {"all": (WORD, IMAGE), "text": (WORD,), "image": (IMAGE,)}


class TokenGRPO(RatioAgent):
    """VLCoT-GRPO.

    Args:
        policy: what writes.
        reward: what documents are worth; `realsr_r1` judges both words and images.
        group_size: K; 3 in the paper, 5 in its code.
        temperature: of the rollout, and of the likelihood: a token is scored under what it was drawn from. The code
            samples at 0.9 and scores at 1, so that rho is off from the start.
        clip, clip_high: e, and another one for the upper end (None: the same).
        kl: beta.
        level: see `aggregate`; the code has "sequence".
        credit: see `credited`; the paper has "sum". Another leaves no place for `combine`.
        train: "all" tokens, those of the "text", or those of the "image".
        ratio_tolerance, options: see `RatioAgent`. Key-value caches round otherwise than whole sequences do.

    Raises:
        Incompatible: for a flow policy, or a credit that the policy or the reward can't tell.
    """

    name = "token_grpo"
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
        ratio_tolerance: float = 1e-3,
        **options: Any,
    ) -> None:
        self.needs = self.needs | ({Need.CREDIT} if credit == "local" else set())
        super().__init__(policy, reward, group_size=group_size, ratio_tolerance=ratio_tolerance, **options)
        if train not in TRAINED:
            raise Refusal(f"expected train of {tuple(TRAINED)}, got '{train}'")
        check_credit(credit, level, policy, self.compare.combine)
        if not (temperature > 0 and 0 < clip < 1 and (clip_high is None or clip_high > 0) and kl >= 0):
            raise Refusal(
                f"expected a temperature above 0, clip in (0, 1), clip_high above 0 and kl of at least 0, got "
                f"{temperature}, {clip}, {clip_high} and {kl}"
            )
        if kl > 0:
            self._require_adapters("the base (kl above 0)")
        self.sampling = TokenSampling(temperature)
        self.temperature, self.clip, self.clip_high, self.kl = temperature, clip, clip_high, kl
        self.level, self.credit, self.train = level, credit, train

    def prepare(self, rollout: TensorDict) -> TensorDict:
        groups = self.compare(rollout)
        section = self.policy.sections(rollout["tokens"])
        advantage = credited(self.credit, rollout, groups, section, self.group_size, self.reward).to(section.device)
        taught = groups.keep[groups.own].to(section.device) & (advantage != 0).any(1)
        self.stats = groups.stats | {
            "samples_without_advantage": float(groups.keep[groups.own].sum() - taught.sum()),
            "documents_broken": float((~rollout["complete"]).sum()),
        }
        self._begin()
        # Dealt out by whole groups, over the groups of all processes.
        whole = torch.arange(len(groups.keep))[groups.own] // self.group_size % self.updates_per_iteration
        kept = taught.nonzero().flatten()
        drawn = self._trained(rollout["place"])[kept].sum(1).float()
        return make_rows(
            rollout.select("tokens", "place", "log_prob", "cond"), kept,
            advantage=advantage[kept].float(), section=section[kept], part=whole.to(section.device)[kept],
            usual=drawn.mean().clamp_min(1).expand(len(kept)),
        )  # fmt: skip

    def loss(self, batch: TensorDict) -> TensorDict:
        samples, sample = shared(batch)
        document = (samples["tokens"][sample], samples["place"][sample], samples["cond"][sample], self.temperature)
        base = self._log_prob_of(None, *document) if self.kl else None
        log_prob, entropy, _ = self.policy.log_prob(*document)
        old = samples["log_prob"][sample]
        moved = {}
        if self.recomputes:
            same = self.policy.same_adapters("default", "old")
            anew = log_prob.detach() if same else self._log_prob_of("old", *document)
            moved = {"anchor_shift": (anew - old).abs().sum() / (old != 0).sum().clamp_min(1)}
            old = anew
        self._check_ratio(log_prob, old)
        mode, free = self.policy.grammar.modes(document[1]), self._trained(document[1])
        each = grpo_loss(log_prob, old, batch["advantage"], clip=self.clip, clip_high=self.clip_high)
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
        return aggregate(values, free, self.level, batch["section"], batch["usual"]).mean()

    def workload(self) -> Workload:
        beside = self._beside() | ({None: 1.0} if self.kl > 0 else {})
        return Workload(self.group_size, steps=1, times=1, epochs=self.epochs, beside=beside)
