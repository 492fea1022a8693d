"""Images for FinPercep-RM to learn from: ground truth, broken in known places by pieces of a super-resolution."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.errors import MissingFile

__all__ = [
    "Features", "Segmenter", "band_energies", "dinov3", "fault_map", "normaliser", "random_mask", "region_mask", "sam",
    "synthesise",
]  # fmt: skip

Features = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] in [0, 1] to a feature map [B, C, h, w], compared by the cosine at each place."""

Segmenter = Callable[[Tensor], Tensor]
"""An image [3, H, W] in [0, 1] to its regions, int64 [H, W], each place the number of the region that it belongs to."""

_LEAST, _MOST = 0.02, 0.30
_TRIES = 50


def synthesise(sr: Tensor, gt: Tensor, mask: Tensor) -> Tensor:
    """I_syn = m I_SR + (1 - m) I_GT; images [B, 3, H, W], mask [B, 1, H, W] in {0, 1}."""
    return mask * sr + (1 - mask) * gt


def fault_map(synthetic: Tensor, gt: Tensor, features: Features | None = None, alpha: float = 0.5) -> Tensor:
    """alpha |I_syn - I_GT| + (1 - alpha) (1 - cos of features), before normalising: [B, 1, H, W], 0 where equal.

    Args:
        features: of both images; the pixels' difference alone when None (the ablation's pixel-only map).
        alpha: the pixels' share; the paper has no number.
    """
    pixels = (synthetic - gt).abs().mean(1, keepdim=True)
    if features is None:
        return pixels
    with torch.no_grad():
        likeness = F.cosine_similarity(features(synthetic), features(gt), dim=1, eps=1e-6)[:, None]
    unlike = F.interpolate(1 - likeness, size=gt.shape[-2:], mode="bilinear", align_corners=False).clamp(min=0)
    return alpha * pixels + (1 - alpha) * unlike


def normaliser(maps: Tensor, quantile: float = 0.99) -> float:
    """The divisor that brings a data set's fault maps to [0, 1]: the quantile of their non-zero values.

    One for the whole data set: a divisor of each image's own would make a faint fault look like a grave one.
    """
    broken = maps[maps > 0]
    if not len(broken):
        return 1.0
    # torch's quantile takes at most 2^24 values, and needs no more than these.
    return max(float(torch.quantile(broken[:: len(broken) // 1_000_000 + 1].float(), quantile)), 1e-6)


def random_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """One to three rectangles or strokes over 2 to 30% of the area: [1, H, W] in {0, 1}."""
    for _ in range(_TRIES):
        mask = torch.zeros(height, width)
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            shape = _rectangle if torch.rand((), generator=generator) < 0.5 else _stroke
            mask = torch.maximum(mask, shape(height, width, generator))
        if _LEAST <= float(mask.mean()) <= _MOST:
            return mask[None]
    # Never seen to happen; a square of a tenth of the area is within the bounds on every picture.
    mask = torch.zeros(height, width)
    mask[: max(1, round(height * 0.316)), : max(1, round(width * 0.316))] = 1
    return mask[None]


def _rectangle(height: int, width: int, generator: torch.Generator) -> Tensor:
    share = 0.02 + 0.13 * torch.rand((), generator=generator)
    ratio = torch.exp(torch.empty(()).uniform_(-0.7, 0.7, generator=generator))
    h = int((height * (share * ratio).sqrt()).clamp(1, height))
    w = int((width * (share / ratio).sqrt()).clamp(1, width))
    top = int(torch.randint(0, height - h + 1, (), generator=generator))
    left = int(torch.randint(0, width - w + 1, (), generator=generator))
    mask = torch.zeros(height, width)
    mask[top : top + h, left : left + w] = 1
    return mask


def _stroke(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A line of two bends, as thick as 3 to 10% of the shorter side."""
    side = min(height, width)
    radius = side * (0.03 + 0.07 * float(torch.rand((), generator=generator))) / 2
    knots = torch.rand(4, 2, generator=generator) * torch.tensor([height - 1.0, width - 1.0])
    # Neighbouring knots are drawn together, or every stroke would cross the whole picture.
    knots = knots[:1] + 0.5 * (knots - knots[:1])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([y, x], -1).float()
    near = torch.full((height, width), torch.inf)
    for a, b in pairwise(knots):
        along = ((points - a) @ (b - a) / ((b - a) @ (b - a)).clamp(min=1e-6)).clamp(0, 1)
        near = torch.minimum(near, (points - a - along[..., None] * (b - a)).norm(dim=-1))
    return (near <= max(radius, 0.75)).float()


def region_mask(image: Tensor, generator: torch.Generator, segments: Tensor | None = None) -> Tensor:
    """A mask that follows the picture: whole regions over 2 to 30% of its area, [1, H, W] in {0, 1}.

    Args:
        image: [3, H, W] in [0, 1].
        segments: int [H, W], the regions (from SAM, say); SLIC superpixels of the image when None.
    """
    labels = _superpixels(image) if segments is None else segments
    names, sizes = torch.unique(labels, return_counts=True)
    order = torch.randperm(len(names), generator=generator)
    wanted = _LEAST + (_MOST - _LEAST) * float(torch.rand((), generator=generator)) * 0.8
    chosen, covered = [], 0.0
    for i in order.tolist():
        share = float(sizes[i]) / labels.numel()
        if covered + share <= _MOST:
            chosen.append(names[i])
            covered += share
        if covered >= wanted:
            break
    if covered < _LEAST:  # one region is nearly the whole picture
        return random_mask(image.shape[-2], image.shape[-1], generator)
    return torch.isin(labels, torch.stack(chosen)).float()[None]


def _superpixels(image: Tensor) -> Tensor:
    from skimage.segmentation import slic

    pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    return torch.from_numpy(slic(pixels, n_segments=48, compactness=10, start_label=1)).long()


def band_energies(images: Tensor, octaves: int = 3, floor: float = 0.03) -> Tensor:
    """Features without weights: how much detail of each scale there is around each pixel, [B, octaves + 1, H, W].

    The stand-in for DINOv3 where there is none. Root mean squares of luma's Laplacian bands in soft windows; the last
    channel is `floor` everywhere, so that two flat places are alike however their faint noise differs.
    """
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    low, found = (images * weights).sum(1, keepdim=True), []
    for _ in range(octaves):
        if min(low.shape[-2:]) < 4:
            break
        smooth = _blurred(low)
        energy = (_blurred((low - smooth).square()) + 1e-8).sqrt()
        found.append(F.interpolate(energy, size=images.shape[-2:], mode="bilinear", align_corners=False))
        low = F.avg_pool2d(smooth, 2)
    return torch.cat([*found, torch.full_like(images[:, :1], floor)], 1)


def _blurred(x: Tensor) -> Tensor:
    taps = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), (taps[:, None] * taps)[None, None])


def sam(path: str | Path, **thresholds: float) -> Segmenter:
    """SAM's masks of everything, through transformers' mask generation.

    A place belongs to the smallest mask that covers it; what none covers is a region of its own, number 0.

    Args:
        path: the folder of a SAM model and its processor.
        thresholds: of the generation (`pred_iou_thresh`, `stability_score_thresh`, ...); transformers' by default.

    Raises:
        FileNotFoundError: if it holds none.
    """
    from transformers import pipeline

    if not (Path(path) / "config.json").is_file():
        raise MissingFile(f"expected the folder of a SAM model at '{path}', found none")
    generate = pipeline("mask-generation", model=str(path))

    def segments(image: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        with torch.no_grad():
            found = generate(to_pil_image(image.detach().cpu()), **thresholds)["masks"]
        masks = sorted((torch.as_tensor(mask) for mask in found), key=lambda mask: -int(mask.sum()))
        labels = torch.zeros(image.shape[-2:], dtype=torch.int64)
        for number, mask in enumerate(masks, 1):
            labels[mask] = number
        return labels

    return segments


def dinov3(path: str | Path) -> Features:
    """DINOv3's patch features through transformers.

    Args:
        path: the folder of a DINOv3 ViT.

    Raises:
        FileNotFoundError: if it holds none.
    """
    from transformers import AutoModel

    if not (Path(path) / "config.json").is_file():
        raise MissingFile(f"expected the folder of a DINOv3 model at '{path}', found none")
    model = AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)
    patch, kept = model.config.patch_size, 1 + model.config.num_register_tokens

    def features(images: Tensor) -> Tensor:
        return _patches(model, images, patch, kept)

    return features


def _patches(model: Any, images: Tensor, patch: int, kept: int) -> Tensor:
    h, w = (max(1, side // patch) for side in images.shape[-2:])
    # Sides that are multiples of the patch, and the statistics of ImageNet that DINOv3 was trained with.
    images = F.interpolate(images, size=(h * patch, w * patch), mode="bilinear", align_corners=False, antialias=True)
    mean, std = images.new_tensor([0.485, 0.456, 0.406]), images.new_tensor([0.229, 0.224, 0.225])
    tokens: Tensor = model(pixel_values=(images - mean[:, None, None]) / std[:, None, None]).last_hidden_state
    return tokens[:, kept:].transpose(1, 2).reshape(len(tokens), -1, h, w)
