import math

import pytest
import torch

from srgym.agents.cold_start import ColdStart
from srgym.agents.dpo import DPO, dpo_loss
from srgym.agents.pairs import pair_up
from srgym.agents.rows import shared

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture
def build(toy):
    def build(**settings):
        return DPO(toy.policy(), toy.reward(), **{"beta": 100.0, **settings})

    return build


def diverge(policy, by=0.1):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


def test_loss_is_minus_log_sigmoid_of_the_margin():
    win, ref_win, lose, ref_lose = (torch.tensor([x], dtype=torch.float64) for x in (0.2, 0.5, 0.9, 0.4))
    # The learner is 0.3 better than the base on the winner and 0.5 worse on the loser.
    expected = math.log1p(math.exp(-0.5 * 3.0 * (0.3 + 0.5)))
    assert dpo_loss(win, ref_win, lose, ref_lose, beta=3.0).item() == pytest.approx(expected, abs=1e-12)
    assert dpo_loss(ref_win, ref_win, lose, lose, beta=2000.0).item() == pytest.approx(math.log(2), abs=1e-12)


def test_loss_is_finite_where_the_sigmoid_underflows():
    big = torch.tensor([1e3])
    none = torch.zeros(1)
    assert dpo_loss(big, none, none, none, beta=2000.0).item() == pytest.approx(1e6)


def test_gradient_lowers_the_winners_error_and_raises_the_losers():
    win, lose = (torch.tensor([0.5, 2.0], requires_grad=True) for _ in range(2))
    dpo_loss(win, torch.ones(2), lose, torch.ones(2), beta=1.0).sum().backward()
    assert (win.grad > 0).all() and (lose.grad < 0).all()
    torch.testing.assert_close(win.grad, -lose.grad)


# Pairs

SCORES = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.2, 0.2, 0.4, 0.2])
ALL = torch.ones(8, dtype=torch.bool)


def test_best_against_worst():
    pairs = pair_up(SCORES, ALL, 4)
    assert pairs.win.tolist() == [1, 6] and pairs.lose[0].item() == 0 and pairs.lose[1].item() in (4, 5, 7)
    assert pairs.weight.tolist() == [1.0, 1.0] and pairs.skipped.tolist() == [0, 0]


def test_only_kept_samples_are_paired():
    keep = ALL.clone()
    keep[[1, 4, 5, 7]] = False  # the best of the first; all but one of the second
    pairs = pair_up(SCORES, keep, 4)
    assert pairs.win.tolist() == [2] and pairs.lose.tolist() == [0]


def test_close_pairs_and_ties_are_skipped_and_counted():
    pairs = pair_up(SCORES, ALL, 4, min_gap=0.5)
    assert pairs.win.tolist() == [1] and pairs.skipped.sum() == 1
    ties = pair_up(torch.full((8,), 0.5), ALL, 4)
    assert len(ties.win) == 0 and ties.skipped.tolist() == [1, 1]


def test_top_n_pairs_and_weights_are_dp2o_srs():
    score = torch.tensor([1.0, 0.6, 0.5, 0.0, 0.9, 0.8, 0.2, 0.1])
    pairs = pair_up(score, ALL, 4, top=2)
    assert list(zip(pairs.win.tolist(), pairs.lose.tolist(), strict=True)) == [
        (0, 2), (0, 3), (1, 2), (1, 3), (4, 6), (4, 7), (5, 6), (5, 7),
    ]  # fmt: skip
    gaps = [[0.5, 1.0, 0.1, 0.6], [0.7, 0.8, 0.6, 0.7]]
    std = [score[:4].std(correction=0).item(), score[4:].std(correction=0).item()]
    expected = [
        (gap + 1 - sum(group) / 4) * (std[g] + 1 - sum(std) / 2) for g, group in enumerate(gaps) for gap in group
    ]
    assert pairs.weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_top_n_takes_fewer_of_a_small_group():
    keep = torch.tensor([True, True, True, False])
    assert len(pair_up(torch.tensor([3.0, 2.0, 1.0, 0.0]), keep, 4, top=2).win) == 1


# The agent


def test_winner_and_loser_share_time_and_noise(build, toy):
    agent = build(group_size=4)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    seen = []
    velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: seen.append((x, t)) or velocity(x, t, cond)
    agent.loss(rows)
    for x, t in seen:  # the base's call and the learner's
        (x_win, x_lose), (t_win, t_lose) = x.chunk(2), t.chunk(2)
        assert torch.equal(t_win, t_lose)
        s = t_win.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(x_win - x_lose, (1 - s) * (rows["win"] - rows["lose"]), atol=1e-6, rtol=1e-4)
    assert torch.equal(seen[0][0], seen[1][0])


def test_at_the_start_the_loss_is_log_two(build, toy):
    agent = build()
    terms = agent.loss(agent.prepare(toy.collect(agent, torch.arange(2))))
    assert float(terms["loss_policy"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(terms["margin"]) == 0.0


def test_loss_and_margin_against_the_formula(build, toy):
    agent = build(group_size=4, pairs="top_n", top=2, draws=3)
    rollout = toy.collect(agent, torch.arange(2))
    rollout["reward"] = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0, 0.1, 0.2, 0.3])  # weights far from 1
    rows = agent.prepare(rollout)
    assert len(rows) == 2 * 4 * 3 and rows["weight"].std() > 0.5
    diverge(agent.policy)
    seen = []
    velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: seen.append((x, t, velocity(x, t, cond))) or seen[-1][2]
    terms = agent.loss(rows)
    x0 = torch.cat([rows["win"], rows["lose"]])
    x_t, t, base = seen[0]
    s = t.reshape(-1, 1, 1, 1)
    v = (x_t - x0) / s  # eps - x0
    errors = [((hat - v) ** 2).flatten(1).mean(1) for hat in (base, seen[1][2])]
    change = errors[1] - errors[0]
    margin = -50.0 * (change[: len(rows)] - change[len(rows) :])
    assert float(terms["margin"]) == pytest.approx(float(margin.mean()), rel=1e-3)
    assert float(terms["accuracy"]) == pytest.approx(float((margin > 0).float().mean()))
    expected = (rows["weight"] * -torch.nn.functional.logsigmoid(margin)).mean()
    assert float(terms["loss_policy"]) == pytest.approx(float(expected), rel=1e-3)


def test_gradient_against_finite_differences(toy):
    policy = toy.policy().double()
    agent = DPO(policy, toy.reward(), group_size=4, beta=20.0, draws=2)
    rollout = toy.collect(agent, torch.arange(2))
    rollout["x0"] = rollout["x0"].double()
    rows = agent.prepare(rollout)
    diverge(policy)
    agent.loss(rows)["loss_policy"].backward()
    for _, parameter in policy.trainable_parameters():
        place, values = (0,) * parameter.dim(), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[place] += shift
                values.append(float(agent.loss(rows)["loss_policy"]))
        with torch.no_grad():
            parameter[place] += 1e-5
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_pairs_noise_does_not_depend_on_the_other_groups(build, toy):
    agent = build(group_size=4)
    together = agent.prepare(toy.collect(agent, torch.tensor([5, 9])))
    alone = agent.prepare(toy.collect(agent, torch.tensor([9])))
    torch.testing.assert_close(together[1:]["seed"], alone["seed"])
    assert float(agent.loss(together[1:])["loss_policy"]) == float(agent.loss(alone)["loss_policy"])


def test_offline_pairs_are_trained_as_ones_own(build, toy):
    online = build(group_size=4)
    rollout = toy.collect(online, torch.arange(3))
    rows = online.prepare(rollout)
    at = shared(rows)[1]
    offline = DPO(online.policy, pairs="offline", beta=100.0)
    data = rollout[at].select("cond")
    data["win"], data["lose"], data["seed"] = rows["win"], rows["lose"], rows["seed"]  # the toy's latents are images
    given = offline.prepare(data)
    diverge(online.policy)
    assert float(offline.loss(given)["loss_policy"]) == pytest.approx(float(online.loss(rows)["loss_policy"]), rel=1e-6)
    assert offline.sampling is None and offline.group_size == 1 and offline.stats == {"pairs": 3}
    latents = data.exclude("win", "lose")
    latents["win_x0"], latents["lose_x0"] = rows["win"], rows["lose"]
    assert torch.equal(offline.prepare(latents)["win"], given["win"])


def test_offline_without_pairs_says_what_it_wants(toy):
    agent = DPO(toy.policy(), pairs="offline")
    with pytest.raises(ValueError, match=r"expected 'win'.*preference dataset"):
        agent.prepare(toy.collect(ColdStart(agent.policy), torch.arange(2)))


def test_skipped_pairs_are_counted(build, toy):
    agent = build(group_size=4, min_gap=1e9)
    assert len(agent.prepare(toy.collect(agent, torch.arange(3)))) == 0
    assert agent.stats["pairs_skipped"] == 3 and agent.stats["pairs"] == 0


@pytest.mark.parametrize(("accuracy", "margin", "finished"), [(1.0, 30.0, True), (1.0, 3.0, False), (0.7, 30.0, False)])
def test_it_says_when_pairs_are_told_apart_and_the_margin_runs_away(build, accuracy, margin, finished):
    agent = build()
    for _ in range(10):
        assert not agent.finished  # too early to tell
        agent.observe({"accuracy": accuracy, "margin": margin})
        agent.after_update()
    assert agent.finished is finished
    other = build()
    other.load_state(agent.state())
    assert other.finished is finished


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"pairs": "x"}, {"top": 0}, {"min_gap": -1.0}, {"draws": 0}])
def test_hyperparameters_are_checked(build, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        build(**wrong)
