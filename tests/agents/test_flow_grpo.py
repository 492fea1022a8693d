import math

import pytest
import torch
from torch.distributions import Normal

from srgym.agents.flow_grpo import FlowGRPO, grpo_loss
from srgym.agents.rows import shared
from srgym.policies.flow import Sampling
from srgym.rewards.base import Incompatible

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

VARIANTS = {
    "sde": {},
    "fast": {"fast": True},
    "cps": {"solver": "cps"},
    "dance": {"solver": "dance"},
    "guard": {"guard": True},
    "slide": {"slide": 5, "window": 3},
    "branch": {"branch": True},
}


@pytest.fixture
def build(toy):
    def build(policy=None, **settings):
        return FlowGRPO(policy or toy.policy(), toy.reward(), **{"group_size": 4, "steps": 6, **settings})

    return build


def diverge(policy, by=0.05):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


# The loss


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [
        (2.0, 1.0, -2.0),
        (2.0, 1.3, -2.0 * 1.1),  # clipped: no reward for going further
        (2.0, 0.5, -2.0 * 0.5),  # the pessimistic side
        (-2.0, 0.5, 2.0 * 0.9),
        (-2.0, 1.3, 2.0 * 1.3),
        (0.0, 1.3, 0.0),
    ],
)
def test_clipped_objective(advantage, ratio, expected):
    log_prob = torch.tensor([math.log(ratio) - 1.5], dtype=torch.float64)
    old = torch.tensor([-1.5], dtype=torch.float64)
    each = grpo_loss(log_prob, old, torch.tensor([advantage], dtype=torch.float64), clip=0.1)
    assert each.tolist() == pytest.approx([expected], abs=1e-12)


def test_beyond_the_clip_there_is_no_gradient():
    log_prob = torch.tensor([0.2, -0.2, 0.2, -0.2], requires_grad=True)
    old = torch.zeros(4, requires_grad=True)
    grpo_loss(log_prob, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip=0.1).sum().backward()
    ratio = torch.exp(log_prob.detach())
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, -1.0, 1.0, 0.0]) * ratio)
    assert old.grad is None


# The ratio


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("groups", "size"), [(1, 2), (3, 4), (2, 24)])
def test_ratio_is_one_before_the_first_update_however_the_batch_is_cut(build, toy, variant, groups, size):
    agent = build(group_size=size, **VARIANTS[variant])
    rows = agent.prepare(toy.collect(agent, torch.arange(groups)))
    assert len(rows)
    for cut in (len(rows), 7, 1):
        for start in range(0, min(len(rows), 5 * cut), cut):
            assert float(agent.loss(rows[start : start + cut])["ratio_error"]) <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratio_is_one_on_a_network(tiny_policy, toy, variant):
    """Convolutions round differently in other batch sizes; the log-probability, a mean, must not feel it."""
    tiny_policy.add_adapters(rank=2, alpha=4.0)
    diverge(tiny_policy)
    agent = FlowGRPO(tiny_policy, toy.reward(), group_size=3, steps=5, **VARIANTS[variant])
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(6)
    with torch.no_grad():
        rollout = tiny_policy.rollout({"lr": lr}, agent.sampling, seeds)
    rollout["group"], rollout["seed"] = torch.arange(2).repeat_interleave(3), seeds
    rollout["reward"] = torch.rand(6, generator=torch.Generator().manual_seed(1))
    rows = agent.prepare(rollout)
    for cut in (len(rows), 5, 1):
        for start in range(0, len(rows), cut):
            assert float(agent.loss(rows[start : start + cut])["ratio_error"]) <= 1e-6


def test_a_learner_that_did_not_sample_is_found_out(build, toy):
    agent = build()
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    with pytest.raises(ValueError, match=r"ratio of likelihoods must be 1.*isn't the one that sampled"):
        agent.loss(rows)


def test_after_an_update_the_ratio_may_move_and_after_collecting_it_may_not(build, toy):
    agent = build()
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    agent.after_update()
    assert float(agent.loss(rows)["ratio_error"]) > 1e-3
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    assert float(agent.loss(rows)["ratio_error"]) <= 1e-6


def test_the_tolerance_can_be_widened(build, toy):
    agent = build(ratio_tolerance=1e3)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    assert float(agent.loss(rows)["ratio_error"]) > 1e-3


def test_who_sampled_is_asked_anew_only_after_an_update(build, toy):
    agent = build(old_log_prob="recomputed", kl=0.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    agent.policy.calls.clear()
    first = agent.loss(rows)
    assert len(agent.policy.calls) == 1 and float(first["ratio_error"]) == 0.0
    diverge(agent.policy)
    agent.after_update()
    agent.policy.calls.clear()
    anew = agent.loss(rows)
    assert sorted(grad for _, grad in agent.policy.calls) == [False, True]
    sampled = build(old_log_prob="sampled", kl=0.0)
    sampled.policy, sampled._first = agent.policy, False
    torch.testing.assert_close(anew["loss_policy"], sampled.loss(rows)["loss_policy"], rtol=1e-4, atol=1e-6)
    assert agent.workload().beside == {"old": 0.5} and sampled.workload().beside == {}
    with pytest.raises(ValueError, match="expected old_log_prob of"):
        build(old_log_prob="stored")


# The rows


def test_rows_are_the_noisy_steps_without_the_last(build, toy):
    agent = build()
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    assert len(rows) == 3 * 4 * 5 and set(rows["step"].tolist()) == {0, 1, 2, 3, 4}
    assert agent.sampling == Sampling(steps=6, solver="sde", noise_level=0.7, window=(0, 5), record=True)


def test_the_last_step_adds_no_noise(build, toy):
    """Noise left in the image would be scored with it."""
    agent = build()
    rollout = toy.collect(agent, torch.arange(2))
    x, t = rollout["latents"][:, 5], rollout["t"][:, 5]
    v = agent.policy.velocity(x, t, rollout["cond"])
    torch.testing.assert_close(rollout["latents"][:, 6], x - t.reshape(-1, 1, 1, 1) * v)


def test_advantages_are_clipped_at_five_and_zeros_dropped(build, toy):
    agent = build(group_size=40)
    rollout = toy.collect(agent, torch.arange(2))
    rollout["reward"] = torch.cat([torch.zeros(39), torch.ones(1), torch.full((40,), 0.3)])  # 39 / 40 deviates by 6.2
    rows = agent.prepare(rollout)
    assert rows["advantage"].max().item() == 5.0
    assert shared(rows)[1].max() < 40 and agent.stats["samples_without_advantage"] == 40


def test_two_updates_share_the_samples_of_an_iteration(build, toy):
    agent = build()
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    parts = list(agent.batches(rows))
    places = [shared(part)[1] for part in parts]
    assert len(parts) == 2 and sum(len(part) for part in parts) == len(rows)
    assert not set(places[0].tolist()) & set(places[1].tolist())
    for place in places:  # each sample with all its steps, and every group in both updates
        assert (torch.bincount(place)[place.unique()] == 5).all()
        assert set((place // 4).tolist()) == {0, 1, 2}


def test_epochs_go_over_all_samples_again(build, toy):
    agent = build(epochs=3)
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))
    assert sum(len(part) for part in agent.batches(rows)) == 3 * len(rows)


def test_nothing_kept_means_no_update(build, toy):
    agent = build()
    rollout = toy.collect(agent, torch.arange(1))
    rollout["reward"][:] = 0.25
    rows = agent.prepare(rollout)
    assert len(rows) == 0 and not any(len(part) for part in agent.batches(rows))


# The mathematics, against textbook formulas


def by_hand(policy, rows, level=0.7):
    """Flow-GRPO's mu, step noise q and s_t [B, ...], from the specification's text."""
    samples, at = shared(rows)
    step = rows["step"]
    x = samples["latents"][at, step].double()
    t, t_next = samples["t"][at, step].double(), samples["t"][at, step + 1].double()
    v = policy.velocity(x, t, samples["cond"][at])
    t, t_next = t.reshape(-1, 1, 1, 1), t_next.reshape(-1, 1, 1, 1)
    capped = torch.where(t == 1, samples["t"][at, 1].double().reshape(-1, 1, 1, 1), t)
    s = level * torch.sqrt(t / (1 - capped))
    dt = t_next - t
    mu = x * (1 + s**2 * dt / (2 * t)) + v * (1 + s**2 * (1 - t) / (2 * t)) * dt
    return mu, s * torch.sqrt(-dt), s


def test_sampled_log_probability_is_the_mean_normal_density(build, toy):
    agent = build(group_size=2)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    samples, at = shared(rows)
    mu, q, _ = by_hand(agent.policy, rows)
    x_next = samples["latents"][at, rows["step"] + 1].double()
    expected = Normal(mu, q.expand_as(mu)).log_prob(x_next).flatten(1).mean(1)
    torch.testing.assert_close(samples["log_prob"][at, rows["step"]].double(), expected, rtol=1e-5, atol=1e-5)


def test_first_gradient_is_reinforce(build, toy):
    """At rho = 1 the gradient is that of -A log p."""
    agent = build(kl=0.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy, 0.0)
    samples, at = shared(rows)
    agent.loss(rows)["loss_policy"].backward()
    got = [p.grad.clone() for _, p in agent.policy.trainable_parameters()]
    for _, p in agent.policy.trainable_parameters():
        p.grad = None
    mu, q, _ = by_hand(agent.policy, rows)
    log_prob = Normal(mu, q.expand_as(mu)).log_prob(samples["latents"][at, rows["step"] + 1].double())
    (-rows["advantage"] * log_prob.flatten(1).mean(1)).mean().backward()
    for gradient, (_, p) in zip(got, agent.policy.trainable_parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().sum() > 0 for gradient in got)


def test_kl_is_the_drift_of_the_mean_over_twice_the_noise(build, toy):
    agent = build(kl=0.5)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    agent.after_update()
    terms = agent.loss(rows)
    mu, _, s = by_hand(agent.policy, rows)
    with agent.policy.adapter(None):
        mu_base, _, _ = by_hand(agent.policy, rows)
    expected = float(((mu - mu_base) ** 2 / (2 * s**2)).flatten(1).mean(1).mean())
    assert float(terms["kl"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["loss_kl"]) == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("variant", ["sde", "dance", "cps", "guard"])
def test_gradient_against_finite_differences(toy, variant):
    policy = toy.policy().double()
    agent = FlowGRPO(
        policy, toy.reward(), group_size=4, steps=4, clip=10.0, kl=0.1, ratio_tolerance=1e-3, **VARIANTS[variant]
    )  # fmt: skip
    rollout = toy.collect(agent, torch.arange(2))
    rollout["latents"] = rollout["latents"].double()
    rollout["t"], rollout["log_prob"] = rollout["t"].double(), rollout["log_prob"].double()
    rows = agent.prepare(rollout)
    diverge(policy)
    agent.after_update()

    def objective():
        terms = agent.loss(rows)
        return terms["loss_policy"] + terms["loss_kl"]

    objective().backward()
    for _, parameter in policy.trainable_parameters():
        place, values = (0,) * parameter.dim(), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[place] += shift
                values.append(float(objective()))
        with torch.no_grad():
            parameter[place] += 1e-5
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


# The kin


def test_fast_moves_its_window_between_iterations(build):
    agent = build(fast=True, steps=10, window=3)
    starts = set()
    for iteration in range(60):
        agent.iterations = iteration
        start, length = agent.sampling.window
        assert length == 3 and agent.sampling == agent.sampling
        starts.add(start)
    assert starts == {0, 1, 2}  # to T / 2 - w
    other = build(fast=True, steps=10, window=3, seed=1)
    windows = [set(), set()]
    for iteration in range(5):
        for one, seen in zip((agent, other), windows, strict=True):
            one.iterations = iteration
            seen.add((iteration, one.sampling.window))
    assert windows[0] != windows[1]


def test_fast_never_reaches_the_last_step(build):
    agent = build(fast=True, steps=4, window=3)
    for iteration in range(20):
        agent.iterations = iteration
        assert agent.sampling.window == (0, 3)


def test_fast_trains_the_noisy_steps_alone(build, toy):
    agent = build(fast=True, window=2)
    rollout = toy.collect(agent, torch.arange(2))
    start, _ = agent.sampling.window
    rows = agent.prepare(rollout)
    assert set(rows["step"].tolist()) == {start, start + 1}
    x, t, t_next = rollout["latents"], rollout["t"], rollout["t"][:, 1:]
    for i in range(6):
        v = agent.policy.velocity(x[:, i], t[:, i], rollout["cond"])
        euler = x[:, i] + (t_next[:, i] - t[:, i]).reshape(-1, 1, 1, 1) * v
        assert torch.allclose(euler, x[:, i + 1], atol=1e-6) == (i not in (start, start + 1))


@pytest.mark.parametrize(
    ("settings", "clip", "kl", "level"),
    [
        ({}, 1e-4, 0.04, 0.7),
        ({"fast": True}, 1e-5, 0.0, 0.7),
        ({"solver": "cps"}, 1e-4, 0.0, 0.7),
        ({"solver": "dance"}, 1e-4, 0.04, 0.3),
        ({"guard": True}, 2e-6, 0.04, 0.7),
        ({"guard": True, "clip": 0.1, "kl": 0.2, "noise_level": 0.5}, 0.1, 0.2, 0.5),
    ],
)
def test_defaults_of_the_kin(build, settings, clip, kl, level):
    agent = build(**settings)
    assert (agent.clip, agent.kl, agent.sampling.noise_level) == (clip, kl, level)


@pytest.mark.parametrize("solver", ["sde", "dance"])
def test_guarded_ratio_is_the_mean_product_of_noise_and_drift(build, toy, solver):
    """(dlogp + mean(dmu^2) / (2 q^2)) q = mean(eps dmu): unbiased in the noise, and of one scale at every step."""
    agent = build(guard=True, solver=solver, kl=0.0, clip=100.0, group_size=2)
    policy = agent.policy
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))[:1]
    samples, at = shared(rows)
    step = rows["step"]
    x, x_next = samples["latents"][at, step], samples["latents"][at, step + 1]
    t, t_next, cap = (samples["t"][at, i] for i in (step, step + 1, torch.ones_like(step)))
    with torch.no_grad():
        before = agent._solver.transition(policy.velocity(x, t, samples["cond"][at]), x, t, t_next, cap)
        diverge(policy)
        now = agent._solver.transition(policy.velocity(x, t, samples["cond"][at]), x, t, t_next, cap)
    agent.after_update()
    eps = (x_next - before.mean) / before.std
    log_ratio = (eps * (now.mean - before.mean)).mean()
    expected = -rows["advantage"] * torch.exp(log_ratio) / (t - t_next)
    assert float(agent.loss(rows)["loss_policy"]) == pytest.approx(float(expected), rel=1e-4)


def test_guard_takes_the_samplers_mean_from_the_rollout(build, toy):
    """No forward of `old`, and the loss that one would give."""
    stored = build(guard=True, kl=0.0, clip=100.0)
    rollout = toy.collect(stored, torch.arange(1))
    again = FlowGRPO(
        stored.policy, toy.reward(), group_size=4, steps=6, guard=True, kl=0.0, clip=100.0, old_log_prob="recomputed"
    )  # fmt: skip
    assert stored.sampling.means and not again.sampling.means and stored.workload().beside == {}
    losses = []
    for agent in (stored, again):
        rows = agent.prepare(rollout)
        agent.after_update()
    diverge(stored.policy)
    for agent, calls in ((stored, [True]), (again, [False, True])):
        agent.policy.calls.clear()
        losses.append(agent.loss(rows)["loss_policy"])
        assert sorted(grad for _, grad in agent.policy.calls) == calls
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_the_window_slides_and_comes_back(build):
    """MixGRPO: by one step every `slide` iterations, over all steps but the last."""
    agent = build(slide=2, window=4, steps=7)
    seen = []
    for iteration in range(8):
        agent.iterations = iteration
        seen.append(agent.sampling.window)
    assert seen == [(0, 4)] * 2 + [(1, 4)] * 2 + [(2, 4)] * 2 + [(0, 4)] * 2
    assert agent.kl == 0.0 and agent.clip == 1e-4 and agent.workload().times == 4


def test_branches_leave_one_path_at_a_step_of_their_groups_own(build, toy):
    agent = build(branch=True)
    rollout = toy.collect(agent, torch.arange(12))
    begin, path = rollout["begin"].reshape(12, 4), rollout["latents"].reshape(12, 4, 7, -1)
    assert torch.equal(begin, begin[:, :1].expand_as(begin)) and set(begin.flatten().tolist()) == {0, 1, 2, 3, 4}
    for group in range(12):
        step = int(begin[group, 0])
        common = path[group, :, : step + 1]
        assert torch.equal(common, common[:1].expand_as(common))  # up to the branch, bit for bit
        apart = path[group, :, step + 1]
        assert float((apart[0] - apart[1]).abs().min()) > 0
        for i in range(step + 1, 6):  # and after it each goes on without noise
            t = rollout["t"][4 * group : 4 * group + 4, i]
            x = rollout["latents"][4 * group : 4 * group + 4, i]
            v = agent.policy.velocity(x, t, rollout["cond"][4 * group : 4 * group + 4])
            torch.testing.assert_close(rollout["latents"][4 * group : 4 * group + 4, i + 1], x - v / 6)
    rows = agent.prepare(rollout)
    assert torch.equal(rows["step"], rollout["begin"][shared(rows)[1]]) and len(rows) == 48
    assert not torch.equal(path[0, 0, 0], path[1, 0, 0])
    alone = toy.collect(agent, torch.arange(7, 8))
    torch.testing.assert_close(alone["latents"], rollout["latents"][28:32])


def test_branches_weigh_as_much_as_their_noise(build, toy):
    """TempFlow-GRPO, eq. 8: Norm(sigma_t sqrt(dt)), of mean 1 over the schedule."""
    agent = build(branch=True, kl=0.0, clip=1e9)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    t = [1 - i / 6 for i in range(7)]
    noise = [
        0.7 * math.sqrt(t[i] / (1 - (t[i] if t[i] < 1 else t[1]))) * math.sqrt(t[i] - t[i + 1]) for i in range(5)
    ]  # fmt: skip
    weight = torch.tensor([5 * q / sum(noise) for q in noise])[rows["step"]]
    plain = FlowGRPO(
        agent.policy, toy.reward(), group_size=4, steps=6, branch=True, kl=0.0, clip=1e9, noise_weight=False
    )
    for each, expected in ((agent, weight), (plain, torch.ones(len(rows)))):
        found = float(each.loss(rows)["loss_policy"])
        assert found == pytest.approx(float((-rows["advantage"] * expected).mean()), rel=1e-4, abs=1e-6)
    assert float(weight.std()) > 0.1


def test_a_group_that_is_cut_can_share_nothing(build, toy):
    agent = build(branch=True)
    with pytest.raises(ValueError, match=r"whole groups of 4, and 6 came.*rollout_batch"):
        agent.policy.rollout({"lr": toy.contexts(torch.arange(2))[0]}, agent.sampling, torch.arange(6))


def test_samples_may_begin_near_one_another(toy):
    """sqrt(1 - s^2) of the group's noise and s of one's own: of the same spread, and as alike as that says."""
    policy = toy.policy()
    with torch.no_grad():
        sampling = Sampling(steps=1, group=50, spread=0.6, record=True)
        x = policy.rollout({"lr": toy.contexts(torch.arange(8))[0]}, sampling, torch.arange(400))["latents"][:, 0]
    x = x.reshape(8, 50, -1).double()
    assert float(x.var()) == pytest.approx(1.0, rel=0.15)
    assert float(x.var(1).mean()) == pytest.approx(0.36, rel=0.05)


@pytest.mark.parametrize("detached", [True, False])
def test_the_unconditional_velocity_may_have_no_gradient(build, toy, detached):
    agent = build(guidance=3.0, kl=0.0, guidance_detached=detached)
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))
    agent.policy.calls.clear()
    guided = gradient_of(agent, rows)
    assert sorted(grad for _, grad in agent.policy.calls) == [not detached, True]
    assert agent.workload().guided and agent.workload().detached is detached
    agent.guidance = 1.0
    plain = gradient_of(agent, rows)
    # The toy's two velocities are one, v = -2 u + 3 c: three times its gradient where u has none.
    torch.testing.assert_close(guided, plain * (3.0 if detached else 1.0), rtol=1e-4, atol=1e-7)
    assert float(plain.abs().max()) > 1e-3


def gradient_of(agent, rows):
    agent.policy.zero_grad()
    agent.loss(rows)["loss_policy"].backward()
    return torch.cat([p.grad.flatten() for _, p in agent.policy.trainable_parameters()])


# What can't work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dpm2m"}, r"FlowGRPO.*'dpm2m'.*DiffusionNFT"),
        ({"guard": True, "solver": "cps"}, r"guard.*'cps'.*'sde' or 'dance'"),
        ({"group_size": 1}, r"FlowGRPO.*groups of 1"),
    ],
)
def test_incompatible_settings_are_refused(build, settings, message):
    with pytest.raises(Incompatible, match=message):
        build(**settings)


def test_without_adapters_there_is_no_base_to_hold_on_to(build, toy):
    with pytest.raises(Incompatible, match="kl above 0"):
        build(toy.policy(adapters=False))
    assert build(toy.policy(adapters=False), kl=0.0).kl == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 1}, {"fast": True, "window": 6}, {"updates_per_iteration": 0}, {"std": "x"}, {"clip": 0.0},
     {"fast": True, "slide": 2}, {"slide": 0}, {"spread": 2.0}],
)  # fmt: skip
def test_hyperparameters_are_checked(build, wrong):
    with pytest.raises(ValueError, match="expected"):
        build(**wrong)
