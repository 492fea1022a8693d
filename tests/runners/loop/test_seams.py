"""Where Runner, adapters and agents meet: whose samples are drawn, with what noise, and what an update does."""

import math
from itertools import chain

import pytest
import torch
from tensordict import TensorDict

from srgym.agents import DPO, ColdStart, DiffusionNFT, FlowGRPO
from srgym.policies.noise import derive_seeds
from srgym.runners.loop.sampler import ContextSampler


def weights(policy, adapter="default"):
    return {
        name.replace(f".{adapter}.", "."): p.detach().clone()
        for name, p in policy.core.named_parameters()
        if f".{adapter}." in name
    }


def close(found, expected):
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def move(policy, adapter):
    with torch.no_grad():
        for name, parameter in policy.core.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(0.3)


class Still(ColdStart):
    """Every gradient is zero."""

    def loss(self, batch):
        return TensorDict({"loss_none": sum(0.0 * p.sum() for _, p in self.policy.trainable_parameters())})


@pytest.mark.parametrize(("kind", "drawn", "other"), [(DiffusionNFT, "old", "default"), (DPO, "default", "old"),
                                                      (FlowGRPO, "default", "old")])  # fmt: skip
def test_a_rollout_is_drawn_under_the_samplers_adapter(toy, kind, drawn, other):
    agent = kind(toy.policy(), toy.reward(), group_size=2)
    first = toy.collect(agent, torch.arange(2))["x0"]
    move(agent.policy, other)
    assert torch.equal(toy.collect(agent, torch.arange(2))["x0"], first)
    move(agent.policy, drawn)
    assert not torch.allclose(toy.collect(agent, torch.arange(2))["x0"], first)


def test_two_iterations_on_one_context_see_different_noise(toy):
    agent = toy.agent(toy.policy())
    first, again, next_one = (toy.collect(agent, torch.arange(2), seed=1, iteration=i) for i in (0, 0, 1))
    assert torch.equal(first["x0"], again["x0"])
    assert not (first["x0"] == next_one["x0"]).flatten(1).all(1).any()
    seeds, prepare = [], agent.prepare
    agent.prepare = lambda rollout: seeds.extend(rollout["seed"].tolist()) or prepare(rollout)
    toy.run(agent=agent, task=toy.task(2), iterations=5).learn()
    assert len(set(seeds)) == len(seeds) == 5 * 2 * 4


def test_the_samples_of_a_context_stand_together_and_are_its_own(toy):
    agent, index = toy.agent(toy.policy(), group_size=3), torch.tensor([7, 2, 5])
    batch = toy.collect(agent, index, seed=4, iteration=6)
    assert batch["index"].tolist() == [7, 7, 7, 2, 2, 2, 5, 5, 5]
    assert batch["group"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for row in range(9):
        lr, hr = toy.contexts(batch["index"][row : row + 1])
        assert torch.equal(batch["lr"][row], lr[0]) and torch.equal(batch["hr"][row], hr[0])
        assert torch.equal(batch["cond", "mean"][row, :, ::2, ::2], lr[0])
        assert batch["reward"][row] == toy.closeness(batch["sr"][row : row + 1], lr)
        assert batch["seed"][row] == derive_seeds(4, 6, int(batch["index"][row]), row % 3)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [1.0] * 4),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        ({"schedule": "warmup", "warmup": 0.5}, [0.0, 0.5, 1.0, 1.0]),
    ],
)
def test_without_a_gradient_weight_decay_shrinks_by_the_scheduled_rate(toy, settings, rates):
    """AdamW: w <- (1 - lr decay) w, with the learning rate of that moment."""
    policy = toy.policy()
    move(policy, "default")
    before = weights(policy)
    toy.run(agent=Still(policy), iterations=4, lr=0.1, weight_decay=0.5, **settings).learn()
    factor = math.prod(1 - 0.1 * rate * 0.5 for rate in rates)
    close(weights(policy), {name: factor * weight for name, weight in before.items()})


def test_a_gradient_is_clipped_to_its_norm(toy):
    """Far below AdamW's epsilon of 1e-8 a step is lr |g| / eps; unclipped the first step of every weight is lr."""

    def step(clip):
        agent = ColdStart(toy.policy())
        move(agent.policy, "default")
        before = torch.cat([w.flatten() for w in weights(agent.policy).values()])
        toy.run(agent=agent, iterations=1, lr=0.1, weight_decay=0.0, clip=clip).learn()
        return (torch.cat([w.flatten() for w in weights(agent.policy).values()]) - before).norm().item()

    assert step(1e9) == pytest.approx(0.1 * 4**0.5, rel=1e-3)
    assert step(1e-11) == pytest.approx(0.1 * 1e-11 / 1e-8, rel=0.01)


def test_ema_and_old_follow_the_learner_by_their_decays(toy):
    """`ema` after each update by min((1 + s) / (10 + s), cap), `old` after each iteration by the agent's own."""
    policy = toy.policy()
    agent = DiffusionNFT(policy, toy.reward(), group_size=4, epochs=2, old=0.25, ema=0.3)
    expected = {"ema": weights(policy, "ema"), "old": weights(policy, "old")}
    followed = []
    update, iteration = agent.after_update, agent.after_iteration

    def follow(adapter, decay, then):
        learner = weights(policy)
        expected[adapter] = {k: decay * w + (1 - decay) * learner[k] for k, w in expected[adapter].items()}
        then()
        close(weights(policy, adapter), expected[adapter])
        followed.append(adapter)

    agent.after_update = lambda: follow("ema", min((2 + agent.updates) / (11 + agent.updates), 0.3), update)
    agent.after_iteration = lambda: follow("old", 0.25, iteration)
    toy.run(agent=agent, iterations=3).learn()
    assert followed == ["ema", "ema", "old"] * 3
    assert not torch.equal(*(torch.cat([w.flatten() for w in weights(policy, n).values()]) for n in ("ema", "default")))


def test_the_learner_learns_its_copies_follow_and_the_base_stays(toy):
    """On seeds 0 to 5 such a run ends at 0.09 to 0.44 of the distance that it starts from."""
    agent = toy.agent(toy.policy(), group_size=24)
    start = toy.distance(agent.policy)
    toy.run(agent=agent, iterations=40, contexts=4, checkpoint_every=0).learn()
    assert all(toy.distance(agent.policy, name) < 0.6 * start for name in ("default", "old", "ema"))
    assert toy.distance(agent.policy, None) == start


def test_each_update_of_flow_grpo_learns_from_another_part_and_together_from_all(toy):
    agent = FlowGRPO(toy.policy(), toy.reward(), group_size=4, steps=3, updates_per_iteration=3, epochs=2)
    agent.ratio_tolerance = 1e9
    prepared, batches = [], []
    prepare, loss = agent.prepare, agent.loss
    agent.prepare = lambda rollout: prepared.append(prepare(rollout)) or prepared[-1]
    agent.loss = lambda batch: batches.append((batch["sample"] * 2 + batch["step"]).tolist()) or loss(batch)
    toy.run(agent=agent, task=toy.task(9, toy.reward()), iterations=1, contexts=3).learn()
    rows = sorted((prepared[0]["sample"] * 2 + prepared[0]["step"]).tolist())
    assert len(rows) == 12 * 2 and len(batches) == 6
    assert sorted(chain(*batches[:3])) == sorted(chain(*batches[3:])) == rows
    assert [len(batch) for batch in batches] == [8] * 6


def test_contexts_are_shuffled_anew_each_epoch_and_by_the_seed():
    orders = {}
    for seed in (0, 1):
        sampler = ContextSampler(20, seed)
        orders |= {(seed, epoch): tuple(sampler.take(20).tolist()) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    assert len(set(orders.values())) == 4 and tuple(range(20)) not in orders.values()
