"""The bandit's core: contexts by index, and scores of what is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srgym.envs import sources
from srgym.envs.sources import Source
from srgym.rewards import make as make_reward
from srgym.rewards.base import Incompatible, Reward, RewardOutput

__all__ = ["Context", "SRTask"]


@dataclass(frozen=True)
class Context:
    """B contexts of one size.

    Attributes:
        index: int64 [B], their places in the source; ids: their names there, "photograph/crop".
        lr: float32 [B, 3, h, w] in [0, 1].
        hr: float32 [B, 3, H, W] in [0, 1], or None where there is no ground truth.
        prompt: a text each, or None where the task gives none.
        degradation: the record each of how LR was made, or None.
        scale: H / h.
    """

    index: Tensor
    ids: list[str]
    lr: Tensor
    hr: Tensor | None
    prompt: list[str] | None
    degradation: list[dict[str, Any]] | None
    scale: int

    def __len__(self) -> int:
        return len(self.ids)


class SRTask:
    """Super-resolution as a contextual bandit: LR images are contexts, SR images actions, the reward scores them.

    Args:
        source: a `Source`, or what `sources.make` takes: a name, or a mapping with `name` and its arguments.
        reward: a `Reward`, or what `srgym.rewards.make` takes.
        prompts: whether contexts carry their prompts.

    Raises:
        Incompatible: when the reward needs what the source doesn't provide, or the prompts aren't there.
    """

    def __init__(
        self,
        source: Source | str | Mapping[str, Any],
        reward: Reward | str | Mapping[str, Any],
        *,
        prompts: bool = False,
    ) -> None:
        self.source = _made(source)
        self.reward = reward if isinstance(reward, Reward) else make_reward(reward)
        self.prompts = prompts
        given = _listed(self.source.provides)
        missing = self.reward.missing(self.source.provides)
        if missing:
            raise Incompatible(
                f"reward '{self.reward.name}' needs {_listed(missing)}, and {type(self.source).__name__} provides "
                f"{given}; take a source that has it, or a reward that needs only these"
            )
        if prompts and "prompt" not in self.source.provides:
            raise Incompatible(f"prompts were asked for, and {type(self.source).__name__} provides {given}")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def scale(self) -> int:
        """How many times larger SR is than LR."""
        return self.source.scale

    def context(self, indices: Sequence[int] | Tensor | int) -> Context:
        """The contexts at these places of the source.

        Raises:
            IndexError: for a place outside it.
            ValueError: when none is given, or when they have different sizes.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()
        if not len(index):
            raise ValueError("expected at least one index, got none")
        samples = [self.source[int(i)] for i in index]
        shapes = {sample.lr.shape[-2:] for sample in samples}
        if len(shapes) > 1:
            sizes = ", ".join(f"{sample.id} {tuple(sample.lr.shape[-2:])}" for sample in samples)
            raise ValueError(
                f"expected contexts of one size, got {sizes}; give the source a size, or take one at a time"
            )
        provides = self.source.provides
        return Context(
            index=index,
            ids=[sample.id for sample in samples],
            lr=torch.stack([sample.lr for sample in samples]),
            hr=torch.stack([s.hr for s in samples if s.hr is not None]) if "hr" in provides else None,
            prompt=[s.prompt for s in samples if s.prompt is not None] if self.prompts else None,
            degradation=[s.degradation for s in samples if s.degradation is not None]
            if "degradation" in provides
            else None,
            scale=self.source.scale,
        )

    def score(self, context: Context, sr: Tensor, group: Tensor | None = None, **extra: Any) -> RewardOutput:
        """Score SR images; a score that can't be had is NaN and not valid, never made up.

        Args:
            context: of B contexts.
            sr: float [N, 3, H, W] in [0, 1], on any device.
            group: int64 [N], the row of `context` that each belongs to; by default each context has N / B in a row.
            extra: what the policy gives beside the image, one each: `text`, `tags`, `intermediate`.

        Raises:
            ValueError: for images of another size, or rows that don't fit the contexts.
        """
        rows = _rows(context, sr, group)
        tall, wide = (side * context.scale for side in context.lr.shape[-2:])
        if sr.ndim != 4 or tuple(sr.shape[1:]) != (3, tall, wide):
            raise ValueError(f"expected sr as [N, 3, {tall}, {wide}], {context.scale} times lr, got {tuple(sr.shape)}")
        degradation = context.degradation
        return self.reward(
            sr,
            lr=context.lr[rows].to(sr.device),
            hr=None if context.hr is None else context.hr[rows].to(sr.device),
            degradation=None if degradation is None else [degradation[row] for row in rows.tolist()],
            group=rows.to(sr.device),
            index=context.index[rows].to(sr.device),
            **extra,
        )


def _rows(context: Context, sr: Tensor, group: Tensor | None) -> Tensor:
    """int64 [N] on the CPU: the row of `context` that each SR image belongs to."""
    contexts = len(context)
    if group is None:
        if not len(sr) or len(sr) % contexts:
            raise ValueError(f"expected a multiple of {contexts} images, as many for each context, got {len(sr)}")
        return torch.arange(contexts).repeat_interleave(len(sr) // contexts)
    rows = group.cpu()
    if rows.shape != (len(sr),) or rows.dtype != torch.int64:
        raise ValueError(f"expected group as int64 [{len(sr)}], got {rows.dtype} {list(rows.shape)}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < contexts:
        raise ValueError(
            f"expected groups as rows of {contexts} contexts, got from {int(rows.min())} to {int(rows.max())}"
        )
    return rows


def _made(source: Source | str | Mapping[str, Any]) -> Source:
    if isinstance(source, Source):
        return source
    options = {"name": source} if isinstance(source, str) else dict(source)
    if "name" not in options:
        raise ValueError(f"expected a source's 'name' among its settings, got {_listed(options)}")
    return sources.make(options.pop("name"), **options)


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "nothing"
