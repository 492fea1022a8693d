"""What is measured of a policy or of a reward without training anything: rows as an evaluation has them.

Each probe is a function of its place (see `Place`) and of options, and returns a frame of `COLUMNS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from srgym import policies, rewards
from srgym.envs.operations import jpeg
from srgym.envs.task import Context, SRTask
from srgym.errors import Refusal
from srgym.policies import Policy, derive_seeds
from srgym.policies.merging import read_lora
from srgym.rewards.audit.faults import FAULTS, SEEN_BESIDE_A_REFERENCE, spoilt
from srgym.runners.measure.evaluation import COLUMNS, Evaluation, spread_indices
from srgym.runners.measure.evaluation import split_id as split
from srgym.runners.measure.methods import Drawn, Samples
from srgym.runners.preferences import pairs_of, write_preferences
from srgym.runners.reproduce.agreement import advantages
from srgym.runners.run.build import build_policy, build_task

__all__ = ["ON_TRAINING", "PROBES", "Place", "dose"]

_AREAS, _STRENGTHS = (0.01, 0.03), (0.5, 1.0)  # small: of larger ones nearly all are noticed, by anybody
_JPEG = 95
_GREY = 255.0


@dataclass(frozen=True)
class Place:
    """Where a probe looks.

    Attributes:
        folder: the cell's.
        env, policy: sections: of the contexts, and of the base policy.
        metrics: labels to specifications. limit: contexts at most. steps: of the sampler.
    """

    folder: Path
    env: Mapping[str, Any]
    policy: Mapping[str, Any]
    metrics: Mapping[str, Any]
    limit: int
    steps: int

    def task(self, **changes: Any) -> SRTask:
        return build_task(dict(self.env) | changes)

    def base(self) -> Policy:
        """The base policy, as the sections describe it."""
        return build_policy(self.policy, self.env)


def dose(weight: float) -> str:
    """What a LoRA of this weight is called among an evaluation's methods."""
    return f"dose {weight:g}"


def evaluate(
    place: Place,
    *,
    policy: str | None = None,
    lora: str | None = None,
    weights: Sequence[float] = (1.0,),
    test: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The metrics of a policy, or of one with the LoRA of another added at each weight.

    With several weights besides, `distance`: how far its images are from those of the first on the same noise, RMS in
    grey levels.

    Args:
        policy: folder of the policy; None: the base. lora: folder of the policy whose LoRA is added.
        test: changes of the env section.
    """
    task = place.task(**(test or {}))
    evaluation = Evaluation(task, place.metrics, limit=place.limit)
    frames, origin = list[pd.DataFrame](), None
    for weight in weights:
        start = place.base() if policy is None else policies.load(Path(policy))
        if lora is not None and weight:
            start.add_deltas(read_lora(Path(lora)).deltas(), weight)
        name, method = "policy" if weight == 1 else dose(weight), _Kept(Samples(start.eval(), place.steps))
        frames.append(evaluation.measure({name: method}))
        if len(weights) > 1:
            images = torch.cat(method.images)
            origin = images if origin is None else origin
            away = (images - origin).square().mean((1, 2, 3)).sqrt() * _GREY
            frames.append(_frame(task, evaluation.indices, {"distance": away}, name))
    return pd.concat(frames, ignore_index=True)


class _Kept:
    """A method that keeps the images that it made."""

    def __init__(self, method: Samples) -> None:
        self._method, self.images = method, list[Tensor]()
        self.random, self.gives, self.record = method.random, method.gives, method.record

    def __call__(self, context: Context, seed: int) -> Drawn:
        drawn = self._method(context, seed)
        self.images.append(drawn.sr.cpu())
        return drawn


def spread(
    place: Place, *, policy: str | None = None, reward: Any = "compass", samples: int = 8, test: Mapping[str, Any]
) -> pd.DataFrame:
    """How a policy's samples of one context differ.

    `pixel_spread`: standard deviation over the samples, mean over pixels, in grey levels; `reward_spread`: that of a
    reward; `spread_over_jpeg`: the reward's over how much JPEG 95, which nobody sees, moves it (RMS).
    """
    drawn = place.base() if policy is None else policies.load(Path(policy))
    task, scorer = place.task(**test), rewards.make(reward)
    indices = spread_indices(len(task), place.limit)
    sr, scores = draw_groups(task, drawn, indices, samples, place.steps, {"": scorer})
    values = scores[""]
    nudged = torch.stack([
        _score(task, scorer, index, torch.stack([jpeg(image, _JPEG) for image in group]))
        for index, group in zip(indices, sr, strict=True)
    ])  # fmt: skip
    moved = (nudged - values).square().mean(1).sqrt()
    deviation = values.std(1)
    found = {
        "pixel_spread": sr.std(1).mean((1, 2, 3)) * _GREY, "reward_spread": deviation,
        "spread_over_jpeg": deviation / moved.clamp_min(1e-9),
    }  # fmt: skip
    return _frame(task, indices, found)


@torch.no_grad()
def draw_groups(
    task: SRTask, policy: Policy, indices: Sequence[int], samples: int, steps: int, scorers: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples [N, K, 3, H, W] of each context as an agent's group would be, and rewards' scores [N, K] of them."""
    made, scores = [], {name: list[Tensor]() for name in scorers}
    for place, index in enumerate(indices):
        context = task.context([index])
        seeds = derive_seeds(0, 0, torch.arange(place * samples, (place + 1) * samples), stream="probe")
        obs = {"lr": context.lr.expand(samples, -1, -1, -1), "prompt": None}
        with policy.adapter("ema"):
            made.append(policy.rollout(obs, policy.sampling(steps, "euler"), seeds)["sr"])
        for name, scorer in scorers.items():
            scores[name].append(_score(task, scorer, index, made[-1]))
    return torch.stack(made), {name: torch.stack(rows) for name, rows in scores.items()}


def _score(task: SRTask, scorer: rewards.Reward, index: int, sr: Tensor) -> Tensor:
    """A reward's scores [K] of K images of one context, as a group."""
    with torch.no_grad():
        return task.score(task.context([index]), sr, reward=scorer).total


def agreement(
    place: Place, *, of: Any, over: Any, contexts: int, samples: int
) -> pd.DataFrame:  # fmt: skip
    """`advantage_r`: how two rewards' group advantages correlate on the base policy's samples of training contexts."""
    task = place.task()
    indices = spread_indices(len(task), contexts)
    pair = {"of": rewards.make(of), "over": rewards.make(over)}
    _, scores = draw_groups(task, place.base(), indices, samples, place.steps, pair)
    return _frame(task, indices, {"advantage_r": advantages(scores["of"], scores["over"])})


def pairs(place: Place, *, reward: Any, contexts: int, samples: int, top: int | None = None) -> pd.DataFrame:
    """Write a preference data set of the base policy's samples of training contexts, `run/pairs.parquet` in the folder.

    `gap`: by how much a pair's winner scores higher, mean over a context's pairs.
    """
    task, policy = place.task(), place.base()
    indices = spread_indices(len(task), contexts)
    sr, scores = draw_groups(task, policy, indices, samples, place.steps, {"": rewards.make(reward)})
    context = task.context(indices)
    rollout = TensorDict({
        "lr": context.lr.repeat_interleave(samples, 0), "sr": sr.flatten(0, 1), "reward": scores[""].flatten(),
        "group": torch.arange(len(indices)).repeat_interleave(samples),
    }, batch_size=len(indices) * samples)  # fmt: skip
    made = pairs_of(rollout, samples, context.ids, top=top)
    target = place.folder / "run" / "pairs.parquet"
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)  # of a session that was killed
    write_preferences(target, made)
    gaps = {name: [float(pair.gap or 0) for pair in made if pair.id == name] for name in context.ids}
    means = [sum(own) / len(own) if own else float("nan") for own in gaps.values()]
    return _frame(task, indices, {"gap": torch.tensor(means)})


def faults(
    place: Place, *, reward: Any, mapped: bool = True, own_reference: bool = False, test: Mapping[str, Any]
) -> pd.DataFrame:
    """`noticed`: in what share of its faults a reward ranks the truth with a local fault below the truth itself.

    Kinds of `FAULTS` that show without a reference, 1 and 3% of the area, plain and gross.

    Args:
        mapped: False: FinPercep's score with its map ignored.
    """
    kinds = [kind for kind in FAULTS if kind not in SEEN_BESIDE_A_REFERENCE]
    spoils: list[Callable[[Tensor, int], Tensor]] = [
        lambda x, i, kind=kind, area=area, strength=strength: spoilt(x, kind, strength, area, seed=11 + i)  # type: ignore[misc]
        for kind in kinds for area in _AREAS for strength in _STRENGTHS
    ]  # fmt: skip
    return _noticed(place, reward, spoils, mapped=mapped, own_reference=own_reference, test=test)


def counterfeits(
    place: Place, *, reward: Any, own_reference: bool = False, test: Mapping[str, Any]
) -> pd.DataFrame:  # fmt: skip
    """`noticed`, of images that are as natural as the truth and another's: only LR betrays them.

    Another context's truth, the truth upside down, its colours exchanged, moved by three pixels.

    Args:
        own_reference: the reward is shown, in LR's place, the image itself made small: what it knows without LR.
    """
    spoils: list[Callable[[Tensor, int], Tensor]] = [
        lambda x, i: x.flip(-1, -2), lambda x, i: x.flip(-3),
        lambda x, i: x.roll((3, 3), (-1, -2)),
    ]  # fmt: skip
    return _noticed(place, reward, spoils, others=True, own_reference=own_reference, test=test)


@torch.no_grad()
def _noticed(
    place: Place,
    reward: Any,
    spoils: Sequence[Callable[[Tensor, int], Tensor]],
    *,
    test: Mapping[str, Any],
    mapped: bool = True,
    own_reference: bool = False,
    others: bool = False,
) -> pd.DataFrame:
    task, scorer = place.task(**test), rewards.make(reward)
    indices = spread_indices(len(task), place.limit)
    context = task.context(indices)
    if context.hr is None:
        raise Refusal("a probe of faults needs ground truth to spoil, and these contexts have none")

    def score(images: Tensor) -> Tensor:
        if not mapped:
            unmapped: Tensor = _mapping_model(scorer).global_score(images)
            return unmapped
        lr = _small(images, context.lr) if own_reference else context.lr
        return scorer(images, lr=lr, hr=context.hr, group=torch.arange(len(images)), index=context.index).total

    clean = score(context.hr)
    bad = [spoil(context.hr, i) for i, spoil in enumerate(spoils)]
    if others:
        bad.append(context.hr.roll(len(indices) // 2, 0))
    noticed = torch.stack([(score(images) < clean).double() for images in bad]).mean(0)
    return _frame(task, indices, {"noticed": noticed})


def _mapping_model(scorer: rewards.Reward) -> Any:
    """The FinPercep-RM inside a reward, whose map can be ignored."""
    model = getattr(scorer.score, "model", None)
    if not hasattr(model, "global_score"):
        raise Refusal(f"mapped=false is for finpercep, which has a map; got reward '{scorer.name}'")
    return model


def _small(images: Tensor, lr: Tensor) -> Tensor:
    size = lr.shape[-2:]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _frame(task: SRTask, indices: Sequence[int], values: Mapping[str, Tensor], method: str = "policy") -> pd.DataFrame:
    rows = []
    names = [split(name) for context in task.batches(indices, 64) for name in context.ids]
    for metric, column in values.items():
        for (photograph, crop), value in zip(names, column.double().tolist(), strict=True):
            row = (method, photograph, crop, metric, value, value == value, 0)
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


PROBES: dict[str, Callable[..., pd.DataFrame]] = {
    "evaluate": evaluate, "spread": spread, "agreement": agreement, "faults": faults, "counterfeits": counterfeits,
    "pairs": pairs,
}  # fmt: skip
ON_TRAINING = ("agreement", "pairs")
"""Those that look at training contexts, as agents do."""
