"""The metrics of the optional package pyiqa: with it absent, with a stand-in, and with it where it is installed."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srgym import Incompatible, rewards

NAMES = ("niqe", "musiq", "maniqa", "clipiqa", "topiq_nr", "liqe")


class Metric(nn.Module):
    """Scores a batch by its mean and, as LIQE does, by the images beside it."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.options = name, options

    def forward(self, image: Tensor) -> Tensor:
        own = image.mean((1, 2, 3), keepdim=False)[:, None]
        return own + len(image) + torch.rand(()) if self.name in ("liqe", "maniqa-pipal") else own


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Metric]:
    made: list[Metric] = []

    def create_metric(name: str, device: torch.device, as_loss: bool, **options: Any) -> Metric:
        made.append(Metric(name, options))
        return made[-1]

    module = ModuleType("pyiqa")
    module.create_metric = create_metric  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("pyiqa", loader=None)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_without_pyiqa_it_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(Incompatible, match=rf'\'{name}\' needs the package pyiqa(.|\n)*pip install "srgym\[iqa\]"'):
        rewards.make(name)


def test_without_weights_it_says_how_to_get_them(stand_in: list[Metric], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", offline)
    with pytest.raises(FileNotFoundError, match=r"'maniqa'.*'maniqa-pipal'(.|\n)*create_metric\('maniqa-pipal'\)"):
        rewards.make("maniqa")


def test_lower_is_better_is_turned_round(stand_in: list[Metric]) -> None:
    sr = torch.rand(3, 3, 96, 96)
    output = rewards.make("niqe")(sr)
    mean = sr.mean((1, 2, 3))
    assert torch.allclose(output.total, -mean) and torch.allclose(output.components["distance"], mean)
    assert stand_in[0].options == {"color_space": "ycbcr"}
    assert torch.allclose(rewards.make("musiq")(sr).total, mean)
    assert stand_in[1].options == {}


def test_variant_is_recorded(stand_in: list[Metric]) -> None:
    reward = rewards.make("maniqa")
    assert stand_in[0].name == "maniqa-pipal"
    assert reward.variant == "pyiqa maniqa-pipal, PIPAL"
    assert "Noncommercial" in reward.licence


@pytest.mark.parametrize("name", ["liqe", "maniqa"])
def test_score_depends_on_no_neighbour_and_no_chance(name: str, stand_in: list[Metric]) -> None:
    reward = rewards.make(name)
    sr = torch.rand(3, 3, 224, 224)
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    together = reward(sr).total
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state is left alone
    assert torch.equal(together, torch.cat([reward(sr[i : i + 1]).total for i in (0, 1, 2)]))
    with pytest.raises(ValueError, match=rf"'{name}': expected images of at least 224 pixels.*got \(128, 128\)"):
        reward(torch.rand(1, 3, 128, 128))
