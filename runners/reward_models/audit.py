"""The audit of a reward: what is measured, part by part; each part is kept, so that an audit goes on where it stopped.

Everything is asked through the task as training asks, whole groups at once: of any reward, served ones too, and of any
policy. What is measured is judged by `audit_lines` and written down by `srgym.runners.report.audit_report`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from srgym import policies
from srgym.errors import Refusal
from srgym.files import write_json, write_whole
from srgym.policies import Policy, derive_seeds
from srgym.rewards.audit.attack import attacked
from srgym.rewards.audit.faults import FAULTS, spoilt
from srgym.rewards.base import Reward
from srgym.rewards.check import CheckReport, Finding, check
from srgym.rewards.kin import independent_judges
from srgym.rewards.specimens import worse
from srgym.runners.measure.evaluation import spread_indices
from srgym.runners.measure.metrics import make_metrics
from srgym.runners.reward_models import audit_lines as lines
from srgym.runners.reward_models.audit_lines import Line, contract
from srgym.runners.run.build import build_policy, build_task
from srgym.sealed import read_object
from srgym.settings import Count, Natural, check_arguments

__all__ = ["AREAS", "STRENGTHS", "WEIGHTS", "Audit", "AuditSettings"]

AREAS = (0.02, 0.06, 0.15, 0.3, 1.0)
STRENGTHS = (0.5, 1.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
BUDGETS = (1, 2, 4, 8)  # grey levels
_JUDGED = (1.0, 0.15)  # the areas that have a verdict
_CHECKED_AT = 192


@dataclass(frozen=True)
class AuditSettings:
    """What an audit is of.

    Attributes:
        reward, policy, env: sections of a configuration; `env` is where the contexts come from.
        judges: metrics by label, beside the reward; those that are kin to it are left out.
        contexts, samples: N contexts, K samples of each; attacked: contexts whose first sample is attacked.
        steps: of the sampler; ascent: of the attack. seed: of samples and noise.
    """

    reward: Mapping[str, Any]
    policy: Mapping[str, Any]
    env: Mapping[str, Any]
    judges: Mapping[str, Any]
    contexts: Annotated[int, Ge(2)] = 16
    samples: Annotated[int, Ge(3)] = 8
    attacked: Count = 8
    steps: Count = 6
    ascent: Count = 12
    seed: Natural = 0

    def __post_init__(self) -> None:
        check_arguments(AuditSettings, vars(self), "")


@dataclass
class Audit:
    """One audit in its folder.

    Attributes:
        reward: as made. judges: independent ones' labels by purpose ("fidelity", "perceptual").
        photographs: of each context.

    Raises:
        ValueError: if the folder holds an audit of other settings.
        Incompatible: for a reward that needs what the contexts don't have, or contexts without ground truth.
    """

    settings: AuditSettings
    folder: Path
    reward: Reward
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._claim()
        self.policy = build_policy(self.settings.policy, self.settings.env).eval()
        self.task = build_task(self.settings.env, self.reward, policy_gives=self.policy.gives)
        self.judges = independent_judges(self.settings.judges, [dict(self.settings.reward)])
        metrics = {label: self.settings.judges[label] for labels in self.judges.values() for label in labels}
        self._metrics = {metric.label: metric.reward for metric in make_metrics(metrics)} if metrics else {}
        self.contexts = [self.task.context([i]) for i in spread_indices(len(self.task), self.settings.contexts)]
        if any(context.hr is None for context in self.contexts):
            raise Refusal(f"an audit needs ground truth, which the source '{self.task.source.name}' doesn't give")
        self.photographs = [context.ids[0].split("/")[0] for context in self.contexts]
        self.truth = torch.cat([context.hr for context in self.contexts if context.hr is not None])
        lr = torch.cat([context.lr for context in self.contexts])
        self.bicubic = F.interpolate(lr, size=self.truth.shape[-2:], mode="bicubic").clamp(0, 1)
        self.nearest = F.interpolate(lr, size=self.truth.shape[-2:])

    def _claim(self) -> None:
        written, now = self.folder / "settings.json", json.loads(json.dumps(asdict(self.settings), default=str))
        if written.is_file() and read_object(written, {}) != now:
            raise Refusal(f"{self.folder} holds an audit of other settings: name another folder with out=FOLDER")
        write_json(written, now)

    def _kept(self, part: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A part of the audit, measured now or before."""
        path = self.folder / "parts" / f"{part}.json"
        if not path.is_file():
            print(f"audit: {part}", flush=True)
            write_json(path, measure())
        return read_object(path, {})

    def _pictures(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.folder / "parts" / f"{name}.safetensors"
        if not path.is_file():
            write_whole(path, save({key: value.contiguous() for key, value in make().items()}))
        held: dict[str, Tensor] = load_file(path)
        return held

    def _score(self, sets: Tensor, reward: Reward | None = None, which: Sequence[int] | None = None) -> Tensor:
        """Candidates [N, M, 3, H, W], each context's a group: [N, M], NaN where there is no score."""
        contexts = self.contexts if which is None else [self.contexts[i] for i in which]
        self.calls += sets.shape[0] * sets.shape[1] if reward is None else 0
        scored = [self.task.score(context, own, reward=reward).total for context, own in zip(contexts, sets)]
        return torch.stack(scored)

    @torch.no_grad()
    def _scores(self, sets: Tensor, reward: Reward | None = None, which: Sequence[int] | None = None) -> Any:
        return self._score(sets, reward, which).double().numpy().tolist()

    def _judged(self, sets: Tensor, which: Sequence[int] | None = None) -> dict[str, Any]:
        return {label: self._scores(sets, judge, which) for label, judge in self._metrics.items()}

    def _sampled(self, policy: Policy, samples: int, adapter: str | None) -> Tensor:
        """[N, K, 3, H, W]: as a group of training would be."""
        drawn = []
        for context in self.contexts:
            seeds = derive_seeds(self.settings.seed, 0, context.index, torch.arange(samples), stream="audit")
            with torch.no_grad(), policy.adapter(adapter):
                obs = {"lr": context.lr.to(policy.device), "prompt": context.prompt}
                drawn.append(policy.rollout(obs, policy.sampling(self.settings.steps), seeds)["sr"].cpu())
        return torch.stack(drawn)

    @property
    def samples(self) -> Tensor:
        """[N, K, 3, H, W] of the policy."""
        return self._pictures("samples", lambda: {"sr": self._sampled(self.policy, self.settings.samples, "ema")})["sr"]

    # The parts

    def signal(self) -> dict[str, Any]:
        """Scores of samples and of the truth, of samples disturbed invisibly, and what judges say."""

        def measure() -> dict[str, Any]:
            samples, generator = self.samples, torch.Generator().manual_seed(self.settings.seed)
            flat = samples.flatten(0, 1)
            disturbed = {
                "JPEG 95": worse(flat, "jpeg", 95),
                "noise of 1/255": (flat + torch.randn(flat.shape, generator=generator) / 255).clamp(0, 1),
                "a shift by 1 pixel": F.pad(flat, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1],
            }
            together = self._scores(torch.cat([samples, self.truth[:, None]], 1))
            return {
                "samples": [row[:-1] for row in together], "truth": [row[-1] for row in together],
                "disturbed": {name: self._scores(x.view(samples.shape)) for name, x in disturbed.items()},
                "judges": self._judged(samples),
            }  # fmt: skip

        return self._kept("signal", measure)

    @property
    def referenced(self) -> bool:
        """Whether the reward is shown what the image should be: ground truth, or LR."""
        return bool((self.reward.needs | self.reward.wants) & {"lr", "hr"})

    @property
    def start(self) -> Tensor:
        """What faults are put into: the truth; for a reward that is shown it, an image close to it."""
        return self.truth.lerp(self.bicubic, 0.25) if "hr" in self.reward.needs else self.truth

    def sanity(self) -> dict[str, Any]:
        """Scores of the truth, of what others make, and of every fault by area and strength [N, strengths]."""

        def measure() -> dict[str, Any]:
            start, sample = self.start, self.samples[:, 0]
            made = {"truth": self.truth, "start": start, "sample": sample, "bicubic": self.bicubic,
                    "nearest": self.nearest}  # fmt: skip
            keys = [(kind, area, s) for kind in FAULTS for area in AREAS for s in STRENGTHS]
            sets = [*made.values(), *(spoilt(start, k, s, area, self.settings.seed + 1) for k, area, s in keys)]
            scores = np.asarray(self._scores(torch.stack(sets, 1)))
            faults = scores[:, len(made) :].reshape(len(scores), len(FAULTS), len(AREAS), len(STRENGTHS))
            return {
                **{name: scores[:, i].tolist() for i, name in enumerate(made)},
                "faults": {kind: {str(area): faults[:, i, j].tolist() for j, area in enumerate(AREAS)}
                           for i, kind in enumerate(FAULTS)},
            }  # fmt: skip

        return self._kept("sanity", measure)

    def attack(self) -> dict[str, Any]:
        """Scores of samples under attack by grey levels, what JPEG 95 leaves of the gain, and what judges say."""
        which = spread_indices(len(self.contexts), self.settings.attacked)
        truth, start = self.truth[which], self.samples[which, 0]
        budgets = BUDGETS if self.reward.differentiable else (2, 8)  # answers cost more than gradients

        def ascend(levels: int) -> Tensor:
            return attacked(
                lambda x: self._score(x[:, None], which=which)[:, 0], start, levels / 255, seed=self.settings.seed,
                steps=self.settings.ascent, gradient=self.reward.differentiable,
            )  # fmt: skip

        def measure() -> dict[str, Any]:
            images = self._pictures("attack", lambda: {str(levels): ascend(levels) for levels in budgets})
            plain = self._scores(torch.stack([start, truth, worse(start, "jpeg", 95)], 1), which=which)
            rows = {}
            for levels in budgets:
                image = images[str(levels)]
                pair = torch.stack([image, worse(image, "jpeg", 95)], 1)
                rows[str(levels)] = {
                    "scores": self._scores(pair, which=which),
                    "judges": self._judged(pair[:, :1], which),
                }
            return {"which": which, "plain": plain, "judges": self._judged(start[:, None], which), "attacked": rows}

        return self._kept("attack", measure)

    @property
    def attack_pictures(self) -> dict[str, Tensor]:
        """Attacked samples by grey levels, after `attack`."""
        return self._pictures("attack", dict)

    def curve(self, learnt: Path) -> dict[str, Any]:
        """Along the weight of a learnt LoRA: the reward, judges, and the distance from the start in grey levels."""

        def measure() -> dict[str, Any]:
            policy = policies.load(learnt).eval()
            if not policy.has_adapters:
                raise Refusal(f"an over-optimisation curve scales a LoRA, and the policy in {learnt} has none")
            deltas, before, rows, first = policy.adapter_deltas("ema"), 0.0, [], None
            for weight in WEIGHTS:
                policy.add_deltas(deltas, weight - before)
                before, samples = weight, self._sampled(policy, 2, None)
                first = samples if first is None else first
                distance = (samples - first).square().mean((1, 2, 3, 4)).sqrt() * 255
                rows.append(
                    {"weight": weight, "distance": float(distance.mean()), "reward": self._scores(samples),
                     "judges": self._judged(samples)}
                )  # fmt: skip
            return {"rows": rows}

        return self._kept("curve", measure)

    def checked(self) -> CheckReport:
        """What `srgym rewards check` finds."""
        kept = self._kept("contract", lambda: {"findings": [
            asdict(finding) for finding in check(self.reward, size=_CHECKED_AT, skip=("cost",)).findings]})  # fmt: skip
        return CheckReport(self.reward.name, tuple(Finding(**row) for row in kept["findings"]))

    # The verdicts

    def verdicts(self, learnt: Path) -> tuple[list[Line], float | None]:
        """Every line, and the weight of the short training's LoRA at which to stop (None: it raised nothing)."""
        signal, sanity, attack, curve = self.signal(), self.sanity(), self.attack(), self.curve(learnt)["rows"]
        verdicts = [lines.above_truth(signal["samples"], signal["truth"])]
        verdicts += [lines.floor_line(name, signal["samples"], scores) for name, scores in signal["disturbed"].items()]
        verdicts += [
            lines.signal_line(label, signal["samples"], signal["judges"][label], self.photographs)
            for label in self.judges["fidelity"]
        ]
        others = {"the policy's sample": sanity["sample"], "bicubic": sanity["bicubic"]}
        verdicts += [lines.truth_first(sanity["truth"], others)]
        verdicts += [lines.bicubic_over_nearest(sanity["bicubic"], sanity["nearest"])]
        for kind in FAULTS:
            whole, part = (sanity["faults"][kind][str(area)] for area in _JUDGED)
            verdicts.append(lines.fault_line(kind, sanity["start"], whole, part, self.referenced))
        scores = {int(levels): np.asarray(row["scores"])[:, 0] for levels, row in attack["attacked"].items()}
        way = "its gradient" if self.reward.differentiable else "answers to noise"
        verdicts.append(lines.attack_line(scores, np.asarray(attack["plain"])[:, 1], way))
        weights, reward = [row["weight"] for row in curve], [np.nanmean(row["reward"]) for row in curve]
        stops = []
        for labels in self.judges.values():
            for label in labels:
                judged = [np.nanmean(row["judges"][label], 1) for row in curve]
                line, stop = lines.overoptimisation(label, weights, reward, judged, self.photographs)
                verdicts.append(line)
                stops += [] if stop is None else [stop]
        return [*verdicts, contract(self.checked())], min(stops) if stops else None
