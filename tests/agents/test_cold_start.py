import pytest
import torch

from srgym.agents.cold_start import ColdStart
from srgym.rewards.base import Incompatible


def moved(policy, by=0.2):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


@pytest.mark.parametrize("adapters", [True, False])
def test_loss_is_the_square_error_of_the_velocity(toy, adapters):
    agent = ColdStart(toy.policy(adapters), time="logit_normal", shift=3.0)
    moved(agent.policy)
    rows = agent.prepare(toy.collect(agent, torch.arange(5)))
    seen = []
    velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: seen.append((x, t, velocity(x, t, cond))) or seen[-1][2]
    value = agent.loss(rows)["loss_flow"].item()
    (x_t, t, v) = seen[0]
    eps = (x_t - (1 - t.reshape(-1, 1, 1, 1)) * rows["hr"]) / t.reshape(-1, 1, 1, 1)
    assert value == pytest.approx(((v - (eps - rows["hr"])) ** 2).mean().item(), rel=1e-4)


def test_gradient_against_finite_differences(toy):
    policy = toy.policy().double()
    agent = ColdStart(policy)
    rollout = toy.collect(agent, torch.arange(4))
    rollout["hr"] = rollout["hr"].double()
    rows = agent.prepare(rollout)
    moved(policy)
    agent.loss(rows)["loss_flow"].backward()
    for _, parameter in policy.trainable_parameters():
        place, values = (0,) * parameter.dim(), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[place] += shift
                values.append(agent.loss(rows)["loss_flow"].item())
        with torch.no_grad():
            parameter[place] += 1e-5
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_times_and_noise_are_drawn_anew_in_each_update(toy):
    agent = ColdStart(toy.policy(), draws=2)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    assert len(rows) == 6
    first = agent.loss(rows)["loss_flow"].item()
    assert agent.loss(rows)["loss_flow"].item() == first
    agent.after_update()
    assert agent.loss(rows)["loss_flow"].item() != first


def test_times_follow_the_density_that_is_asked_for(toy):
    def times(**settings):
        agent = ColdStart(toy.policy(), draws=200, **settings)
        seen = []
        velocity = agent.policy.velocity
        agent.policy.velocity = lambda x, t, cond: seen.append(t) or velocity(x, t, cond)
        agent.loss(agent.prepare(toy.collect(agent, torch.arange(1))))
        return seen[0]

    uniform, normal = times(), times(time="logit_normal")
    assert ((uniform < 0.1) | (uniform > 0.9)).float().mean() == pytest.approx(0.2, abs=0.12)
    assert ((normal < 0.1) | (normal > 0.9)).float().mean() < 0.08  # 2.8 % of a standard normal's sigmoid
    torch.testing.assert_close(times(shift=3.0), 3 * uniform / (1 + 2 * uniform))


def test_a_policy_trained_whole_keeps_its_average_in_the_agent(toy):
    policy = toy.policy(adapters=False)
    agent = ColdStart(policy, ema=0.99)
    moved(policy, 1.0)
    agent.after_update()
    with agent.averaged():
        assert policy.learnt().tolist() == pytest.approx([9 / 11] * 3)  # 1 - (1 + s) / (10 + s) at s = 1
    assert policy.learnt().tolist() == [1.0] * 3
    other = ColdStart(toy.policy(adapters=False))
    other.load_state(agent.state())
    with other.averaged():
        assert other.policy.learnt().tolist() == pytest.approx([9 / 11] * 3)


def test_the_encoder_learns_too_when_all_weights_do(tiny_policy):
    """The compact policy's own losses join, and the flow's gradient reaches the encoder through its features."""
    agent = ColdStart(tiny_policy)
    assert agent.encodes
    g = torch.Generator().manual_seed(0)
    from tensordict import TensorDict

    batch = TensorDict(
        {
            "lr": torch.rand(2, 3, 4, 4, generator=g), "hr": torch.rand(2, 3, 16, 16, generator=g),
            "seed": torch.arange(2),
        },
        batch_size=[2],
    )  # fmt: skip
    rows = agent.prepare(batch)
    terms = agent.loss(rows)
    assert set(terms.keys()) == {"loss_flow", "loss_mean", "loss_spread"}
    heads = {
        "loss_mean": "encoder.mean.weight",
        "loss_spread": "encoder.log_spread.weight",
        "loss_flow": "encoder.enter",
    }
    for term, reached in heads.items():
        tiny_policy.zero_grad()
        terms[term].backward(retain_graph=True)
        reached_grads = [p.grad for name, p in tiny_policy.named_parameters() if name.startswith(reached)]
        assert all(grad is not None and grad.abs().sum() > 0 for grad in reached_grads), term


def test_under_a_lora_the_encoder_is_left_alone(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=2.0)
    assert not ColdStart(tiny_policy).encodes


def test_contexts_without_ground_truth_are_refused(toy):
    with pytest.raises(Incompatible, match=r"ColdStart needs ground truth.*'lr'.*photographs"):
        ColdStart(toy.policy(), provides={"lr"})
    agent = ColdStart(toy.policy(), provides={"lr", "hr"})
    with pytest.raises(Incompatible, match="have no 'hr'"):
        agent.prepare(toy.collect(agent, torch.arange(2)).exclude("hr"))


@pytest.mark.parametrize("wrong", [{"time": "beta"}, {"shift": 0.0}, {"draws": 0}, {"epochs": 0}])
def test_hyperparameters_are_checked(toy, wrong):
    with pytest.raises(ValueError, match="expected|at least 1"):
        ColdStart(toy.policy(), **wrong)
