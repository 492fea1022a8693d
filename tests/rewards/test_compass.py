"""COMPASS: the facts that OARS states of it, its modes, forms and scorers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from srgym import Incompatible, rewards
from srgym.rewards.compass import compass, gated_gain, group_median, linear, lowest
from srgym.rewards.scorers import SCORERS, make_scorer


def cube(steps: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    f = torch.linspace(0, 1, steps, dtype=torch.float64)
    q = torch.linspace(1, 5, steps, dtype=torch.float64)
    return tuple(torch.meshgrid(f, q, q, indexing="ij"))  # type: ignore[return-value]


class Table:
    """A scorer that answers from a table, row by row."""

    def __init__(self, *rows: tuple[float, float, float, bool]) -> None:
        self.rows = rows

    def __call__(self, lr: Tensor, sr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f, q_lr, q_sr, valid = zip(*self.rows)
        return torch.tensor(f), torch.tensor(q_lr), torch.tensor(q_sr), torch.tensor(valid)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, 32, 32), torch.rand(count, 3, 8, 8)


def test_worked_example() -> None:
    # 0.8 * 3 + 0.8^(3/7) * (4 - 3), by hand
    assert compass(torch.tensor(0.8), torch.tensor(3.0), torch.tensor(4.0)).item() == pytest.approx(3.308801, abs=1e-5)


def test_ends_of_fidelity() -> None:
    _, q_lr, q_sr = cube()
    assert torch.allclose(compass(torch.ones_like(q_lr), q_lr, q_sr), q_sr)
    assert torch.equal(compass(torch.zeros_like(q_lr), q_lr, q_sr), torch.zeros_like(q_lr))


def test_fidelity_always_pays_where_quality_was_gained() -> None:
    f, q_lr, q_sr = cube()
    f = f.clamp_min(1e-3).requires_grad_()
    (slope,) = torch.autograd.grad(compass(f, q_lr, q_sr).sum(), f)
    assert (slope[q_sr >= q_lr] > 0).all()


@pytest.mark.parametrize(("gamma", "least"), [(7.0, -0.451), (5.0, None), (9.0, None)])
def test_range_over_the_cube(gamma: float, least: float | None) -> None:
    found = compass(*cube(161), gamma=gamma)
    assert found.max().item() == pytest.approx(5.0)
    assert found.min().item() == pytest.approx(lowest(gamma), abs=1e-3)
    if least is not None:
        assert lowest(gamma) == pytest.approx(least, abs=5e-4)


def test_forms() -> None:
    f, q_lr, q_sr = torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([4.0])
    assert gated_gain(f, q_lr, q_sr).item() == pytest.approx(2 * 0.5 ** (2 / 7))
    assert linear(f, q_lr, q_sr).item() == pytest.approx(2.5)
    assert linear(f, q_lr, q_sr, (2.0, 0.5)).item() == pytest.approx(2.0)
    sr, lr = pictures(1)
    scorer = Table((0.5, 2.0, 4.0, True))
    expected = {"compass": 1 + 2 * 0.5 ** (2 / 7), "gated": 2 * 0.5 ** (2 / 7), "delta_q": 2.0, "linear": 2.5}
    for form, value in expected.items():
        reward = rewards.make("compass", scorer=scorer, form=form)
        assert reward(sr, lr=lr).total.item() == pytest.approx(value, abs=1e-6)
        assert reward.range[0] <= value <= reward.range[1]
    steep = rewards.make("compass", scorer=scorer, gamma=2.0)(sr, lr=lr)
    assert steep.total.item() == pytest.approx(0.5 * 2 + 0.5 * 2)


def test_components_and_needs() -> None:
    sr, lr = pictures(1)
    reward = rewards.make("compass", scorer=Table((0.5, 2.0, 4.0, True)))
    assert reward.needs == {"lr"} and reward.missing({"lr"}) == frozenset()
    parts = {key: value.item() for key, value in reward(sr, lr=lr).components.items()}
    assert parts == {"fidelity": 0.5, "q_lr": 2.0, "q_sr": 4.0, "delta_q": 2.0}


def test_unrated_row_is_invalid_and_rates_nobody() -> None:
    sr, lr = pictures(4)
    scorer = Table((1.0, 2.0, 4.0, True), (1.0, 5.0, 4.0, False), (1.0, 2.5, 4.0, True), (math.nan, 3.0, 3.0, True))
    output = rewards.make("compass", scorer=scorer)(sr, lr=lr, group=torch.zeros(4, dtype=torch.int64))
    assert output.valid.tolist() == [True, False, True, False]
    assert output.components["q_lr"][0].item() == 2.25  # the median of 2 and 2.5
    assert all(part[1].isnan() and part[3].isnan() for part in output.components.values())


@pytest.mark.parametrize("row", [(1.2, 2.0, 3.0, True), (0.5, 0.5, 3.0, True), (0.5, 2.0, 5.5, True)])
def test_rating_out_of_range_is_not_clipped_but_refused(row: tuple[float, float, float, bool]) -> None:
    sr, lr = pictures(1)
    assert not rewards.make("compass", scorer=Table(row))(sr, lr=lr).valid.any()


def test_group_median() -> None:
    value = torch.tensor([1.0, 3.0, 2.0, 9.0, 4.0, 7.0])
    valid = torch.tensor([True, True, True, False, True, False])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    median = group_median(value, valid, group)
    assert median[:5].tolist() == [2, 2, 2, 4, 4] and median[5].isnan()


def test_full_reference_takes_fidelity_from_the_ground_truth() -> None:
    sr, lr = pictures(2)
    hr = torch.stack([sr[0], torch.rand(3, 32, 32)])
    scorer = Table((0.1, 2.0, 4.0, True), (0.1, 2.0, 4.0, True))
    reward = rewards.make("compass", scorer=scorer, mode="full_reference", fidelity="structure_texture")
    assert reward.needs == {"lr", "hr"}
    output = reward(sr, lr=lr, hr=hr)
    expected = rewards.make("structure_texture")(sr, hr=hr).total
    assert torch.allclose(output.components["fidelity"], expected)
    assert output.total[0].item() == pytest.approx(4.0)  # a copy: R = Q_SR


def test_gradient_reaches_sr_but_not_through_the_rating_of_lr() -> None:
    class Both(torch.nn.Module):
        def forward(self, lr: Tensor, sr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            mean = sr.mean((1, 2, 3))
            return mean, 2 + mean, torch.full_like(mean, 3.0), torch.ones(len(sr), dtype=torch.bool)

    sr = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    reward = rewards.make("compass", scorer=Both())
    assert reward.differentiable
    reward(sr, lr=torch.rand(1, 3, 2, 2)).total.sum().backward()
    f = torch.tensor(0.5, requires_grad=True)
    compass(f, torch.tensor(2.5), torch.tensor(3.0)).backward()
    assert sr.grad is not None and f.grad is not None
    assert sr.grad.sum().item() == pytest.approx(f.grad.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "reference"}, ValueError, "expected a mode of non_reference, full_reference, got 'reference'"),
        ({"form": "form1"}, ValueError, "expected a form of compass, delta_q, gated, linear, got 'form1'"),
        ({"gamma": 1.0}, ValueError, "gamma above 1, got 1"),
        ({"weights": [1.0]}, ValueError, r"two weights.*got \[1\.0\]"),
        ({"fidelity": "dists"}, Incompatible, "has no use for a fidelity"),
        ({"mode": "full_reference", "fidelity": "psnr_y"}, Incompatible, r"best score is 1.*'psnr_y'"),
        ({"mode": "full_reference", "fidelity": "random"}, Incompatible, r"'random' needs \[\]"),
        ({"scorer": "compct"}, ValueError, "unknown scorer 'compct': did you mean 'compact'"),
        ({"scorer": {"nam": "x"}}, ValueError, "expected a scorer as .*got the keys 'nam'"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rewards.make("compass", **{"scorer": Table((1.0, 1.0, 1.0, True)), **options})


def test_scorer_by_name_path_and_options() -> None:
    assert SCORERS.names() == ["compact", "mllm", "soft"]
    scorer = make_scorer({"name": "srgym.rewards.compass.compact:CompactCompass", "hidden": 8})
    assert isinstance(scorer, torch.nn.Module)
    with pytest.raises(ValueError, match="unknown scorer 'compct': did you mean 'compact'"):
        make_scorer("compct")
    with pytest.raises(ValueError, match="scorer 'compact' has no option 'weigths': did you mean 'weights'"):
        make_scorer({"name": "compact", "weigths": None})
    for path in ("subprocess:Popen", "os:system", "math:sqrt"):
        with pytest.raises(ValueError, match=f"scorer '{path}': expected a class whose instances"):
            make_scorer(path)


@pytest.mark.parametrize("rounded", [-1e-7, 0.0, 1.0, 1.0 + 1e-7])
def test_a_fidelity_that_rounding_put_outside_its_range_has_a_finite_reward_and_gradient(rounded: float) -> None:
    fidelity = torch.tensor([rounded], requires_grad=True)
    reward = compass(fidelity, torch.tensor([3.0]), torch.tensor([4.0]))
    reward.backward()
    assert fidelity.grad is not None and torch.isfinite(fidelity.grad).all()
    assert reward.item() == pytest.approx(4.0 if rounded > 0.5 else 0.0, abs=1e-5)
