"""Losses of whole groups: DGPO, GDPO-SR, CRD; and Flow-DPPO's trust region."""

import math

import pytest
import torch
from torch.nn import functional as F

from srgym.agents import FlowGRPO
from srgym.agents.crd import CRD, crd_loss
from srgym.agents.dgpo import DGPO, dgpo_weight
from srgym.agents.flow_dppo import FlowDPPO, dppo_loss
from srgym.agents.gdpo_sr import GDPOSR, gdpo_loss, gdpo_weight
from srgym.agents.groups import Combine
from srgym.agents.rows import shared
from srgym.policies.adapters import parameters
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible


def moved(policy, by=0.1):
    with torch.no_grad():
        for i, (_, parameter) in enumerate(policy.trainable_parameters()):
            parameter.add_(by * (1 + i))


def ready(toy, kind, **options):
    """An agent whose learner has left both the base and the policy that sampled, and the rows of its next update."""
    policy = toy.policy()
    agent = kind(policy, toy.reward(), group_size=4, time_share=0.5, **options)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    moved(policy)
    return agent, rows


def by_group(agent, rows):
    """e_theta with its graph, e_base, and A, [G, T, K]: rows lie sample by sample, time by time."""
    x0, eps, x_t, cond = agent._noised(rows)
    velocity = agent.policy.velocity(x_t, rows["t"], cond).double()
    with torch.no_grad(), agent.policy.adapter(None):
        base = agent.policy.velocity(x_t, rows["t"], cond).double()
    target = (eps - x0).double()
    shape = (3, 4, len(rows) // 12)
    return [
        column.double().reshape(shape).transpose(1, 2)
        for column in (
            (velocity - target).square().flatten(1).mean(1), (base - target).square().flatten(1).mean(1),
            rows["advantage"],
        )
    ]  # fmt: skip


def gradient(agent, objective):
    agent.policy.zero_grad()
    objective.backward()
    return [p.grad.clone().double() for _, p in agent.policy.trainable_parameters()]


def test_samples_of_a_group_share_times_and_noise(toy):
    agent, rows = ready(toy, DGPO)
    samples, _ = shared(rows)
    _, eps, _, _ = agent._noised(rows)
    times, noise = rows["t"].reshape(3, 4, -1), eps.reshape(3, 4, -1, *eps.shape[1:])
    assert torch.equal(times, times[:, :1].expand_as(times)) and torch.equal(noise, noise[:, :1].expand_as(noise))
    assert len(torch.unique(noise[:, 0, 0, 0, 0, 0])) == 3 and len(rows) == 3 * 4 * 3
    assert not torch.equal(samples["x0"][0], samples["x0"][1])


def test_gdpo_sr_has_the_gradient_of_its_loss(toy):
    """-log sigmoid(-(beta / 2) Z) of every group and time, differentiated as it stands, in float64."""
    agent, rows = ready(toy, GDPOSR, beta=30.0)
    batch = next(agent.batches(rows))
    ours = gradient(agent, agent.loss(batch)["loss_policy"])
    error, base, advantage = by_group(agent, rows)
    z = (advantage * (error - base)).sum(-1)
    expected = gradient(agent, -F.logsigmoid(-15.0 * z).mean())
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(ours, expected, strict=True))
    assert any(float(g.abs().max()) > 1e-4 for g in expected) and float(z.abs().max()) > 1e-3
    torch.testing.assert_close(batch["z"].double().reshape(3, 4, -1)[:, 0], z.detach(), rtol=1e-4, atol=1e-6)


def test_dgpo_has_the_gradient_of_its_loss(toy):
    agent, rows = ready(toy, DGPO, beta=50.0, kl=0.0)
    batch = next(agent.batches(rows))
    terms = agent.loss(batch)
    ours = gradient(agent, terms["loss_policy"])
    error, base, advantage = by_group(agent, rows)
    weight = torch.sigmoid(50.0 / 4 * (advantage * (error - base)).sum(-1, keepdim=True)).detach()
    loss = (weight * advantage * error).mean()
    expected = gradient(agent, loss)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(ours, expected, strict=True))
    assert float(terms["loss_policy"]) == pytest.approx(float(loss), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("normalised", [True, False])
def test_crd_has_the_value_and_the_gradient_of_its_loss(toy, normalised):
    """(c / beta) mean [beta (R - mean R) - (r - mean r)]^2, in float64 as it stands, the means with their gradient."""
    agent, rows = ready(toy, CRD, beta=0.5, clip=2.0, kl=0.3, normalised=normalised)
    moved(agent.policy, -0.3)
    agent.policy.sync("default", "reference")
    moved(agent.policy, 0.2)
    batch = next(agent.batches(rows))
    terms = agent.loss(batch)
    ours = gradient(agent, terms["loss_policy"] + terms["loss_kl"])
    x0, eps, x_t, cond = agent._noised(rows)
    v = agent.policy.velocity(x_t, rows["t"], cond).double()
    beside = []
    for name in ("reference", None):
        with torch.no_grad(), agent.policy.adapter(name):
            beside.append(agent.policy.velocity(x_t, rows["t"], cond).double())
    target = (eps - x0).double()
    error, reference = ((u - target).square().flatten(1).mean(1) for u in (v, beside[0]))
    if normalised:
        error = error / (v.detach() - target).abs().flatten(1).mean(1)
        reference = reference / (beside[0] - target).abs().flatten(1).mean(1)
    r = (rows["advantage"].double().clamp(-2, 2) / 4 + 0.5).reshape(3, 4, -1)
    implicit = (reference - error).reshape(3, 4, -1)
    off = 0.5 * (implicit - implicit.mean(1, keepdim=True)) - (r - r.mean(1, keepdim=True))
    drift = (v - beside[1]).square().flatten(1).mean(1).reshape(3, 4, -1)
    policy, kl = 2.0 / 0.5 * off.square().mean(), ((1e-4 + (0.3 - 1e-4) * r) * drift).mean()
    assert float(terms["loss_policy"]) == pytest.approx(float(policy), rel=1e-4)
    assert float(terms["loss_kl"]) == pytest.approx(float(kl), rel=1e-4)
    expected = gradient(agent, policy + kl)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, expected, strict=True))
    assert float(implicit.abs().min()) > 1e-5 and any(float(g.abs().max()) > 1e-2 for g in expected)


def test_crd_starts_as_the_advantage_times_the_gradient_of_matching(toy):
    """At R = 0 what is left is -2 c (r - mean r) grad R = A grad e."""
    agent = CRD(toy.policy(), toy.reward(), group_size=4, kl=0.0, normalised=False)
    batch = next(agent.batches(agent.prepare(toy.collect(agent, torch.arange(3)))))
    assert float(agent.loss(batch)["implicit"]) == 0.0
    ours = gradient(agent, agent.loss(batch)["loss_policy"])
    x0, eps, x_t, cond = agent._noised(batch)
    error = (agent.policy.velocity(x_t, batch["t"], cond) - (eps - x0)).square().flatten(1).mean(1)
    for one, other in zip(ours, gradient(agent, (batch["advantage"] * error).mean()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert crd_loss(*torch.tensor([[0.5], [-0.25]]), beta=2.0, clip=5.0).tolist() == [5.0 / 2 * 1.25**2]


def test_crd_keeps_its_reference_apart_from_the_policy_that_samples(toy):
    policy = toy.policy()
    agent = CRD(policy, toy.reward(), group_size=4, old=0.25, reference=0.75)
    before = {name: [float(w.sum()) for _, w in parameters(policy.core, name)] for name in ("default", "reference")}
    assert before["default"] == before["reference"]
    moved(policy)
    agent.after_iteration()
    now = {
        name: [float(w.sum()) for _, w in parameters(policy.core, name)] for name in ("default", "old", "reference")
    }  # fmt: skip
    for start, learner, old, reference in zip(before["default"], *now.values(), strict=True):
        assert old == pytest.approx(0.25 * start + 0.75 * learner)
        assert reference == pytest.approx(0.75 * start + 0.25 * learner)
    CRD(policy, toy.reward(), group_size=4)  # another stage begins where the learner is
    assert policy.same_adapters("default", "reference") and not policy.same_adapters("default", "old")


def test_crd_holds_on_to_a_guided_base(toy):
    agent, rows = ready(toy, CRD, kl_guidance=4.5)
    plain, _ = ready(toy, CRD)
    guided, terms = (each.loss(next(each.batches(rows))) for each in (agent, plain))
    torch.testing.assert_close(guided["kl"], terms["kl"])  # the toy's unconditional velocity is the other
    assert plain.workload().beside == {"default": 1.0, "reference": 1.0, None: 1.0}
    assert agent.workload().beside[None] == 2.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"beta": 0.0}, "beta and clip above 0"), ({"kl_guidance": 0.5}, "kl_guidance of at least 1"),
     ({"reference": "never"}, "unknown schedule")],
)  # fmt: skip
def test_what_crd_refuses(toy, wrong, said):
    with pytest.raises(ValueError, match=said):
        CRD(toy.policy(), toy.reward(), group_size=4, **wrong)


def test_the_reference_may_be_the_policy_that_sampled(toy):
    """Before the first update the learner is that policy, and every group weighs a half; against the base it isn't."""
    policy = toy.policy()
    moved(policy)
    policy.sync("default", "old")
    for reference, half in (("old", True), ("base", False)):
        agent = DGPO(policy, toy.reward(), group_size=4, reference=reference)
        batch = next(agent.batches(agent.prepare(toy.collect(agent, torch.arange(3)))))
        assert bool(torch.allclose(batch["weight"], torch.tensor(0.5), atol=1e-6)) is half


@pytest.mark.parametrize("kind", [DGPO, GDPOSR, CRD])
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_microbatches_needn_t_hold_whole_groups(toy, kind, cut, monkeypatch):
    agent, rows = ready(toy, kind, beta=20.0)
    whole = gradient(agent, sum(v for k, v in agent.loss(next(agent.batches(rows))).items() if k.startswith("loss_")))
    monkeypatch.setattr("srgym.agents.grouped._ROWS", cut)
    batch = next(agent.batches(rows))
    agent.policy.zero_grad()
    for part in batch.split(cut):
        terms = agent.loss(part)
        (sum(v for k, v in terms.items() if k.startswith("loss_")) * len(part) / len(batch)).backward()
    parts = [p.grad.clone().double() for _, p in agent.policy.trainable_parameters()]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(parts, whole, strict=True))


def test_weights_by_hand():
    z = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64, requires_grad=True)
    (by_z,) = torch.autograd.grad(gdpo_loss(z, beta=3.0).sum(), z)
    torch.testing.assert_close(gdpo_weight(z.detach(), beta=3.0), by_z)
    assert dgpo_weight(z.detach(), 4, beta=2.0).tolist() == pytest.approx(
        [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    )


def test_what_costs_what(toy):
    policy = toy.policy()
    plain = DGPO(policy, group_size=4, steps=4, time_share=0.5).workload()
    assert plain == Workload(4, 4, 2, 1, {"default": 1.0, None: 1.0})
    assert DGPO(policy, kl=0.0, reference="old").workload().beside == {"default": 1.0, "old": 1.0}


def test_min_max_by_hand():
    components = {"a": torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0]), "b": torch.tensor([0.0, 0.0, 4.0, 1.0, 2.0, 3.0])}
    valid = torch.tensor([True, True, True, True, True, True])
    score, _ = Combine({"a": 1.0, "b": 2.0}, "min_max")(components, 3, valid)
    assert score.tolist() == pytest.approx([0.0, 1.0, 2.5, 0.0, 1.0, 2.0])
    some = torch.tensor([False, True, True, True, True, True])
    score, kept = Combine({"a": 1.0}, "min_max")(components, 3, some)
    assert score.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0] and not kept[0]


# Flow-DPPO


def test_dppo_by_hand():
    change = torch.tensor([0.5, 0.5, -0.5, 0.5, -0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    distance = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    each = dppo_loss(change, torch.zeros(5).double(), advantage, distance, delta=0.5)
    # Near enough; too far the way that A points; too far back; too far back; too far the way that A points.
    assert each.tolist() == pytest.approx([-math.exp(0.5), 0.0, -math.exp(-0.5), math.exp(0.5), 0.0])


def test_dppo_is_grpo_without_a_clip_until_a_step_has_gone_too_far(toy):
    policy = toy.policy()
    options = {"group_size": 4, "steps": 4, "kl": 0.0}
    free, bound = FlowDPPO(policy, toy.reward(), delta=1e9, **options), FlowDPPO(policy, toy.reward(), **options)
    plain = FlowGRPO(policy, toy.reward(), clip=1e9, **options)
    rollout = toy.collect(free, torch.arange(3))
    rows = [agent.prepare(rollout) for agent in (free, bound, plain)]
    for agent in (free, bound, plain):
        agent._first = False
    moved(policy)
    losses = [agent.loss(own)["loss_policy"] for agent, own in zip((free, bound, plain), rows, strict=True)]
    torch.testing.assert_close(losses[0], losses[2])
    assert abs(float((losses[1] - losses[2]).detach())) > 1e-3  # steps went further than 1e-5


def test_what_cant_be_is_refused(toy):
    policy = toy.policy()
    with pytest.raises(Incompatible, match="scores without a density"):
        FlowDPPO(policy, toy.reward(), solver="cps")
    with pytest.raises(ValueError, match="delta above 0"):
        FlowDPPO(policy, toy.reward(), delta=0.0)
    with pytest.raises(ValueError, match="expected beta above 0 and reference of"):
        DGPO(policy, toy.reward(), reference="ema")
    with pytest.raises(ValueError, match="expected beta above 0"):
        GDPOSR(policy, toy.reward(), beta=0.0)
    policy.sharded = True
    with pytest.raises(Incompatible, match="runs forwards of its own before an update"):
        DGPO(policy, toy.reward())
