"""Neighbor GRPO: its leap, its advantages, its loss as the paper prints it, and what it refuses."""

import math

import pytest
import torch

from srgym.agents.neighbor_grpo import NeighborGRPO, leap_log_prob, quasi_normalised
from srgym.agents.rows import shared


def ready(toy, **options):
    """An agent whose learner has left the policy that sampled, and the rows of its next update."""
    agent = NeighborGRPO(toy.policy(), toy.reward(), **{"group_size": 6, "steps": 4, "anchors": 2, **options})
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    with torch.no_grad():
        for _, parameter in agent.policy.trainable_parameters():
            parameter.add_(0.2)
    return agent, rows


def test_the_nearer_the_likelier():
    x = torch.zeros(1, 2, dtype=torch.float64)
    candidates = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]]], dtype=torch.float64)
    weights = [1.0, math.exp(-2.0), math.exp(-4.0)]
    found = leap_log_prob(x, candidates).exp()[0].tolist()
    assert found == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)
    warm = leap_log_prob(x, candidates, temperature=2.0).exp()[0]
    assert float(warm[0] / warm[1]) == pytest.approx(math.exp(1.0))


def test_the_quasi_norm_by_hand():
    advantage = torch.tensor([1.0, -1.0, 0.0, 2.0, -1.0, -1.0, 0.0, 0.0, 0.0])
    norms = [2 ** (1 / 0.8), (2**0.8 + 2) ** (1 / 0.8), 1.0]
    expected = [a / norms[i // 3] for i, a in enumerate(advantage.tolist())]
    assert quasi_normalised(advantage, 3, 0.8).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("clip", [1e9, 0.01])
def test_loss_and_gradient_are_the_papers(toy, clip):
    """Eq. 7 to 9 and 11 in float64, row by row, with plain loops."""
    agent, rows = ready(toy, clip=clip, temperature=0.02)
    policy, learner = agent.policy, [p for _, p in agent.policy.trainable_parameters()]
    terms = agent.loss(rows)
    found = torch.autograd.grad(terms["loss_policy"], learner)
    samples, at = shared(rows)
    total = 0.0
    for row in range(len(rows)):
        place, step = int(at[row]), int(rows["step"][row])
        x, t, t_next = samples["latents"][place, step], samples["t"][place, step], samples["t"][place, step + 1]
        log_pi = []
        for adapter in ("default", "old"):
            with policy.adapter(adapter):
                v = policy.velocity(x[None], t[None], samples["cond"][[place]])[0].double()
            to = x.double() + float(t_next - t) * v
            group = range(place // 6 * 6, place // 6 * 6 + 6)
            near = [-((samples["latents"][i, step + 1].double() - to) ** 2).mean() / 0.02 for i in group]
            log_pi.append([n - torch.logsumexp(torch.stack(near), 0) for n in near])
        for i, now, old in zip(group, *log_pi, strict=True):
            a, rho = samples["advantage"][i].double(), torch.exp(now - old.detach())
            total = total + torch.maximum(-a * rho, -a * rho.clamp(1 - clip, 1 + clip)) / len(rows)
    assert float(terms["loss_policy"]) == pytest.approx(float(total.detach()), rel=1e-4, abs=1e-7)
    for ours, theirs in zip(found, torch.autograd.grad(total, learner), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert any(float(g.abs().max()) > 1e-4 for g in found) and (float(terms["clipped"]) > 0) is (clip < 1)


def test_neighbours_begin_near_and_a_group_is_trained_at_steps_of_its_own(toy):
    _, rows = ready(toy)
    samples, at = shared(rows)
    starts = samples["latents"][:, 0].reshape(3, 6, -1)
    assert float(starts.var(1).mean()) == pytest.approx(0.09, rel=0.25) and float(starts.var()) > 0.5
    assert len(rows) == 3 * 2 * 2 and torch.equal(rows["first"], at // 6 * 6)
    steps = rows["step"].reshape(3, 2, 2)
    assert torch.equal(steps[:, 0], steps[:, 1]) and len(at.unique()) == 6


def test_the_ratio_is_one_before_the_first_update_and_costs_no_forward(toy):
    agent = NeighborGRPO(toy.policy(), toy.reward(), group_size=6, steps=4)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    agent.policy.calls.clear()
    terms = agent.loss(rows)
    assert float(terms["ratio_error"]) == 0.0 and agent.policy.calls == [(len(rows), True)]
    assert float(terms["loss_policy"]) == pytest.approx(
        -float(shared(rows)[0]["advantage"].reshape(2, 6).sum(1).mean()), abs=1e-6
    )


def test_nothing_to_learn_means_no_rows(toy):
    agent = NeighborGRPO(toy.policy(), toy.reward(), group_size=6, steps=4)
    rollout = toy.collect(agent, torch.arange(1))
    rollout["reward"][:] = 0.5
    assert len(agent.prepare(rollout)) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"anchors": 13}, "anchors of 1 to group_size"), ({"spread": 0.0}, "spread in"),
     ({"quasi_norm": 3.0}, "quasi_norm"), ({"solver": "sde"}, "deterministic solver"), ({"clip": 0.0}, "clip above 0")],
)  # fmt: skip
def test_what_cannot_be_is_refused(toy, wrong, said):
    with pytest.raises(ValueError, match=said):
        NeighborGRPO(toy.policy(), toy.reward(), **wrong)
