"""The training of LucidConsistency's projection on contexts (`srgym train experiment=lucid_consistency`)."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.envs import SRTask
from srgym.errors import Refusal
from srgym.files import write_json
from srgym.policies import derive_seeds
from srgym.rewards.lucid.embedders import Embedder, make_embedder
from srgym.rewards.lucid.reward import enlarged, save_projection
from srgym.rewards.lucid.train import Looks, exchanged, figures, train_projection
from srgym.runners.reward_models.compass import tasks_under
from srgym.settings import Count, Positive, check_arguments

__all__ = ["LucidSettings", "build_lucid", "look_at"]


@dataclass(frozen=True)
class LucidSettings:
    """How the projection is made.

    Attributes:
        embedder: "lite0" or "qwen3_vl", and path, its weights where they aren't in a package.
        contexts, validation_contexts: of the training and of the validation split.
        presets: the degradations that each content is seen under.
        areas: of each truth so many copies have a part of that size exchanged for another content's.
        hidden, out: widths of the projection.
        steps, batch, lr, temperature: see `srgym.rewards.lucid.train`.
    """

    embedder: str = "lite0"
    path: str | None = None
    contexts: Count = 300
    validation_contexts: Count = 48
    presets: Sequence[str] = ("mild", "mixture")
    areas: Sequence[float] = (0.04, 0.1, 0.25)
    hidden: Count = 128
    out: Count = 64
    steps: Count = 200
    batch: Count = 64
    lr: Positive = 3e-4
    temperature: Positive = 0.1

    def __post_init__(self) -> None:
        check_arguments(LucidSettings, vars(self), "scorer.")
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise Refusal(f"scorer.areas are shares of an image in (0, 1), at least one, got {list(self.areas)}")


@torch.no_grad()
def look_at(embedder: Embedder, tasks: Sequence[SRTask], areas: Sequence[float], count: int, seed: int) -> Looks:
    """Embeddings of `count` contents under every degradation, as they are, and with parts exchanged; of contexts that
    have ground truth.
    """
    drawn = [int(derive_seeds(seed, 0, i, stream="context")) % len(tasks[0]) for i in range(count)]
    contexts = [[task.context([index]) for task in tasks] for index in drawn]
    truths: list[Tensor] = [views[0].hr[0] for views in contexts]  # type: ignore[index]
    generator = torch.Generator().manual_seed(seed)
    degraded, truth, changed = [], [], []
    for i, views in enumerate(contexts):
        size = (truths[i].shape[-2], truths[i].shape[-1])
        others = [truths[(i + 1 + int(torch.randint(count - 1, (), generator=generator))) % count] for _ in areas]
        parts = [exchanged(truths[i], other, area, generator) for other, area in zip(others, areas, strict=True)]
        seen = embedder(torch.cat([*(enlarged(view.lr, size) for view in views), torch.stack([truths[i], *parts])]))
        degraded.append(seen[: len(views)])
        truth.append(seen[len(views)])
        changed.append(seen[len(views) + 1 :])
    return Looks(torch.stack(degraded), torch.stack(truth), torch.stack(changed))


def build_lucid(settings: LucidSettings, env: Mapping[str, Any], folder: Path, seed: int) -> dict[str, float]:
    """Embed contexts, train the projection on them and write it to `folder`/scorer.

    `held_out.json` beside it has the figures on the validation split (`srgym.rewards.lucid.train.figures`), by the
    projection and by the embedder alone. Returns what it cost, and the figures.

    Raises:
        Incompatible: for contexts without ground truth.
    """
    started = time.monotonic()
    embedder = make_embedder(settings.embedder, settings.path).eval()

    def looks(count: int, seed: int, **changes: Any) -> Looks:
        return look_at(embedder, tasks_under(env, settings.presets, **changes), settings.areas, count, seed)

    train = looks(settings.contexts, seed)
    validation = looks(settings.validation_contexts, seed + 10**6, split="validation")
    print(f"lucid: {settings.contexts} contents embedded in {time.monotonic() - started:.0f} s", flush=True)
    projection = train_projection(
        train, hidden=settings.hidden, out=settings.out, steps=settings.steps, batch=settings.batch,
        temperature=settings.temperature, lr=settings.lr, seed=seed,
    )  # fmt: skip
    found = figures(validation, settings.areas, projection)
    alone = figures(validation, settings.areas)
    print("lucid: " + ", ".join(f"{k} {v:.3f} ({alone[k]:.3f} before)" for k, v in found.items()), flush=True)
    held_out = {"projection": found, "embedder": alone}
    write_json(folder / "scorer" / "held_out.json", held_out)
    notes = {"settings": asdict(settings), "held_out": held_out, "seed": seed}
    save_projection(folder / "scorer", projection, settings.embedder, **json.loads(json.dumps(notes)))
    return {"seconds": time.monotonic() - started, "updates": float(settings.steps), **found}
