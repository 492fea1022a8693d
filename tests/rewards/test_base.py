"""What the wrapper guarantees around any reward: shapes, precision, validity, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srgym import Incompatible, rewards


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_needs_are_told_before_and_at_the_call() -> None:
    def reward(sr: Tensor, hr: Tensor, index: Tensor) -> Tensor:
        return sr.mean((1, 2, 3))

    made = rewards.make(reward)
    assert made.missing({"lr"}) == {"hr"}
    assert made.missing({"lr", "hr"}) == frozenset()
    with pytest.raises(Incompatible, match=r"'reward' needs 'hr', 'index'.* given 'sr', 'lr'"):
        made(images(), lr=images(side=4))


def test_group_reward_must_get_its_groups() -> None:
    def ranked(sr: Tensor, group: Tensor) -> Tensor:
        return group.float()

    made = rewards.make(ranked)
    assert made.group and made.missing(()) == frozenset()
    with pytest.raises(Incompatible, match="'ranked' needs 'group'"):
        made(images())
    assert made(images(), group=torch.tensor([0, 0, 1])).total.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(2), r"'faulty' \(.*'total' of shape \[3\].*got \[2\]"),
        (torch.zeros(3, 1), r"got \[3, 1\]"),
        (torch.tensor(0.0), r"got \[\]"),
        ({"total": torch.zeros(3), "sharp": torch.zeros(4)}, r"'sharp' of shape \[3\].*got \[4\]"),
        ({}, "at least one score"),
        ("good", "expected 'total' as numbers"),
    ],
)
def test_wrong_length_names_the_function(returned: Any, message: str) -> None:
    def faulty(sr: Tensor) -> Any:
        return returned

    with pytest.raises(ValueError, match=message):
        rewards.make(faulty)(images())


@pytest.mark.parametrize(
    ("sr", "context", "message"),
    [
        (torch.rand(3, 16, 16), {}, r"expected sr as float \[B, 3, H, W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {}, "got torch.uint8"),
        (torch.rand(2, 3, 8, 8), {"hr": torch.rand(2, 3, 8, 9)}, r"hr of the shape of sr.*\(2, 3, 8, 9\)"),
        (torch.rand(2, 3, 8, 8), {"text": ["one"]}, "expected text for 2 images, got 1"),
    ],
)
def test_wrong_input_is_named(sr: Tensor, context: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.make(lambda sr: sr.mean((1, 2, 3)))(sr, **context)


def test_parts_without_a_total_are_summed_and_with_one_are_kept() -> None:
    summed = rewards.make(lambda sr: {"a": torch.ones(3), "b": torch.full((3,), 2.0)})(images())
    assert summed.total.tolist() == [3, 3, 3]
    assert sorted(summed.components) == ["a", "b"]
    kept = rewards.make(lambda sr: {"total": [5, 6, 7], "a": torch.ones(3)})(images())
    assert kept.total.tolist() == [5, 6, 7] and kept.total.dtype == torch.float32
    assert sorted(kept.components) == ["a"]


def test_no_score_is_invented() -> None:
    def reward(sr: Tensor) -> dict[str, Tensor]:
        return {
            "total": torch.tensor([1.0, torch.nan, torch.inf, 4.0]),
            "part": torch.tensor([torch.nan, 2.0, 2.0, 2.0]),
            "valid": torch.tensor([True, True, True, False]),
        }

    output = rewards.make(reward)(images(4))
    assert output.valid.tolist() == [True, False, False, False]
    assert output.total[0] == 1 and output.total[1:].isnan().all()
    assert output.components["part"].isnan().tolist() == [True, False, False, False]


def test_broken_image_is_never_scored_nor_seen() -> None:
    def reward(sr: Tensor) -> Tensor:
        assert torch.isfinite(sr).all()
        return sr.mean((1, 2, 3))

    sr = images(2)
    sr[1, 0, 0, 0] = torch.nan
    output = rewards.make(reward)(sr)
    assert output.valid.tolist() == [True, False]


def test_float32_outside_autocast() -> None:
    def reward(sr: Tensor, lr: Tensor) -> Tensor:
        assert sr.dtype == lr.dtype == torch.float32
        product = sr.flatten(1) @ torch.ones(sr[0].numel(), 1)
        assert product.dtype == torch.float32
        return product[:, 0]

    sr = images()
    with torch.autocast("cpu", torch.bfloat16):
        output = rewards.make(reward)(sr.bfloat16(), lr=sr.half())
    assert output.total.dtype == torch.float32


def test_no_tf32_while_scoring_and_as_before_after_it() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    seen = []

    def reward(sr: Tensor) -> Tensor:
        seen.append((matmul.fp32_precision, convolution.fp32_precision))
        raise RuntimeError("mid-way")

    try:
        matmul.fp32_precision = convolution.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mid-way"):
            rewards.make(reward)(images())
        assert seen == [("ieee", "ieee")]
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


def test_gradient_flows_only_where_declared() -> None:
    sr = images().requires_grad_()
    assert rewards.make("psnr_y")(sr, hr=images() / 2).total.requires_grad
    assert not rewards.make(lambda sr: sr.mean((1, 2, 3)))(sr).total.requires_grad
    with torch.no_grad():
        assert not rewards.make("psnr_y")(sr, hr=images() / 2).total.requires_grad


def test_invalid_row_sends_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    class Root:
        differentiable = True

        def __call__(self, sr: Tensor) -> Tensor:
            return (sr.mean((1, 2, 3)) - 0.5).sqrt()

    gain = torch.ones((), requires_grad=True)
    sr = gain * torch.stack([torch.full((3, 4, 4), 0.75), torch.full((3, 4, 4), 0.25)])
    output = rewards.make(Root())(sr)
    assert output.valid.tolist() == [True, False]
    torch.where(output.valid, output.total, torch.zeros(2)).sum().backward()
    assert gain.grad is not None and gain.grad.item() == pytest.approx(0.75 * 0.5 / 0.5)  # d/dg sqrt(.75 g - .5)


def test_module_is_frozen_and_named_by_its_forward() -> None:
    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Dropout(0.5))

        def forward(self, sr: Tensor, lr: Tensor) -> Tensor:
            return self.layer(sr).mean((1, 2, 3))

    reward = rewards.make(Judge())
    assert reward.needs == {"lr"}
    assert not any(p.requires_grad for p in reward.score.parameters())  # type: ignore[attr-defined]
    first, second = (reward(images(), lr=images(side=4)).total for _ in range(2))
    assert torch.equal(first, second)


def test_random_is_a_fixed_independent_draw() -> None:
    sr = images(64, 8)
    index = torch.arange(64)
    reward = rewards.make("random", seed=1)
    scores = reward(sr, index=index).total
    assert torch.equal(reward(sr.flip(0), index=index.flip(0)).total.flip(0), scores)
    assert 0.35 < scores.mean() < 0.65 and len(set(scores.tolist())) == 64
    assert not torch.equal(reward(sr, index=index + 1).total, scores)
    assert not torch.equal(rewards.make("random", seed=2)(sr, index=index).total, scores)
    assert not torch.equal(reward(1 - sr, index=index).total, scores)
