"""What a policy wrote: its documents beside the truth, and how its rewards depend on how it is sampled."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from srgym.document import TEXTS, section
from srgym.envs.task import Context, SRTask
from srgym.policies import derive_seeds
from srgym.policies.base import Policy, repeat
from srgym.policies.tokens import IMAGE, WORD, AutoregressivePolicy, TokenSampling
from srgym.runners.measure.evaluation import Evaluation
from srgym.runners.measure.methods import Samples
from srgym.runners.report.document import Block, Heading, Panels, Table, Text
from srgym.runners.report.numbers import plain
from srgym.runners.report.panels import panel
from srgym.runners.report.tables import difference_table, levels_table

__all__ = ["documents", "writers", "ways"]

TEMPERATURES = (0.0, 0.7, 1.0)
_LEVELS = ("coarse", "middle", "fine")


def writers(policies: Mapping[str, Policy]) -> dict[str, AutoregressivePolicy]:
    """Those that write."""
    return {name: policy for name, policy in policies.items() if isinstance(policy, AutoregressivePolicy)}


def ways(
    evaluation: Evaluation, policies: Mapping[str, AutoregressivePolicy], start: str, final: str
) -> tuple[pd.DataFrame, list[Block]]:
    """Rewards at several temperatures, and how sure the policies are of what they write.

    Args:
        evaluation: of the rewards that were trained on.
        policies: by the names of their stages. start, final: two of them.

    Returns:
        The rows, methods named "stage, T = 0.7", and what the report says.
    """
    methods = {
        _way(name, t): Samples(policy, sampling=TokenSampling(t))
        for name, policy in policies.items()
        for t in TEMPERATURES
    }
    frame = evaluation.measure(methods)
    pairs = [(_way(final, t), _way(start, t)) for t in TEMPERATURES]
    metrics = [metric for metric in dict.fromkeys(frame["metric"]) if metric.count(".") <= 1]
    rows = [[name, *map(plain, _entropies(evaluation, policy))] for name, policy in policies.items()]
    return frame, [
        Heading("By how it is sampled"),
        Text(
            "A policy that has only grown less random gains at temperature 1 and not where it is used. T = 0 takes the "
            "likeliest token everywhere."
        ),
        levels_table(frame, list(methods), metrics, None, "Rewards by stage and temperature."),
        difference_table(frame, pairs, metrics, None, "Bold: clear of zero."),
        Table(
            ["", "nats a word", "nats an image token"], rows,
            "Entropies of what is drawn, at temperature 1: how much is left to chance.",
        ),
    ]  # fmt: skip


def _way(name: str, temperature: float) -> str:
    return f"{name}, T = {temperature:g}"


@torch.no_grad()
def _entropies(evaluation: Evaluation, policy: AutoregressivePolicy) -> tuple[float, float]:
    """Means over the words and the image tokens of one document of each context, drawn at temperature 1."""
    sums, counts = torch.zeros(2), torch.zeros(2)
    for context in evaluation.task.batches(evaluation.indices, evaluation.batch):
        seeds = derive_seeds(evaluation.seeds[0], 0, context.index, stream="evaluation")
        with policy.adapter("ema"):
            drawn = policy.rollout(_observed(policy, context), TokenSampling(1.0), seeds)
            entropy = policy.log_prob(drawn["tokens"], drawn["place"], drawn["cond"]).entropy
        mode = policy.grammar.modes(drawn["place"])
        for i, kind in enumerate((WORD, IMAGE)):
            sums[i] += entropy[mode == kind].sum().cpu()
            counts[i] += (mode == kind).sum().cpu()
    words, images = (sums / counts.clamp_min(1)).tolist()
    return words, images


def _observed(policy: Policy, context: Context) -> dict[str, Any]:
    return {"lr": context.lr.to(policy.device), "prompt": context.prompt}


@torch.no_grad()
def documents(task: SRTask, policies: Mapping[str, AutoregressivePolicy], indices: Sequence[int]) -> list[Block]:
    """Some contexts with what each policy wrote of them, as it is used, and the truth."""
    blocks: list[Block] = [Heading("What was written")]
    for context in task.batches(indices, 1):
        images = [panel("LR", _enlarged(context.lr[0], 4))]
        columns: dict[str, Mapping[str, str]] = {}
        for name, policy in policies.items():
            seeds = derive_seeds(0, 0, context.index, stream="evaluation")
            with policy.adapter("ema"):
                cond = repeat(policy.encode(_observed(policy, context)), 1)
                drawn = policy.sample(cond, policy.sampling(), seeds)
            sides = (drawn["coarse"], drawn["middle"], drawn["sr"])
            images += [
                panel(f"{name}, {level}", _enlarged(image[0].float().cpu(), drawn["sr"].shape[-1] // image.shape[-1]))
                for level, image in zip(_LEVELS, sides, strict=True)
            ]
            text = policy.text(drawn["tokens"])[0]
            columns[name] = {part: section(text, part) or "(not there)" for part in TEXTS}
        if context.hr is not None:
            images.append(panel("HR", context.hr[0]))
        if context.texts is not None:
            columns["true"] = context.texts[0]
        rows = [[part.replace("_", " "), *(texts[part] for texts in columns.values())] for part in TEXTS]
        blocks += [Panels([(context.ids[0], images)]), Table(["", *columns], rows, words=True)]
    return blocks


def _enlarged(image: torch.Tensor, times: int) -> torch.Tensor:
    """Each pixel a square."""
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)
