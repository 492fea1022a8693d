"""RefReward-SR: the judge's two axes, and the reward that trains it to rank."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from srgym.rewards import make
from srgym.rewards.refreward import FORMS, RefReward, ranking_reward, ranking_rewards
from srgym.rewards.serving.question import Reply, encode_images


def png(image: torch.Tensor) -> bytes:
    """An image as a judge is shown it."""
    return encode_images(image[None])[0]


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 8, 8, generator=generator), torch.rand(3, 3, 32, 32, generator=generator)


@pytest.mark.parametrize(("c", "n", "total"), [(1.0, 1.0, 0.0), (5.0, 5.0, 1.0), (4.0, 2.0, 0.5), (2.5, 3.0, 0.4375)])
def test_the_reward_is_the_mean_of_both_axes_on_a_scale_from_0_to_1(
    c: float, n: float, total: float, pairs: Any, scripted: Any
) -> None:
    lr, sr = pairs
    reward = make(RefReward(scripted(lambda _: Reply(json.dumps({"consistency": c, "naturalness": n})))))
    output = reward(sr, lr=lr)
    assert output.total.tolist() == [total] * 3
    assert output.components["consistency"].tolist() == [c] * 3
    assert output.components["naturalness"].tolist() == [n] * 3


def test_a_pair_without_an_answer_is_invalid(pairs: Any, scripted: Any) -> None:
    lr, sr = pairs
    broken = png(sr[1])
    said = {"consistency": 3, "naturalness": 3}
    engine = scripted(lambda q: Reply("none" if q.images[1] == broken else json.dumps(said)))
    output = make(RefReward(engine))(sr, lr=lr)
    assert output.valid.tolist() == [True, False, True]
    assert output.total[1].isnan()
    assert output.components["consistency"][1].isnan()


def test_a_real_model_class_can_be_the_judge(tiny_qwen3vl: Path, pairs: Any) -> None:
    lr, sr = pairs
    reward = make("srgym.rewards.refreward:RefReward", engine={"engine": "transformers", "path": str(tiny_qwen3vl)})
    output = reward(sr, lr=lr)
    assert output.valid.all()
    c, n = output.components["consistency"], output.components["naturalness"]
    torch.testing.assert_close(output.total, ((c + n) / 2 - 1) / 4)
    assert ((output.total >= 0) & (output.total <= 1)).all()
    flipped = reward(sr.flip(0), lr=lr.flip(0)).total.flip(0)
    torch.testing.assert_close(flipped, output.total)


def phi(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def paid(s: float, m: float, v: float, w: float, g: float, form: str = "linear") -> float:
    """The ranking reward of plain numbers."""
    return float(ranking_reward(*(torch.tensor(x, dtype=torch.float64) for x in (s, m, v, w, g)), form))


def test_the_ranking_reward_is_the_chance_of_agreeing_with_the_truth() -> None:
    for s, m, v, w, g in [(3.0, 2.0, 0.5, 0.25, 1.0), (3.0, 2.0, 0.5, 0.25, 0.0), (1.0, 4.0, 1.0, 1.0, 0.5)]:
        p = phi((s - m) / math.sqrt(v + w + 1e-6))
        assert paid(s, m, v, w, g) == pytest.approx(p * g + (1 - p) * (1 - g), abs=1e-9)
        fidelity = math.sqrt(p * g) + math.sqrt((1 - p) * (1 - g))
        assert paid(s, m, v, w, g, "square_root") == pytest.approx(fidelity, abs=1e-9)
    with pytest.raises(ValueError, match="expected a ranking reward of form linear or square_root, got 'sqrt'"):
        paid(1.0, 1.0, 0.0, 0.0, 1.0, "sqrt")


def test_a_tie_pays_no_more_than_a_judge_that_is_right_half_of_the_time() -> None:
    # A sure judge, right and wrong in turn, and one that tells nothing apart, over pairs of which one is better.
    coin = {form: (paid(9.0, 1.0, 0.0, 0.0, 1.0, form) + paid(1.0, 9.0, 0.0, 0.0, 1.0, form)) / 2 for form in FORMS}
    tied = {form: paid(3.0, 3.0, 0.0, 0.0, 1.0, form) for form in FORMS}
    assert coin == pytest.approx({"linear": 0.5, "square_root": 0.5})
    assert tied["linear"] == pytest.approx(coin["linear"])
    # What the other form pays: a tie is worth a judge that is right in 71% of the cases.
    assert tied["square_root"] == pytest.approx(math.sqrt(0.5))


def test_the_reward_grows_with_every_step_towards_the_truth() -> None:
    z = torch.linspace(-6, 6, 401)
    for g, slope in ((0.0, -1), (1.0, 1)):
        reward = ranking_reward(z, torch.zeros(()), torch.ones(()), torch.zeros(()), torch.tensor(g))
        assert ((reward >= 0) & (reward <= 1 + 1e-6)).all()
        assert (reward.diff() * slope >= 0).all()
    # Where neither is better, no answer is.
    tie = ranking_reward(z, torch.zeros(()), torch.ones(()), torch.zeros(()), torch.tensor(0.5))
    torch.testing.assert_close(tie, torch.full_like(tie, 0.5))


def test_answers_that_rank_right_beat_those_that_rank_wrong_and_unreadable_ones_get_nothing() -> None:
    scores = torch.tensor([[4.0, 4.2, 1.0], [2.0, 2.1, math.nan]])
    better = torch.tensor([[0.5, 1.0], [0.0, 0.5]])
    rewards = ranking_rewards(scores, better)
    assert rewards[0, 1] > rewards[0, 0] > rewards[0, 2] > 1
    assert rewards[1, 2] == 0
    # One entry by hand: image 0's first answer against image 1.
    first, second = [4.0, 4.2, 1.0], [2.0, 2.1]
    mean = sum(first) / 3
    v = sum((s - mean) ** 2 for s in first) / 3
    w = sum((s - 2.05) ** 2 for s in second) / 2
    assert rewards[0, 0].item() == pytest.approx(1 + phi((4.0 - 2.05) / math.sqrt(v + w + 1e-6)), abs=1e-5)


def test_without_comparisons_a_readable_answer_gets_its_format_bit() -> None:
    scores = torch.tensor([[3.0, math.nan], [2.0, 2.0]])
    assert ranking_rewards(scores, torch.full((2, 2), math.nan)).tolist() == [[1.0, 0.0], [1.0, 1.0]]
