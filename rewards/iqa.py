"""No-reference quality metrics, by the optional package pyiqa: `pip install "srgym[iqa]"`.

pyiqa's licence is for non-commercial use. Each metric is a reward and an evaluation metric. Where lower is better, the
total is negative and the component `distance` is the metric's own number. pyiqa fetches a metric's weights when it is
first made.
"""

from typing import Any

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.rewards.backbones import require_package
from srgym.rewards.base import follow
from srgym.rewards.info import RewardInfo
from srgym.rewards.registry import register_reward

__all__ = ["CLIPIQA", "LIQE", "MANIQA", "MUSIQ", "NIQE", "TOPIQ"]

_LICENCE = "PolyForm-Noncommercial-1.0.0 (pyiqa)"
_WEIGHTS = "fetched by pyiqa"


class _Metric:
    """A metric of pyiqa.

    Raises:
        Incompatible: without pyiqa, with the command that installs it.
        FileNotFoundError: where pyiqa can't get the weights, with the command that fetches them.
    """

    __reward__: RewardInfo
    metric: str  # pyiqa's name of it
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    lower_is_better = False
    least_side = 1
    # Some draw patches at random, and LIQE's score of an image depends on the batch: those are scored one by one.
    one_by_one = False

    def __init__(self) -> None:
        pyiqa = require_package(self.name, "pyiqa", "iqa", "\n(its licence allows non-commercial use only)")
        try:
            self.network = pyiqa.create_metric(self.metric, device=torch.device("cpu"), as_loss=False, **self.options)
        except OSError as error:  # no network, or an offline hub
            raise MissingFile(
                f"reward '{self.name}': pyiqa has no weights of its '{self.metric}' and couldn't fetch them ({error}); "
                f"where there is a network, run\n"
                f"  python -c \"import pyiqa; pyiqa.create_metric('{self.metric}')\"\n"
                f"and bring along what it wrote to {torch.hub.get_dir()} and to the Hugging Face cache"
            ) from error
        self.network.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        return self.__reward__.name

    def __call__(self, sr: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] to `total`, and `distance` where lower is better: [B] each.

        Raises:
            ValueError: for images smaller than the metric can take.
        """
        if min(sr.shape[-2:]) < self.least_side:
            raise Refusal(
                f"reward '{self.name}': expected images of at least {self.least_side} pixels a side, got "
                f"{tuple(sr.shape[-2:])}"
            )
        follow(self.network, sr.device)
        batches = torch.unbind(sr[:, None]) if self.one_by_one else [sr]
        score = torch.cat([self._score(batch) for batch in batches])
        return {"total": -score, "distance": score} if self.lower_is_better else {"total": score}

    def _score(self, batch: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[batch.device] if batch.is_cuda else []):
            torch.manual_seed(0)
            score: Tensor = self.network(batch.clamp(0, 1))
        return score.reshape(len(batch)).float()


@register_reward(
    "niqe", range=(-100.0, 0.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa niqe, Y of YCbCr",
    purpose="perceptual",
)  # fmt: skip
class NIQE(_Metric):
    """Minus NIQE (Mittal et al. 2013): distance from natural-scene statistics."""

    metric = "niqe"
    options = {"color_space": "ycbcr"}  # noqa: RUF012
    lower_is_better = True
    least_side = 96


@register_reward(
    "musiq", range=(0.0, 100.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa musiq, KonIQ-10k",
    purpose="perceptual", kin=("KonIQ-10k",),
)  # fmt: skip
class MUSIQ(_Metric):
    """MUSIQ (Ke et al. 2021): multi-scale image quality transformer."""

    metric = "musiq"


@register_reward(
    "maniqa", range=(0.0, 1.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa maniqa-pipal, PIPAL",
    purpose="perceptual", kin=("PIPAL",),
)  # fmt: skip
class MANIQA(_Metric):
    """MANIQA (Yang et al. 2022): multi-dimension attention for no-reference quality."""

    metric = "maniqa-pipal"
    least_side = 224
    one_by_one = True


@register_reward(
    "clipiqa", range=(0.0, 1.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa clipiqa, CLIP RN50",
    purpose="perceptual",
)  # fmt: skip
class CLIPIQA(_Metric):
    """CLIP-IQA (Wang et al. 2023): "good photo" against "bad photo" in CLIP."""

    metric = "clipiqa"


@register_reward(
    "topiq_nr", range=(0.0, 1.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa topiq_nr, KonIQ-10k",
    purpose="perceptual", kin=("KonIQ-10k",),
)  # fmt: skip
class TOPIQ(_Metric):
    """TOPIQ without reference (Chen et al. 2024): top-down semantics to distortions."""

    metric = "topiq_nr"


@register_reward(
    "liqe", range=(1.0, 5.0), licence=_LICENCE, weights=_WEIGHTS, variant="pyiqa liqe, KonIQ-10k",
    purpose="perceptual", kin=("KonIQ-10k",),
)  # fmt: skip
class LIQE(_Metric):
    """LIQE (Zhang et al. 2023): quality by vision-language correspondence."""

    metric = "liqe"
    least_side = 224
    one_by_one = True
