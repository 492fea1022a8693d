"""FinPercep-RM: one encoder, a decoder that maps the faults, and a score that the map steers.

f_i = Enc(SR); M = sigmoid(Dec(f)), in [0, 1] at image size, 1 where the image is bad; S = MLP(f_N * g(M)). The paper
prints g(M) = M. A clean image has M = 0 everywhere, which wipes f_N out and gives all clean images one score; so the
default here is g(M) = 1 - M, which looks at what isn't broken.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json
from srgym.rewards.finpercep.encoders import ENCODERS, Encoder
from srgym.sealed import Damaged, check_shapes, read_object, read_tensors, seal, verify_if_sealed, write_tensors

__all__ = ["LAST_STAGE", "MODULATIONS", "FinPercepRM", "load"]

MODULATIONS = ("clean", "residual", "paper")

# Stage by stage: the decoder's width and the rank of the encoder's adapters (our choice; the paper has no numbers).
_WIDTHS = (0, 32, 64, 128)
_RANKS = (0, 0, 16, 32)
LAST_STAGE = len(_WIDTHS) - 1

# So that at first everything is taken to be clean: sigmoid(-4) = 0.018.
_BIAS = -4.0
_LARGEST = 4096


class FinPercepRM(nn.Module):
    """The model at one stage of its curriculum: stage 0 scores globally, stages 1 to 3 have the map.

    `grow` adds what the next stage adds. All that is added starts at zero, so from stage 1 on growing changes nothing
    until it is trained.

    Args:
        encoder: "compact", "rn50", or an `Encoder`.
        stage: 0 to 3.
        modulation: g(M): "clean" 1 - M, "residual" 1 + M, "paper" M.
        hidden: the width of the score's head.
        options: of the encoder, when it's given by name.

    Raises:
        ValueError: for an unknown encoder, stage or modulation.
    """

    def __init__(
        self,
        encoder: "str | Encoder" = "compact",
        stage: int = 1,
        modulation: str = "clean",
        hidden: int = 64,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(encoder, str) and encoder not in ENCODERS:
            raise Refusal(f"unknown encoder '{encoder}': expected one of {', '.join(ENCODERS)}")
        if modulation not in MODULATIONS:
            raise Refusal(f"unknown modulation '{modulation}': expected one of {', '.join(MODULATIONS)}")
        if stage not in range(LAST_STAGE + 1):
            raise Refusal(f"expected a stage from 0 to {LAST_STAGE}, got {stage}")
        if type(hidden) is not int or not 1 <= hidden <= _LARGEST:
            raise Refusal(f"expected hidden as a whole number from 1 to {_LARGEST}, got {hidden!r:.40}")
        self._named = encoder if isinstance(encoder, str) else None
        self._options = options
        self.encoder = ENCODERS[encoder](**options) if isinstance(encoder, str) else encoder
        self.modulation, self.stage, self._hidden = modulation, 0, hidden
        self.head = nn.Sequential(nn.Linear(self.encoder.widths[-1], hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.branches = nn.ModuleList()
        self.adapters = nn.ModuleList(nn.ModuleList() for _ in self.encoder.widths)
        while self.stage < stage:
            self.grow()

    def grow(self) -> None:
        """Go on to the next stage: a wider decoder, and from stage 2 on adapters of a higher rank in the encoder.

        Raises:
            ValueError: at the last stage.
        """
        if self.stage == LAST_STAGE:
            raise Refusal(f"FinPercep-RM has {LAST_STAGE} stages after the global one; there's none to grow to")
        self.stage += 1
        device = next(self.head.parameters()).device
        width = _WIDTHS[self.stage] - _WIDTHS[self.stage - 1]
        self.branches.append(_Branch(self.encoder.widths, width, first=self.stage == 1).to(device))
        rank = _RANKS[self.stage] - _RANKS[self.stage - 1]
        if rank:
            for adapters, channels in zip(self.adapters, self.encoder.widths, strict=True):
                assert isinstance(adapters, nn.ModuleList)
                adapters.append(_Adapter(channels, rank).to(device))

    def begin_with(self, other: "FinPercepRM") -> None:
        """Take the encoder and the head of a trained model, and nothing of its map.

        Raises:
            ValueError: if they are built in another way.
        """
        for ours, its in ((self.encoder, other.encoder), (self.head, other.head)):
            shapes, theirs = ([(n, tuple(t.shape)) for n, t in m.state_dict().items()] for m in (ours, its))
            if shapes != theirs:
                raise Refusal(
                    "expected a model to begin with whose encoder and head are built as this one's, got others"
                )
            ours.load_state_dict(its.state_dict())

    def forward(self, sr: Tensor) -> tuple[Tensor, Tensor]:
        """(score [B] in (0, 1), higher is better; map [B, 1, H, W] in (0, 1), higher is worse) of SR [B, 3, H, W]."""
        features = self.features(sr)
        fault = self._map(features, sr.shape[-2:])
        return self._score(features[-1], fault), fault

    def score(self, sr: Tensor) -> Tensor:
        """The score [B] of SR [B, 3, H, W] in [0, 1]."""
        return self(sr)[0]  # type: ignore[no-any-return]

    def map(self, sr: Tensor) -> Tensor:
        """The map of faults [B, 1, H, W] of SR [B, 3, H, W] in [0, 1]; zero at stage 0, which has none."""
        return self._map(self.features(sr), sr.shape[-2:])

    def global_score(self, sr: Tensor) -> Tensor:
        """The score [B] without regard to the map."""
        return self._score(self.features(sr)[-1], None)

    def look(self, sr: Tensor) -> tuple[Tensor, Tensor]:
        """For who builds on the model: the score's logit [B], and what it is read from, the mean coarsest features
        [B, C], of SR [B, 3, H, W]."""
        features = self.features(sr)
        last = self._seen(features[-1], self._map(features, sr.shape[-2:])).mean((2, 3))
        return self.head(last).squeeze(1), last

    def features(self, sr: Tensor) -> list[Tensor]:
        """The adapted feature maps, fine to coarse."""
        x, found = self.encoder.normalise(sr), []
        for level, adapters in zip(self.encoder.levels, self.adapters, strict=True):
            x = level(x)
            for adapter in adapters:  # type: ignore[attr-defined]
                x = adapter(x)
            found.append(x)
        return found

    def _map(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        if not self.branches:
            return features[0].new_zeros(len(features[0]), 1, *size)
        logits = torch.stack([branch(features) for branch in self.branches]).sum(0)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).sigmoid()

    def _score(self, last: Tensor, fault: Tensor | None) -> Tensor:
        score: Tensor = self.head(self._seen(last, fault).mean((2, 3))).squeeze(1)
        return score.sigmoid()

    def _seen(self, last: Tensor, fault: Tensor | None) -> Tensor:
        """The coarsest features as the map lets them through."""
        if fault is None or not self.branches:
            return last
        return last * self._gate(F.interpolate(fault, size=last.shape[-2:], mode="area"))

    def _gate(self, fault: Tensor) -> Tensor:
        if self.modulation == "clean":
            return 1 - fault
        return 1 + fault if self.modulation == "residual" else fault

    def trainable(self) -> list[nn.Parameter]:
        """What this stage trains: everything up to stage 1, all but the encoder itself from stage 2 on."""
        kept = {id(p) for p in self.encoder.parameters()} if self.stage > 1 else set()
        return [p for p in self.parameters() if id(p) not in kept]

    def save(self, folder: str | Path, **notes: Any) -> None:
        """Write `model.safetensors` and `model.json`, sealed, with notes on how the weights came about."""
        if self._named is None:
            raise Refusal(f"only a model whose encoder is one of {', '.join(ENCODERS)} can be saved by name")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / _WEIGHTS, self.state_dict())
        built = {"encoder": self._named, "stage": self.stage, "modulation": self.modulation, "hidden": self._hidden}
        described = {"model": {**built, **self._options}, "notes": notes}
        write_json(folder / _DESCRIPTION, described)
        seal(folder)


_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"


def load(folder: str | Path) -> FinPercepRM:
    """A model as `save` wrote it, frozen.

    Raises:
        FileNotFoundError: if the folder doesn't hold one.
        Damaged: naming the first file that isn't what was written.
    """
    folder = Path(folder)
    for file in (_WEIGHTS, _DESCRIPTION):
        if not (folder / file).is_file():
            raise MissingFile(f"expected FinPercep-RM in '{folder}', which has no {file}")
    verify_if_sealed(folder)
    options = read_object(folder / _DESCRIPTION, {"model": dict})["model"]
    unknown = sorted(set(options) - set(inspect.signature(FinPercepRM).parameters))
    if unknown:
        raise Damaged(f"{folder / _DESCRIPTION}: FinPercep-RM has no option '{unknown[0]}'")
    stored = read_tensors(folder / _WEIGHTS)
    model = FinPercepRM(**options)
    check_shapes(folder / _WEIGHTS, stored, model.state_dict())
    model.load_state_dict(stored)
    return model.eval().requires_grad_(False)


class _Branch(nn.Module):
    """A decoder of one width: from the coarsest features up, each level's added and mixed in; logits at the finest."""

    def __init__(self, widths: Sequence[int], width: int, *, first: bool) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.mixers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in widths)
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.out.bias, _BIAS if first else 0.0)  # type: ignore[arg-type]
        if not first:
            nn.init.zeros_(self.out.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor | None = None
        for feature, lateral, mixer in reversed(list(zip(features, self.laterals, self.mixers, strict=True))):
            side = lateral(feature)
            if x is not None:
                side = side + F.interpolate(x, size=side.shape[-2:], mode="bilinear", align_corners=False)
            x = F.silu(mixer(side))
        logits: Tensor = self.out(x)
        return logits


class _Adapter(nn.Module):
    """A low-rank correction of a feature map; none at first."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, rank, 1)
        self.up = nn.Conv2d(rank, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        corrected: Tensor = x + self.up(F.silu(self.down(x)))
        return corrected
