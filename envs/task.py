"""The bandit's core: contexts by index, and scores of what is made of them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from srgym.envs.descriptions import Descriptions, make_descriptions
from srgym.envs.sources import Sample, Source
from srgym.envs.sources import listing as sources
from srgym.errors import Refusal
from srgym.notebook import SHOWN, picture, table
from srgym.rewards.base import Incompatible, Reward, RewardOutput
from srgym.rewards.later import Later
from srgym.rewards.registry import listing as rewards

__all__ = ["Context", "SRTask"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Context:
    """A batch of B contexts.

    Attributes:
        index: int64 [B], their places in the source.
        ids: "photograph/crop" of each.
        lr: float32 [B, 3, h, w] in [0, 1]; without pixels where the source has none.
        hr: float32 [B, 3, h * scale, w * scale] in [0, 1], or None where the source has no ground truth.
        prompt: a text for each, or None where the task uses none.
        degradation: how each LR was made, or None where it isn't known.
        tags: each image's main objects, or None.
        texts: each document's texts, by `srgym.document.TEXTS`, or None.
        scale: how many times larger HR is.
    """

    index: Tensor
    ids: list[str]
    lr: Tensor
    hr: Tensor | None
    prompt: list[str] | None
    degradation: list[dict[str, Any]] | None
    scale: int
    tags: list[tuple[str, ...]] | None = None
    texts: list[dict[str, str]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 3 else ""
        truth = "with ground truth" if self.hr is not None else "without ground truth"
        size = " x ".join(map(str, self.lr.shape[-2:]))
        return f"Context({len(self)} of {size}, x{self.scale}, {truth}: {', '.join(self.ids[:3])}{more})"

    def _repr_html_(self) -> str:
        images = [picture(image) if image.numel() else "-" for image in self.lr[:SHOWN]]
        head, columns = ["context", "LR"], [self.ids[:SHOWN], images]
        for name, values in (("HR", self.hr), ("prompt", self.prompt)):
            if values is not None:
                head.append(name)
                columns.append([v if isinstance(v, str) else picture(v) for v in values[:SHOWN]])
        return table(head, zip(*columns, strict=True), repr(self))


class SRTask:
    """Super-resolution as a contextual bandit: an LR image in, an SR image out, its score back.

    Args:
        source: where contexts come from.
        reward: what scores them; None: `score` is told each time.
        prompts: True: contexts carry the source's own prompts; a text: all carry this one; False: they carry none.
        descriptions: what is said of the images, and so their `tags` and `texts`: "statistics", a file of JSON lines,
            or a `Descriptions` (see `srgym.envs.descriptions`); None: the source's own tags, and no texts.
        policy_gives: what the policy will hand to `score` beside its images ("text", "intermediate"), which a reward
            may need too: `Policy.gives`.

    Raises:
        Incompatible: when the reward needs what neither gives, or prompts or descriptions are wanted of a source that
            can't have them.
    """

    def __init__(
        self,
        source: Source,
        reward: Reward | None = None,
        *,
        prompts: bool | str = False,
        descriptions: Descriptions | str | None = None,
        policy_gives: Collection[str] = (),
    ) -> None:
        if prompts is True and "prompt" not in source.provides:
            raise Incompatible(
                f"prompts=True needs a source that has prompts, and '{source.name}' has {_listed(source.provides)}: "
                "give its argument captions=FOLDER of text files where it takes one, or prompts='one text for all'"
            )
        self.source, self.scale, self.prompts = source, source.scale, prompts
        self.provides = (source.provides - {"prompt"}) | ({"prompt"} if prompts else set()) | set(policy_gives)
        self._descriptions = descriptions if isinstance(descriptions, Descriptions) else make_descriptions(descriptions)
        if self._descriptions is not None:
            missing = self._descriptions.needs - source.provides
            if missing:
                raise Incompatible(
                    f"descriptions={descriptions} needs {_listed(missing)}, and the source '{source.name}' gives "
                    f"{_listed(source.provides)}: take a source with ground truth, or a file of descriptions"
                )
            self.provides |= {"tags"} | ({"texts"} if "degradation" in source.provides else set())
        self._reward = reward
        if reward is not None:
            missing = reward.missing(self.provides)
            if missing:
                raise Incompatible(_what_would_work(source, reward, missing, self.provides))

    @property
    def reward(self) -> Reward:
        """What scores the images.

        Raises:
            ValueError: for a task that was made without one.
        """
        if self._reward is None:
            raise Refusal("this task was made without a reward: give it one, or hand `score` the reward")
        return self._reward

    def __len__(self) -> int:
        """How many contexts there are."""
        return len(self.source)

    def context(self, indices: Tensor | Iterable[int]) -> Context:
        """The contexts at `indices` (int64 [B], any iterable). Several threads may call this at once.

        Raises:
            ValueError: for no index, or for images of different sizes, which don't make a batch.
            IndexError: for an index outside 0 .. len - 1.
        """
        index = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64).cpu()
        if index.ndim != 1 or not len(index):
            raise Refusal(f"expected indices [B] of at least one context, got {list(index.shape)}")
        samples = [self.source[int(i)] for i in index]
        self._check_sizes(samples)
        return self._joined(index.tolist(), samples)

    def _joined(self, indices: Sequence[int], samples: Sequence[Sample]) -> Context:
        """Samples of one size as a batch, with the prompts that the task wants."""
        prompt = None
        if self.prompts:
            prompt = [self.prompts if isinstance(self.prompts, str) else sample.prompt or "" for sample in samples]
        return Context(
            index=torch.tensor(indices),
            ids=[sample.id for sample in samples],
            lr=torch.stack([sample.lr for sample in samples]),
            hr=_stacked([sample.hr for sample in samples]),
            prompt=prompt,
            degradation=_all([sample.degradation for sample in samples]),
            scale=self.scale,
            **self._described(samples),
        )

    def _described(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if self._descriptions is None:
            return {"tags": _all([sample.tags for sample in samples])}
        described = [self._descriptions(sample) for sample in samples]
        texts = [told.texts(sample.degradation) for told, sample in zip(described, samples, strict=True)]
        return {"tags": [told.tags for told in described], "texts": _all(texts)}

    def batches(self, indices: Iterable[int], size: int = 8) -> Iterator[Context]:
        """The contexts at `indices`, in batches of at most `size` neighbours that share their images' sizes."""
        held: list[tuple[int, Sample]] = []
        for index in indices:
            sample = self.source[index]
            if held and (len(held) == size or _shapes(sample) != _shapes(held[0][1])):
                yield self._joined(*zip(*held, strict=True))
                held = []
            held.append((index, sample))
        if held:
            yield self._joined(*zip(*held, strict=True))

    def _check_sizes(self, samples: Sequence[Sample]) -> None:
        first = samples[0]
        for other in samples[1:]:
            if other.lr.shape != first.lr.shape:
                raise Refusal(
                    f"expected LR images of one size in a batch, got '{first.id}' of {_sides(first.lr)} and "
                    f"'{other.id}' of {_sides(other.lr)}: give the source '{self.source.name}' a crop size, or take "
                    "them one by one"
                )

    def score(
        self, context: Context, sr: Tensor, group: Tensor | None = None, *, reward: Reward | None = None, **made: Any
    ) -> RewardOutput:
        """Score SR images.

        Args:
            context: B contexts.
            sr: [B * K, 3, H, W] in [0, 1], K images of each context, contiguous; on any device.
            group: int64 [B * K]; by default images of one context are a group.
            reward: another one than the task's, such as a metric.
            made: what else the policy made of each image: `text`, `intermediate`.

        Returns:
            Totals [B * K] and components on sr's device; `valid` is False, and the total NaN, where there is no score.

        Raises:
            ValueError: when the number of images isn't a multiple of B, or their size isn't that of LR times scale.
        """
        return (reward or self.reward)(sr, **{**self._beside(context, sr, group=group), **made})

    def begin(self, context: Context, sr: Tensor, of: Tensor, **made: Any) -> Later[RewardOutput]:
        """Score some of the samples, without waiting for a judge that was asked: see `Reward.begin`.

        Args:
            sr: [n, 3, H, W]. of: int64 [n], the place in `context` that each was made of, which is its group too.
            made: as of `score`.
        """
        return self.reward.begin(sr, **{**self._beside(context, sr, of), **made})

    def map(self, context: Context, sr: Tensor, *, reward: Reward | None = None) -> Tensor:
        """Where a reward finds SR images bad: [B * K, 1, H, W] in [0, 1]; arguments and errors as `score`.

        Raises:
            Incompatible: for a reward that has no map (`task.reward.has_map` tells).
        """
        return (reward or self.reward).map(sr, **self._beside(context, sr))

    def _beside(
        self, context: Context, sr: Tensor, of: Tensor | None = None, group: Tensor | None = None
    ) -> dict[str, Any]:
        """What is known of each SR image, as a reward's arguments.

        Args:
            of: the place of each one's context; None: K of each, in order. group: None: those of one context.
        """
        count = len(context)
        if context.hr is not None:
            sides = tuple(context.hr.shape[2:])
        elif "lr" in self.provides:
            sides = (context.lr.shape[2] * self.scale, context.lr.shape[3] * self.scale)
        else:
            sides = tuple(sr.shape[2:])
        uneven = of is None and len(sr) % count > 0
        if sr.ndim != 4 or not len(sr) or uneven or tuple(sr.shape[1:]) != (3, *sides):
            raise Refusal(
                f"expected K images of each of {count} contexts as [{count} * K, 3, {sides[0]}, {sides[1]}], "
                f"got {list(sr.shape)}"
            )
        places = torch.arange(count).repeat_interleave(len(sr) // count) if of is None else of

        def rows(images: Tensor | None) -> Tensor | None:
            return None if images is None else images[places.to(images.device)].to(sr.device)

        def texts(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[place] for place in places.tolist()]

        return {
            "lr": rows(context.lr if "lr" in self.provides else None),
            "hr": rows(context.hr),
            "degradation": texts(context.degradation),
            "prompt": texts(context.prompt),
            "tags": texts(context.tags),
            "index": rows(context.index),
            "group": (places if group is None else group).to(sr.device),
        }


def _shapes(sample: Sample) -> tuple[Any, ...]:
    return sample.lr.shape, None if sample.hr is None else sample.hr.shape


def _stacked(images: list[Tensor | None]) -> Tensor | None:
    present = _all(images)
    return None if present is None else torch.stack(present)


def _all(values: list[_T | None]) -> list[_T] | None:
    """The list, or None if any is missing."""
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else None


def _what_would_work(source: Source, reward: Reward, missing: Collection[str], provided: Collection[str]) -> str:
    """The sentence that names both sides, and what would go with each."""
    fitting = [row["name"] for row in rewards() if set(row["needs"]) - {"group", "index"} <= set(provided)]
    able = [row["name"] for row in sources() if reward.needs - {"group", "index"} <= set(row["provides"])]
    ways = []
    if fitting:
        ways.append(f"a reward that needs no more ({', '.join(fitting[:6])})")
    if able:
        ways.append(f"a source that has it ({', '.join(able)})")
    if "prompt" in missing and "prompt" in source.provides:
        ways.append("prompts=True")
    return (
        f"reward '{reward.name}' needs {_listed(missing)}, which the source '{source.name}' doesn't give: it gives "
        f"{_listed(provided)}" + (f"; take {', or '.join(ways)}" if ways else "")
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _sides(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]}"
