"""Packing, tiles, and the cache and placement of encoders."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srgym.policies.diffusers_common import ConditionCache, OnDemand, decode_tiled, fingerprint, pack, pad_to, unpack


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_packing_is_diffusers_own_and_comes_back():
    from diffusers import FluxPipeline

    latent = noise(2, 4, 6, 10)
    assert torch.equal(pack(latent), FluxPipeline._pack_latents(latent, 2, 4, 6, 10))
    assert torch.equal(unpack(pack(latent), 6, 10), latent)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (13, 21), (9, 40)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_tiles_of_a_local_decoder_are_the_whole(height, width, checkpointed):
    """A decoder that sees each cell alone gives the same image, and the same gradient, however it is cut."""

    def decode(z):
        return F.interpolate(z[:, :3].square(), scale_factor=2, mode="nearest")

    latent = noise(1, 4, height, width).requires_grad_()
    whole, tiled = (decode_tiled(decode, latent, 2, tile, checkpointed=checkpointed) for tile in (None, 8))
    torch.testing.assert_close(tiled, whole)
    target = noise(*whole.shape, seed=1)
    (one,), (other,) = (torch.autograd.grad((image * target).sum(), latent) for image in (whole, tiled))
    torch.testing.assert_close(other, one)


def test_seams_are_smooth():
    """Two tiles that disagree, here by their own mean, are blended over the overlap: no jump from pixel to pixel."""

    def decode(z):
        return z.mean((2, 3), keepdim=True).expand(-1, -1, *z.shape[2:])

    latent = torch.zeros(1, 3, 32, 52)
    latent[..., 20:] = 1
    image = decode_tiled(decode, latent, 1, 32, checkpointed=False)
    assert image[..., 0].max() < 0.5 and image[..., -1].min() > 0.9
    assert image.diff(dim=-1).abs().max() < 0.15


def test_padding_repeats_the_edge():
    padded = pad_to(noise(1, 3, 5, 8), 8)
    assert padded.shape == (1, 3, 8, 8) and torch.equal(padded[..., 5:, :], padded[..., 4:5, :].expand(-1, -1, 3, -1))


def test_the_cache_makes_an_entry_once_and_forgets_the_oldest(tmp_path):
    made = []

    def make(name):
        made.append(name)
        return {"value": torch.tensor([len(made)])}

    cache = ConditionCache(2)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, lambda name=name: make(name))
    assert made == ["a", "b", "c", "b"]
    kept = ConditionCache(1, tmp_path).get("k", lambda: make("k"))
    read = ConditionCache(1, tmp_path).get("k", lambda: make("never"))
    assert torch.equal(read["value"], kept["value"]) and made[-1] == "k"
    assert [path.name for path in tmp_path.iterdir()] == ["k.safetensors"]


def test_fingerprints_tell_weights_and_shapes_apart():
    torch.manual_seed(0)
    one = nn.Linear(3, 4)
    same, other = nn.Linear(3, 4), nn.Linear(3, 4)
    same.load_state_dict(one.state_dict())
    assert fingerprint([one]) == fingerprint([same]) != fingerprint([other])
    assert len({fingerprint([one]), fingerprint([one.bfloat16()]), fingerprint([nn.Linear(4, 3)])}) == 3


class Recorder(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.places = []

    def to(self, device):
        self.places.append(str(device))
        return self


@pytest.mark.parametrize(
    ("placement", "places"), [("keep", ["cuda"]), ("offload", ["cpu", "cuda", "cpu"]), ("drop", ["cuda"])]
)
def test_placement(placement, places):
    module, dropped = Recorder(), []
    encoder = OnDemand("text encoder", [module, None], placement, lambda: dropped.append(True))
    with encoder.on(torch.device("cuda")):
        pass
    encoder.settle()
    assert module.places == places and encoder.dropped == (placement == "drop") == bool(dropped)


def test_a_dropped_encoder_says_so():
    encoder = OnDemand("text encoder", [nn.Linear(1, 1)], "drop", lambda: None)
    encoder.settle()
    with (
        pytest.raises(ValueError, match=r"text encoder was dropped .* text_encoder='offload'"),
        encoder.on(torch.device("cpu")),
    ):
        pass
    with pytest.raises(ValueError, match="vae encoder: expected one of keep, offload, drop, got 'away'"):
        OnDemand("vae encoder", [], "away", lambda: None)
