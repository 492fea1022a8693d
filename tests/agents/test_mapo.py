"""MaPO: its formula, what it pulls on, and its pairs, the policy's own and a dataset's."""

import math

import pytest
import torch

from srgym.agents.mapo import MaPO, mapo_margin, mapo_score
from srgym.agents.rows import shared
from srgym.policies.workload import Workload


@pytest.fixture
def build(toy):
    def build(**settings):
        return MaPO(toy.policy(), toy.reward(), **{"group_size": 4, **settings})

    return build


def moved(policy, by=0.1):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


def test_the_score_falls_from_one_to_nothing():
    error = torch.tensor([1e-12, 0.5, 1.0, 2.0, 50.0], dtype=torch.float64)
    expected = [1.0, 0.5 / math.expm1(0.5), 1 / math.expm1(1.0), 2 / math.expm1(2.0), 50 / math.expm1(50.0)]
    assert mapo_score(error).tolist() == pytest.approx(expected, rel=1e-9)
    assert mapo_score(error, scale=0.5)[3].item() == pytest.approx(1 / math.expm1(1.0))


@pytest.mark.parametrize(
    ("settings", "weight"), [({}, 1 / 8), ({"beta": 1000.0, "weight": 0.1, "scale": 0.5}, 0.1)], ids=["paper", "code"]
)
def test_loss_and_gradient_are_the_papers(build, toy, settings, weight):
    """Eq. 9 to 11, in float64 as they stand."""
    agent = build(pairs="top_n", top=2, draws=2, **settings)
    rollout = toy.collect(agent, torch.arange(3))
    rows = agent.prepare(rollout)
    moved(agent.policy)
    terms = agent.loss(rows)
    learner = [p for _, p in agent.policy.trainable_parameters()]
    found = torch.autograd.grad(terms["loss_flow"] + terms["loss_policy"], learner)
    v, x_t, t, cond = agent._noised(rows)
    error = (agent.policy.velocity(x_t, t, cond).double() - v.double()).square().flatten(1).mean(1)
    win, lose = error[: len(rows)], error[len(rows) :]
    beta, scale = settings.get("beta", 8.0), settings.get("scale", 1.0)
    score = [beta * scale * e / (torch.exp(scale * e) - 1) for e in (win, lose)]
    margin = score[0] - score[1]
    pair = rows["weight"].double()
    flow, told = (pair * win).mean(), -weight * (pair * torch.log(1 / (1 + torch.exp(-margin)))).mean()
    assert float(terms["loss_flow"]) == pytest.approx(float(flow.detach()), rel=1e-5)
    assert float(terms["loss_policy"]) == pytest.approx(float(told.detach()), rel=1e-4)
    assert float(terms["margin"]) == pytest.approx(float(margin.detach().mean()), rel=1e-2, abs=1e-4)
    for ours, theirs in zip(found, torch.autograd.grad(flow + told, learner), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_margin_pulls_on_winners_and_pushes_losers_less_the_further_they_are():
    win, lose = (torch.tensor([0.5, 0.5], requires_grad=True) for _ in range(2))
    far = torch.tensor([0.0, 3.0])
    torch.nn.functional.logsigmoid(mapo_margin(win, lose + far, beta=4.0)).neg().sum().backward()
    assert (win.grad > 0).all() and (lose.grad < 0).all() and float(lose.grad[1].abs() / lose.grad[0].abs()) < 0.5


def test_offline_pairs_are_trained_as_ones_own(build, toy):
    online = build()
    rollout = toy.collect(online, torch.arange(3))
    rows = online.prepare(rollout)
    data = rollout[shared(rows)[1]].select("cond")
    data["win"], data["lose"], data["seed"] = rows["win"], rows["lose"], rows["seed"]  # the toy's latents are images
    offline = MaPO(online.policy, pairs="offline")
    moved(online.policy)
    one, other = offline.loss(offline.prepare(data)), online.loss(rows)
    for name in ("loss_flow", "loss_policy"):
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-6)
    assert offline.sampling is None and offline.group_size == 1


def test_no_other_policy_is_run(build, toy):
    """Nor needed: a policy without adapters learns from pairs as well."""
    agent = MaPO(toy.policy(adapters=False), toy.reward(), group_size=4)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    agent.policy.calls.clear()
    agent.loss(rows)["loss_policy"].backward()
    assert agent.policy.calls == [(2 * len(rows), True)]
    assert agent.workload() == Workload(4, steps=6, times=0.5)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"weight": 0.0}, {"scale": -1.0}, {"pairs": "x"}, {"top": 0}])
def test_hyperparameters_are_checked(build, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)
