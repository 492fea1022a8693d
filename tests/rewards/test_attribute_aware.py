"""GDPO-SR's reward: what is texture, and what then counts."""

import numpy as np
import pytest
import torch

from srgym import rewards
from srgym.rewards.attribute_aware import texture_share


def entropy(patch: np.ndarray) -> float:
    """In bits, of a patch's Sobel magnitudes: numpy and scipy, patch by patch."""
    from scipy.ndimage import sobel, zoom

    large = zoom(patch, 6.4, order=1, mode="nearest", grid_mode=True)
    magnitude = np.hypot(sobel(large, 0, mode="nearest"), sobel(large, 1, mode="nearest"))
    counts, _ = np.histogram(magnitude, bins=512, range=(-5.5, 5.5))
    share = counts / counts.sum()
    return float(-(share * np.log2(share + 1e-10)).sum())


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 40, 40, generator=generator)
    half = torch.full((3, 40, 40), 0.5)
    half[:, :, 20:] = noise[:, :, 20:]
    return torch.stack([torch.full((3, 40, 40), 0.3), noise, half, half.transpose(1, 2)])


def test_flat_is_smooth_and_noise_is_texture():
    assert texture_share(pictures()).tolist() == [0.0, 1.0, 0.5, 0.5]


def test_it_is_the_entropy_of_each_patch():
    generator = torch.Generator().manual_seed(1)
    image = 0.5 + 0.05 * torch.rand(1, 1, 40, 40, generator=generator) * torch.linspace(0, 1, 40)
    image = image.expand(1, 3, 40, 40)
    luma = image[0, 0].double().numpy()
    bits = [entropy(luma[y : y + 10, x : x + 10]) for y in range(0, 40, 10) for x in range(0, 40, 10)]
    # Patches that lie at the threshold itself may fall either way by rounding.
    sure = [abs(b - 0.5) > 0.2 for b in bits]
    own = [float(texture_share(image[..., y : y + 10, x : x + 10])) for y in range(0, 40, 10) for x in range(0, 40, 10)]
    assert sum(sure) > 10 and 0 < sum(own) < 16
    assert all(o == float(b > 0.5) for o, b, s in zip(own, bits, sure, strict=True) if s)


def test_texture_says_what_counts():
    """On a smooth image the sample of the best PSNR wins, on noise the perceptually best, each metric in [0, 1]."""
    flat, noise = pictures()[0], pictures()[1]
    blurred = torch.nn.functional.avg_pool2d(noise[None], 3, 1, 1)[0]
    noisy = (noise + 0.3 * torch.rand(noise.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    hr = torch.stack([flat] * 3 + [noise] * 3)
    sr = torch.stack([flat + 0.01, flat + 0.02, flat + 0.1, blurred, noisy, noise * 0.9])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    reward = rewards.make("attribute_aware")
    scored = reward(sr, hr=hr, group=group)
    psnr, other = (rewards.make(name)(sr, hr=hr).total for name in ("psnr_y", "structure_texture"))
    smooth, textured = psnr[:3], other[3:]
    torch.testing.assert_close(scored.total[:3], (smooth - smooth.min()) / (smooth.max() - smooth.min()))
    torch.testing.assert_close(scored.total[3:], (textured - textured.min()) / (textured.max() - textured.min()))
    assert scored.components["texture"].tolist() == [0.0] * 3 + [1.0] * 3
    torch.testing.assert_close(scored.components["psnr_y"], psnr)
    turned = torch.tensor([4, 1, 0, 5, 2, 3])
    torch.testing.assert_close(reward(sr[turned], hr=hr[turned], group=group[turned]).total, scored.total[turned])


def test_a_group_without_spread_is_in_the_middle_and_small_images_are_refused():
    same = pictures()[[1, 1, 1]]
    assert rewards.make("attribute_aware")(same * 0.9, hr=same, group=torch.zeros(3).long()).total.tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="patches of 10 pixels, got images of"):
        texture_share(torch.rand(1, 3, 9, 40))
    with pytest.raises(ValueError, match="at least one perceptual metric"):
        rewards.make("attribute_aware", perceptual=[])
