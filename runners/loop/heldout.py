"""The evaluation during a run: the same held-out contexts with the same noise each time, under the averaged weights."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.policies.base import FlowPolicy, Sampling
from srgym.policies.noise import derive_seeds

if TYPE_CHECKING:
    from srgym.agents.base import Agent
    from srgym.envs.task import SRTask

__all__ = ["Heldout", "averaged_weights"]

_BATCH = 8


@contextlib.contextmanager
def averaged_weights(policy: FlowPolicy, agent: "Agent") -> Iterator[None]:
    """Run the policy under its evaluation average: the adapter `ema`, or the average that the agent keeps."""
    averaged = getattr(agent, "averaged", None)
    with policy.adapter("ema"), averaged() if averaged is not None else contextlib.nullcontext():
        yield


class Heldout:
    """Scores a policy on contexts that it isn't trained on.

    Args:
        task: the held-out contexts and the reward.
        count: how many of them, spread evenly over the task.
        steps: the sampler's.
        seed: of the samples' noise.
        pictures: how many contexts a picture shows.
    """

    def __init__(self, task: "SRTask", count: int, steps: int = 6, seed: int = 0, pictures: int = 4) -> None:
        if count < 1:
            raise ValueError(f"an evaluation needs at least 1 held-out context, got {count}")
        self._task, self._seed, self._pictures = task, seed, pictures
        self._indices = torch.linspace(0, len(task) - 1, min(count, len(task))).round().long()
        self._sampling = Sampling(steps=steps)

    @torch.no_grad()
    def evaluate(self, policy: FlowPolicy, agent: "Agent") -> dict[str, float]:
        """`eval/reward` and `eval/{component}`: means over the valid; `eval/psnr_y` where there is ground truth."""
        from srgym.rewards import make

        psnr = make("psnr_y") if "hr" in self._task.source.provides else None
        columns: dict[str, list[Tensor]] = {}
        for cut in torch.split(self._indices, _BATCH):
            context = self._task.context(cut)
            sr = self._draw(policy, agent, context)
            scored = self._task.score(context, sr, torch.arange(len(cut)))
            columns.setdefault("reward", []).append(scored.total.cpu())
            for name, value in scored.components.items():
                columns.setdefault(name, []).append(value.cpu())
            if psnr is not None:
                columns.setdefault("psnr_y", []).append(psnr(sr.cpu(), hr=context.hr).total)
        joined = {name: torch.cat(values) for name, values in columns.items()}
        return {f"eval/{name}": float(value[torch.isfinite(value)].mean()) for name, value in joined.items()}

    @torch.no_grad()
    def picture(self, policy: FlowPolicy, agent: "Agent") -> Tensor:
        """LR | SR | HR of the first contexts, one a row: [3, height, width] in [0, 1].

        A reward that has a map adds a column: its faults over SR, with their scale.
        """
        from srgym.envs.rendering import legend, overlay

        context = self._task.context(self._indices[: self._pictures])
        sr = self._draw(policy, agent, context).cpu()
        columns = [F.interpolate(context.lr.cpu(), size=sr.shape[-2:], mode="nearest"), sr]
        if context.hr is not None:
            columns.append(context.hr.cpu())
        if self._task.reward.has_map:
            columns.append(overlay(sr, self._task.map(context, sr)))
            columns.append(legend(sr.shape[2]).expand(len(sr), -1, -1, -1))
        rows = torch.cat(columns, dim=3)
        return torch.cat(list(rows), dim=1)

    def _draw(self, policy: FlowPolicy, agent: "Agent", context: Any) -> Tensor:
        seeds = derive_seeds(self._seed, 0, context.index, stream="evaluation")
        obs = {"lr": context.lr.to(policy.device), "prompt": context.prompt}
        with averaged_weights(policy, agent):
            sr: Tensor = policy.rollout(obs, self._sampling, seeds)["sr"]
        return sr
