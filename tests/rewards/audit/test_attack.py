"""Attacks stay within their budget, and climb what can be climbed, by gradient and by answers alone."""

import pytest
import torch
from torch import Tensor

from srgym.rewards.audit.attack import attacked


def slanted(x: Tensor) -> Tensor:
    """A linear score: the best within a budget is known."""
    ramp = torch.linspace(-1, 1, x.shape[-1])
    return (x * ramp).mean((1, 2, 3))


@pytest.mark.parametrize("gradient, share", [(True, 0.99), (False, 0.2)])
def test_an_attack_reaches_what_a_budget_allows(gradient: bool, share: float) -> None:
    start = torch.full((2, 3, 16, 16), 128 / 255)
    best = slanted(torch.linspace(-1, 1, 16).sign().expand(2, 3, 16, 16)) * 4 / 255
    moved = attacked(slanted, start, 4 / 255, steps=12, gradient=gradient)
    assert (moved - start).abs().max() <= 4 / 255 + 1e-6
    assert torch.allclose(moved * 255, (moved * 255).round(), atol=1e-3)
    assert ((slanted(moved) - slanted(start)) / best >= share).all()


def test_scores_that_are_no_numbers_move_nothing() -> None:
    start = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    hollow = attacked(lambda x: x.sum((1, 2, 3)) * float("nan"), start, 4 / 255, steps=3, gradient=False)
    assert torch.allclose(hollow, start)
