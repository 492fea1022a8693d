"""What a trained FinPercep-RM is worth on images that it wasn't trained on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgym.rewards.finpercep.model import FinPercepRM
from srgym.rewards.finpercep.train import Example

__all__ = ["area_under_curve", "held_out"]

_FAULTY = 0.1


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """The chance that a value of `positive` [P] exceeds one of `negative` [N], ties counted half (ROC AUC)."""
    from scipy.stats import rankdata

    ranks = rankdata(torch.cat([positive, negative]).double().numpy())
    p, n = len(positive), len(negative)
    return float((ranks[:p].sum() - p * (p + 1) / 2) / (p * n))


@torch.no_grad()
def held_out(
    model: FinPercepRM, contexts: Sequence[Example], judge: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Figures on held-out contexts.

    Args:
        contexts: one `Example` a context: its candidates [B], each with the same ground truth and a mixture of its own.
        judge: (images, truth) to [B], higher is better: a measure that the labels weren't made of.

    Returns:
        - `spearman_*`, `kendall_*`: of the score with minus the mean fault, `inside` a context (mean over contexts) and
          `over` all images of all contexts; candidates, mixtures and ground truth together. `judge_spearman_*`: with
          the judge. `candidates_spearman_inside`: among the whole candidates alone, no mixture and no truth.
        - `ordered`: the share of candidates with S(GT) > S(mixture) > S(SR); `gt_over_mixture`, `mixture_over_sr`: each
          half of it.
        - `map_mae`: mean absolute error of the mixtures' maps; `map_mae_blank`: of a map that is 0 everywhere.
          `map_auc`: how well the map tells a mixture's faulty pixels (true fault above 0.1) from its clean ones, over
          all images; `map_auc_inside`: the mean over images.
        - `clean_score`, `clean_spread`: mean and standard deviation of S(GT) over contexts. `clean_map`: the mean map.
    """
    table = [_scores(model, e, judge) for e in contexts]
    result = _correlations(table)
    sr, mixed, truth = (np.concatenate([t[k] for t in table]) for k in ("sr", "mixed", "truth"))
    result |= {
        "ordered": float(((truth > mixed) & (mixed > sr)).mean()),
        "gt_over_mixture": float((truth > mixed).mean()),
        "mixture_over_sr": float((mixed > sr).mean()),
    }
    clean = np.array([t["truth"][0] for t in table])
    result |= {"clean_score": float(clean.mean()), "clean_spread": float(clean.std())}
    return {name: round(value, 4) for name, value in (result | _map_figures(model, contexts)).items()}


def _scores(model: FinPercepRM, e: Example, judge: Callable[[Tensor, Tensor], Tensor]) -> dict[str, NDArray[Any]]:
    """One context's scores of SR, mixtures and truth, their severities and the judge's opinion."""
    sr, mixed, truth = (model.score(images).numpy() for images in (e.sr, e.synthetic, e.gt))
    severity = torch.cat([e.sr_fault.mean((1, 2, 3)), e.fault.mean((1, 2, 3)), torch.zeros(1)])
    images = torch.cat([e.sr, e.synthetic, e.gt[:1]])
    return {
        "sr": sr,
        "mixed": mixed,
        "truth": truth,
        "all": np.concatenate([sr, mixed, truth[:1]]),
        "good": -severity.numpy(),
        "judged": judge(images, e.gt[:1].expand_as(images)).numpy(),
    }


def _correlations(table: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    from scipy.stats import kendalltau, spearmanr

    def inside(measure: Callable[..., Any], key: str, count: int | None = None) -> float:
        return float(np.nanmean([measure(t["all"][:count], t[key][:count]).statistic for t in table]))

    def over(measure: Callable[..., Any], key: str) -> float:
        joined = (np.concatenate([t[k] for t in table]) for k in ("all", key))
        return float(measure(*joined).statistic)

    return {
        "spearman_inside": inside(spearmanr, "good"),
        "kendall_inside": inside(kendalltau, "good"),
        "spearman_over": over(spearmanr, "good"),
        "kendall_over": over(kendalltau, "good"),
        "judge_spearman_inside": inside(spearmanr, "judged"),
        "judge_spearman_over": over(spearmanr, "judged"),
        "candidates_spearman_inside": inside(spearmanr, "good", len(table[0]["sr"])),
    }


def _map_figures(model: FinPercepRM, contexts: Sequence[Example]) -> dict[str, float]:
    errors, blanks, faulty, sound, each, false = [], [], [], [], [], []
    for e in contexts:
        found = model.map(e.synthetic)
        errors.append((found - e.fault).abs().mean())
        blanks.append(e.fault.mean())
        false.append(model.map(e.gt[:1]).mean())
        bad, clean = e.fault > _FAULTY, (e.synthetic == e.gt).all(1, keepdim=True)
        for values, where, not_there in zip(found, bad, clean, strict=True):
            faulty.append(values[where])
            sound.append(values[not_there])
            if where.any() and not_there.any():
                each.append(area_under_curve(values[where], values[not_there]))
    return {
        "map_mae": float(torch.stack(errors).mean()),
        "map_mae_blank": float(torch.stack(blanks).mean()),
        "map_auc": area_under_curve(torch.cat(faulty), torch.cat(sound)),
        "map_auc_inside": float(np.mean(each)),
        "clean_map": float(torch.stack(false).mean()),
    }
