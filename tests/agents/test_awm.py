"""Advantage weighted matching: its formula, what it is before the first update, and what it refuses."""

import math

import pytest
import torch

from srgym.agents.awm import AWM, awm_loss


def by_hand(e, e_old, t, a, weighting, power, clip):
    """From the published code's formula, in float64 and plain Python."""
    if weighting == "power":
        f = [t * ((x + 1e-10) ** power - 1e-10**power) / power for x in (e, e_old)]
    else:
        f = [x if weighting == "uniform" else t * x for x in (e, e_old)]
    rho = math.exp(f[1] - f[0])
    return max(-a * rho, -a * min(max(rho, 1 - clip), 1 + clip))


@pytest.mark.parametrize("weighting", ["power", "uniform", "t"])
@pytest.mark.parametrize(("power", "clip"), [(0.25, 1.0), (0.5, 0.01)])
def test_the_loss_is_the_published_codes(weighting, power, clip):
    g = torch.Generator().manual_seed(0)
    e, e_old, t = torch.rand(3, 64, generator=g, dtype=torch.float64)
    a = torch.randn(64, generator=g, dtype=torch.float64)
    found = awm_loss(e, e_old, t, a, weighting=weighting, power=power, clip=clip)
    for i in range(64):
        expected = by_hand(*(float(x[i]) for x in (e, e_old, t, a)), weighting, power, clip)
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)


def test_before_the_first_update_it_is_the_advantage_times_the_gradient_of_matching(toy):
    """rho = 1, so the gradient is that of mean A f(e): pretraining's, weighted."""
    agent = AWM(toy.policy(), toy.reward(), group_size=4, kl=0.0, weighting="uniform", advantage_scale=5.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    terms = agent.loss(rows)
    assert terms["loss_policy"].item() == pytest.approx(-float(rows["advantage"].clamp(-5, 5).mean()), abs=1e-6)
    assert terms["deviation"].item() == 0.0
    learner = [p for _, p in agent.policy.trainable_parameters()]
    found = torch.autograd.grad(terms["loss_policy"], learner)
    x0, eps, x_t, cond = agent._noised(rows)
    error = (agent.policy.velocity(x_t, rows["t"], cond) - (eps - x0)).square().flatten(1).mean(1)
    for ours, theirs in zip(found, torch.autograd.grad((rows["advantage"] * error).mean(), learner), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_learner_is_held_to_the_policy_that_sampled_where_that_is_asked(toy):
    agent = AWM(toy.policy(), toy.reward(), group_size=4, kl=0.0, trust=2.0, old=0.9)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    with torch.no_grad():
        for _, parameter in agent.policy.trainable_parameters():
            parameter.add_(0.1)
    terms = agent.loss(rows)
    _, _, x_t, cond = agent._noised(rows)
    with torch.no_grad():
        v, v_old = agent._velocity(x_t, rows["t"], cond), agent._velocity_of("old", x_t, rows["t"], cond)
    assert terms["loss_trust"].item() == pytest.approx(2 * float((v - v_old).square().mean()), rel=1e-5)
    assert terms["loss_trust"].requires_grad and terms["deviation"].item() > 0
    assert AWM(toy.policy(), toy.reward(), group_size=4, old=0.9).old_decay() == 0.9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clip": 0.0}, "clip and advantage_scale above 0"), ({"power": 1.5}, "power in"),
        ({"trust": -1.0}, "trust of at least 0"),
        ({"weighting": "huber"}, "expected weighting of"), ({"solver": "sde"}, "a deterministic solver"),
        ({"kl": -1.0}, "kl of at least 0"), ({"time_share": 0.0}, "time_share in"), ({"old": "never"}, "old"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(toy, wrong, said):
    with pytest.raises(ValueError, match=said):
        AWM(toy.policy(), toy.reward(), group_size=4, **wrong)
    with pytest.raises(ValueError, match="awm_loss has the weightings"):
        awm_loss(*torch.ones(4, 2), weighting="huber")
