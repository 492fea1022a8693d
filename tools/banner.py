"""The banner: test photographs as LR, enlarged by bicubic interpolation and by the policy that ships, and as they are.

python tools/banner.py docs/pictures/banner.png
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from srgym import envs, policies, rewards
from srgym.envs.rendering import pixels
from srgym.policies.compact import bicubic

CROPS = ("chelsea/1", "china/5")


def write_banner(path: Path) -> None:
    """A row of four pictures for each crop, with the PSNR-Y of each enlargement."""
    source = envs.make_source("photographs", split="test", size=160, preset="bicubic")
    samples = {sample.id: sample for sample in (source[i] for i in range(len(source)))}
    lr = torch.stack([samples[name].lr for name in CROPS])
    hr = torch.stack([sample.hr for name in CROPS if (sample := samples[name]).hr is not None])
    made = {"bicubic": bicubic(lr, 4), "compact policy": policies.make("compact").predict_mean(lr).detach()}
    psnr = rewards.make("psnr_y")
    figure, axes = plt.subplots(2, 4, figsize=(9, 4.95), dpi=120)
    for i in range(len(CROPS)):
        columns = {"LR": lr[i], **{name: images[i] for name, images in made.items()}, "ground truth": hr[i]}
        for axis, (name, image) in zip(axes[i], columns.items(), strict=True):
            axis.imshow(pixels(image), interpolation="nearest")
            axis.set_axis_off()
            told = f", {float(psnr(made[name][i : i + 1], hr=hr[i : i + 1]).total):.2f} dB" if name in made else ""
            axis.set_title(name + told, fontsize=9)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.945, wspace=0.03, hspace=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    write_banner(Path(sys.argv[1]))
