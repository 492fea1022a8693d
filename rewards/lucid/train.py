"""The training of LucidConsistency's projection: the same content under other degradations is one, anything else isn't.

The loss is the usual one for such pairs (InfoNCE, van den Oord et al. 2018): an enlarged LR image must be nearer to
another look of its content than to other contents, and than to its own content with a part exchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.rewards.lucid.reward import cosine, make_projection

__all__ = ["Looks", "contrast", "exchanged", "figures", "train_projection"]


@dataclass(frozen=True)
class Looks:
    """Embeddings of N contents.

    Attributes:
        degraded: enlarged LR images, P degradations of each, [N, P, D].
        truth: [N, D].
        changed: the truth with a part exchanged, [N, M, D]; the parts grow with the place in M.
    """

    degraded: Tensor
    truth: Tensor
    changed: Tensor


def exchanged(image: Tensor, other: Tensor, area: float, generator: torch.Generator) -> Tensor:
    """An image [3, H, W] with a rectangle of its proportions, `area` of it, taken from another; where, is drawn."""
    height, width = (max(1, round(side * area**0.5)) for side in image.shape[-2:])
    top, left = (
        int(torch.randint(room + 1, (), generator=generator))
        for room in (image.shape[-2] - height, image.shape[-1] - width)
    )
    place = (slice(None), slice(top, top + height), slice(left, left + width))
    mixed = image.clone()
    mixed[place] = other[place]
    return mixed


def contrast(anchor: Tensor, positive: Tensor, changed: Tensor, temperature: float) -> Tensor:
    """-log of the positive's share among all: exp(cos / temperature) over the sum of B positives and M changed ones.

    Args:
        anchor, positive: [B, D], row by row one content. changed: [B, M, D], of the anchor's content.

    Returns:
        [B].
    """
    anchor, positive, changed = (F.normalize(z, dim=-1) for z in (anchor, positive, changed))
    logits = torch.cat([anchor @ positive.T, torch.einsum("bd,bmd->bm", anchor, changed)], 1) / temperature
    return F.cross_entropy(logits, torch.arange(len(anchor)), reduction="none")


def train_projection(
    looks: Looks, *, hidden: int, out: int, steps: int, batch: int, temperature: float, lr: float, seed: int
) -> nn.Sequential:
    """Learn a projection; every step draws contents, a degradation of each, and another look at it or at the truth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projection = make_projection(looks.truth.shape[1], hidden, out)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count, kinds = looks.degraded.shape[:2]
    positives = torch.cat([looks.degraded, looks.truth[:, None]], 1)
    for _ in range(steps):
        rows = torch.randperm(count, generator=generator)[:batch]
        kind = torch.randint(kinds, rows.shape, generator=generator)
        other = (kind + 1 + torch.randint(kinds, rows.shape, generator=generator)) % (kinds + 1)  # never the same look
        anchor, positive = looks.degraded[rows, kind], positives[rows, other]
        each = contrast(projection(anchor), projection(positive), projection(looks.changed[rows]), temperature)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(each.mean())
        optimizer.step()
        schedule.step()
    return projection.eval().requires_grad_(False)


@torch.no_grad()
def figures(looks: Looks, areas: Sequence[float], projection: nn.Module | None = None) -> dict[str, float]:
    """How well enlarged LR tells its truth from other things; without a projection, by the embedder alone.

    Returns:
        mean cosines with the truth (`paired`) and with other contents (`swapped`); how often the truth is nearer than
        another content (`above_swapped`), and than itself with `area` of it exchanged (`above_changed_AREA`).
    """
    project = projection if projection is not None else nn.Identity()
    anchor, truth = project(looks.degraded), project(looks.truth)
    count, kinds = anchor.shape[:2]
    flat, of = anchor.flatten(0, 1), torch.arange(count).repeat_interleave(kinds)
    table = F.normalize(flat, dim=1) @ F.normalize(truth, dim=1).T
    paired, apart = table[torch.arange(len(flat)), of], of[:, None] != torch.arange(count)
    found = {
        "paired": float(paired.mean()),
        "swapped": float(table[apart].mean()),
        "above_swapped": float((paired[:, None] > table)[apart].float().mean()),
    }
    for place, area in enumerate(areas):
        changed = project(looks.changed[:, place])[of]
        found[f"above_changed_{area:g}"] = float((paired > cosine(flat, changed)).float().mean())
    return found
