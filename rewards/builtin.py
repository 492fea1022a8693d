"""The rewards that come with the library, by name.

The table repeats what each reward's decorator says, so that they can be listed without importing torch; a test keeps
the two equal. To add a reward: write it with `@register_reward`, then its row here.
"""

from srgym.rewards.info import RewardInfo

__all__ = ["BUILTIN"]

_HR = frozenset({"hr"})

_ROWS = (
    RewardInfo(
        name="psnr_y",
        path="srgym.rewards.fidelity:psnr_y",
        needs=_HR,
        range=(0.0, 100.0),
        differentiable=True,
        doc="Peak signal-to-noise ratio on luma, in dB.",
    ),
    RewardInfo(
        name="ssim_y",
        path="srgym.rewards.fidelity:ssim_y",
        needs=_HR,
        range=(-1.0, 1.0),
        differentiable=True,
        doc="Structural similarity on luma.",
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

BUILTIN = {row.name: row for row in _ROWS}
