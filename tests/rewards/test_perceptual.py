"""DISTS and LPIPS: equality with the papers' formulas on random backbones, and what is said without weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from srgym import rewards
from srgym.rewards.backbones import backbone
from srgym.rewards.perceptual import DISTS, LPIPS


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hr = F.avg_pool2d(torch.rand(2, 3, 68, 68, generator=generator), 5, 1)
    return (hr + 0.05 * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


@pytest.fixture(scope="module")
def dists() -> DISTS:
    return DISTS(weights="random", seed=3)


def l2_pool(x: Tensor) -> Tensor:
    """sqrt of the squares under a Hann window of 5, whose interior is 3 x 3; stride 2."""
    hann = torch.hann_window(5, periodic=False)[1:-1]
    window = hann[:, None] * hann
    window = (window / window.sum()).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x**2, window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def reference_dists(x: Tensor, y: Tensor, features: nn.Sequential, alpha: Tensor, beta: Tensor) -> Tensor:
    """Ding et al. 2020 as their code computes it, written from its description."""

    def stages(image: Tensor) -> list[Tensor]:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        maps, h = [image], (image - mean) / std
        for i, layer in enumerate(features):
            if i == 30:
                break
            h = l2_pool(h) if isinstance(layer, nn.MaxPool2d) else layer(h)
            if i in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                maps.append(h)
        return maps

    a, b = stages(x), stages(y)
    sizes = [maps.shape[1] for maps in a]
    weight = alpha.sum() + beta.sum()
    structure, texture = torch.tensor(0.0), torch.tensor(0.0)
    for fx, fy, wa, wb in zip(a, b, (alpha / weight).split(sizes, 1), (beta / weight).split(sizes, 1)):
        mx, my = fx.mean((2, 3), keepdim=True), fy.mean((2, 3), keepdim=True)
        vx, vy = ((fx - mx) ** 2).mean((2, 3), keepdim=True), ((fy - my) ** 2).mean((2, 3), keepdim=True)
        covariance = (fx * fy).mean((2, 3), keepdim=True) - mx * my
        s1, s2 = (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6), (2 * covariance + 1e-6) / (vx + vy + 1e-6)
        texture = texture + (wa * s1).sum(1, keepdim=True)
        structure = structure + (wb * s2).sum(1, keepdim=True)
    return 1 - (texture + structure).flatten()


def test_dists_equals_its_formula_bit_for_bit(pair: tuple[Tensor, Tensor], dists: DISTS) -> None:
    features = backbone("dists", "vgg16", "random", seed=3)
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    network = dists.network
    with torch.no_grad():
        expected = reference_dists(*pair, features, network.alpha, network.beta)
    output = rewards.make(dists)(pair[0], hr=pair[1])
    assert network.alpha.numel() == 1475
    assert torch.equal(output.components["distance"], expected)
    assert torch.equal(output.total, 1 - expected)


def test_dists_of_a_copy_never_exceeds_its_range(pair: tuple[Tensor, Tensor], dists: DISTS) -> None:
    output = rewards.make(dists)(pair[1], hr=pair[1])
    assert (output.total <= 1).all() and torch.allclose(output.total, torch.ones(2), atol=1e-6)


def test_one_image_is_a_batch(pair: tuple[Tensor, Tensor], dists: DISTS) -> None:
    reward = rewards.make(dists)
    alone = reward(pair[0][:1], hr=pair[1][:1]).total
    assert alone.shape == (1,)
    assert torch.allclose(alone, reward(pair[0], hr=pair[1]).total[:1], atol=1e-6)


def test_gradient_reaches_sr_and_no_weight(pair: tuple[Tensor, Tensor], dists: DISTS) -> None:
    sr = pair[0].clone().requires_grad_()
    rewards.make(dists)(sr, hr=pair[1]).total.sum().backward()
    assert sr.grad is not None and (sr.grad.abs() > 0).any()
    assert all(p.grad is None for p in dists.parameters())


def test_lpips_is_its_formula(pair: tuple[Tensor, Tensor]) -> None:
    lpips = LPIPS(weights="random", seed=5)
    features = backbone("lpips", "alexnet", "random", seed=5)
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 3, 1, 1)
    distance = torch.zeros(2)
    x, y = ((2 * image - 1 - shift) / scale for image in pair)
    heads = iter(lpips.network.lins)
    for i, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if i in (1, 4, 7, 9, 11):  # the five rectified convolutions
            units = [h / h.square().sum(1, keepdim=True).sqrt().clamp_min(1e-8) for h in (x, y)]
            weights = next(heads).model[-1].weight
            distance = distance + ((units[0] - units[1]).square() * weights).sum(1).mean((1, 2))
    output = rewards.make(lpips)(pair[0], hr=pair[1])
    assert torch.allclose(output.components["distance"], distance, atol=1e-4)
    assert torch.allclose(output.total, 1 - distance, atol=1e-4)
    assert (output.total < 1).all()


@pytest.mark.parametrize(("name", "file"), [("dists", "vgg16-397923af.pth"), ("lpips", "alexnet-owt-7be5be79.pth")])
def test_without_weights_it_says_which_where_and_how(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRGYM_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(FileNotFoundError) as raised:
        rewards.make(name)
    message = str(raised.value)
    for part in (
        f"'{name}' needs the file {file}",
        str(tmp_path / "mine"),
        ".cache/srgym",
        "python -c",
        "get_state_dict",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pth"):
        rewards.make(name, weights=tmp_path / "absent.pth")


def test_weights_are_found_and_read_in_either_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[Tensor, Tensor]
) -> None:
    features = backbone("lpips", "alexnet", "random", seed=1)
    whole = {f"features.{k}": v for k, v in features.state_dict().items()} | {"classifier.1.weight": torch.zeros(1)}
    torch.save(whole, tmp_path / "alexnet-owt-7be5be79.pth")
    save_file(features.state_dict(), tmp_path / "mine.safetensors")
    monkeypatch.setenv("SRGYM_WEIGHTS", str(tmp_path))
    sr, hr = pair
    expected = rewards.make("lpips", weights="random", seed=1)(sr, hr=hr).total
    assert torch.equal(rewards.make("lpips")(sr, hr=hr).total, expected)
    assert torch.equal(rewards.make("lpips", weights=tmp_path / "mine.safetensors")(sr, hr=hr).total, expected)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors doesn't hold the weights of torchvision's alexnet"):
        rewards.make("lpips", weights=tmp_path / "other.safetensors")


def test_unknown_net() -> None:
    with pytest.raises(ValueError, match="a net of alex, vgg, squeeze, got 'vit'"):
        rewards.make("lpips", net="vit")
