import math

import pytest
import torch

from srgym.agents.refl import REFL, refl_loss
from srgym.rewards.base import Incompatible, Reward
from srgym.rewards.info import describe

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def reward_of(function, **declared):
    return Reward(function, describe(function, declared.pop("name", "mine"), **declared))


@pytest.fixture
def build(toy):
    def build(policy=None, **settings):
        return REFL(policy or toy.policy(), toy.reward(), **settings)

    return build


def gradient(agent, rows):
    for _, parameter in agent.policy.trainable_parameters():
        parameter.grad = None
    agent.loss(rows)["loss_policy"].backward()
    return [p.grad.clone() for _, p in agent.policy.trainable_parameters()]


def diverge(policy, by=0.1):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


def test_phi():
    reward = torch.tensor([0.2, 0.9, 1.4])
    assert refl_loss(reward).tolist() == pytest.approx([-0.2, -0.9, -1.4])
    assert refl_loss(reward, ceiling=1.0).tolist() == pytest.approx([0.8, 0.1, 0.0], abs=1e-6)


def test_images_beyond_the_ceiling_are_left_alone(build, toy):
    below = build(ceiling=-10.0)
    diverge(below.policy)
    assert all(g.abs().sum() == 0 for g in gradient(below, below.prepare(toy.collect(below, torch.arange(2)))))


@pytest.mark.parametrize(("steps", "late"), [(6, {4, 5}), (40, set(range(30, 40))), (3, {2}), (10, {7, 8, 9})])
def test_the_last_step_is_drawn_once_a_sample_from_the_last_quarter(build, toy, steps, late):
    """The step with gradient is the last the sample takes: the no-grad steps before it stop there."""
    agent = build(steps=steps, group_size=60)
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))
    steps_taken = []
    velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: steps_taken.append((t, torch.is_grad_enabled())) or velocity(x, t, cond)
    agent.loss(rows)
    (last, grad), before = steps_taken[-1], steps_taken[:-1]
    assert grad and not any(g for _, g in before)
    chosen = (steps - last * steps).round().long()
    assert set(chosen.tolist()) == late
    for i, (t, _) in enumerate(before):  # step i is taken by the samples that go further, and by no others
        assert len(t) == int((chosen > i).sum())


def test_each_sample_is_integrated_to_its_own_step(build, toy):
    """Against one sample at a time: neither the cutoff nor the noise depends on the batch."""
    agent = build(group_size=6)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    alone = [float(agent.loss(rows[i : i + 1])["reward"]) for i in range(len(rows))]
    assert sum(alone) / len(alone) == pytest.approx(float(agent.loss(rows)["reward"]), rel=1e-5)


def test_on_a_split_policy_every_batch_runs_the_same_forwards(build, toy):
    """The steps that no sample takes are run for the others' sake, and change nothing."""
    agent = build(late=1.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(8)))
    plain = [float(agent.loss(rows[i : i + 1])["loss_policy"]) for i in range(8)]
    agent.policy.sharded = True
    for i in range(8):
        agent.policy.calls.clear()
        assert float(agent.loss(rows[i : i + 1])["loss_policy"]) == plain[i]
        assert len(agent.policy.calls) == 6


def test_with_all_steps_the_reward_is_that_of_the_sampler(build, toy):
    from srgym.policies.flow import Sampling

    agent = build(k_last=3)
    rows = agent.prepare(toy.collect(agent, torch.arange(4)))
    lr, _ = toy.contexts(torch.arange(4))
    with torch.no_grad():
        sr = agent.policy.rollout({"lr": lr}, Sampling(steps=6), rows["seed"])["sr"]
    assert float(agent.loss(rows)["reward"]) == pytest.approx(float(toy.closeness(sr, lr).mean()), rel=1e-5)


def test_checkpointing_changes_memory_and_nothing_else(build, toy):
    agent = build(k_last="all")
    diverge(agent.policy)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    plain = build(agent.policy, k_last=6)
    for one, other in zip(gradient(agent, rows), gradient(plain, rows), strict=True):
        torch.testing.assert_close(one, other)
    velocity, begun = agent.policy.velocity, []
    agent.policy.velocity = lambda x, t, cond: begun.append(len(x)) or velocity(x, t, cond)
    gradient(agent, rows)
    assert begun == [3] * 12  # every step once more for the backward


@pytest.mark.parametrize("k_last", [1, 2, 4])
def test_only_the_last_steps_carry_gradient(build, toy, k_last):
    agent = build(k_last=k_last)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    agent.policy.calls.clear()
    agent.loss(rows)
    flags = [grad for _, grad in agent.policy.calls]
    assert sum(flags) == k_last and all(flags[-k_last:])


def test_gradient_through_everything_against_finite_differences(toy):
    policy = toy.policy().double()
    agent = REFL(policy, toy.reward(), k_last="all", steps=4)
    diverge(policy)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    got = gradient(agent, rows)
    for (_, parameter), slope in zip(policy.trainable_parameters(), got, strict=True):
        place, values = (0,) * parameter.dim(), []
        for shift in (1e-2, -2e-2):  # the reward computes in float32, and is smooth
            with torch.no_grad():
                parameter[place] += shift
                values.append(float(agent.loss(rows)["loss_policy"]))
        with torch.no_grad():
            parameter[place] += 1e-2
        assert slope[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-3)


def test_invalid_scores_count_as_rows_without_a_loss(toy):
    def half(sr, lr):
        score = toy.closeness(sr, lr)
        return {"total": score, "valid": torch.arange(len(sr)) % 2 == 0}

    agent = REFL(toy.policy(), reward_of(half, differentiable=True))
    diverge(agent.policy)
    rows = agent.prepare(toy.collect(agent, torch.arange(4)))
    terms = agent.loss(rows)
    whole = REFL(agent.policy, toy.reward())
    kept = [float(whole.loss(rows[i : i + 1])["loss_policy"]) for i in (0, 2)]
    assert float(terms["loss_policy"]) == pytest.approx(sum(kept) / 4, rel=1e-5)
    assert float(terms["invalid"]) == 0.5
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradient(agent, rows)[:1])


def test_a_nan_reward_does_not_poison_the_gradient(toy):
    def broken(sr, lr):
        return toy.closeness(sr, lr) + torch.where(torch.arange(len(sr)) == 1, math.nan, 0.0)

    agent = REFL(toy.policy(), reward_of(broken, differentiable=True))
    diverge(agent.policy)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    assert all(torch.isfinite(g).all() for g in gradient(agent, rows))


def test_ground_truth_is_handed_to_a_reward_that_needs_it(toy):
    def error(sr, hr):
        return -(sr - hr).square().mean((1, 2, 3))

    agent = REFL(toy.policy(), reward_of(error, differentiable=True), provides={"lr", "hr"})
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    assert float(agent.loss(rows)["reward"]) < 0
    with pytest.raises(Incompatible, match=r"REFL needs ground truth"):
        REFL(toy.policy(), reward_of(error, differentiable=True), provides={"lr"})


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (None, "given none"),
        (reward_of(lambda sr: sr.mean((1, 2, 3)), name="flat"), r"'flat' isn't differentiable.*DiffusionNFT, FlowGRPO"),
        (
            reward_of(lambda sr, group: sr.mean((1, 2, 3)), name="ranked", differentiable=True),
            r"'ranked'.*whole groups",
        ),
        (reward_of(lambda sr, text: sr.mean((1, 2, 3)), name="told", differentiable=True), r"'told' needs text"),
    ],
    ids=["none", "not differentiable", "group", "text"],
)
def test_rewards_it_cannot_follow_are_refused(toy, reward, message):
    with pytest.raises(Incompatible, match=message):
        REFL(toy.policy(), reward)


@pytest.mark.parametrize("wrong", [{"k_last": 0}, {"k_last": 7}, {"k_last": "some"}, {"late": 0.0}, {"late": 1.5}])
def test_hyperparameters_are_checked(build, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)
