import pytest
import torch

from srgym.agents.diffusion_nft import DiffusionNFT, nft_loss, norm_excess
from srgym.agents.groups import optimality
from srgym.agents.rows import shared
from srgym.rewards.base import Incompatible

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

SHAPE = (5, 2, 3)


def problem(seed=0, far=1.0):
    """(v_theta, v_old, x_t, t, x0, v) in float64; `far` scales D = v_theta - v_old."""
    g = torch.Generator().manual_seed(seed)
    x0, eps, v_old, d = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(4))
    t = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    s = t.reshape(-1, 1, 1)
    return v_old + far * d, v_old, (1 - s) * x0 + s * eps, t, x0, eps - x0


def mean(x):
    return x.flatten(1).mean(1)


@pytest.mark.parametrize("far", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_self_normalised_terms_are_t_mse_over_mae_of_the_velocity(far, beta, clip):
    v_theta, v_old, x_t, t, x0, v = problem(far=far)
    for r, mixed in ((1.0, (1 - beta) * v_old + beta * v_theta), (0.0, (1 + beta) * v_old - beta * v_theta)):
        expected = clip / beta * t * mean((mixed - v) ** 2) / mean((mixed - v).abs())
        each = nft_loss(v_theta, v_old, x_t, t, x0, torch.full((5,), r, dtype=torch.float64), beta=beta, clip=clip)
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-12)


def test_optimality_interpolates_between_the_two_terms():
    args, r = problem()[:5], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    good, bad = nft_loss(*args, torch.ones_like(r)), nft_loss(*args, torch.zeros_like(r))
    torch.testing.assert_close(nft_loss(*args, r), r * good + (1 - r) * bad, rtol=1e-12, atol=0)


def test_the_divisor_has_a_floor():
    """A perfect prediction has error 0, and 0 / 0 without the floor of 1e-5."""
    _, _, x_t, t, x0, v = problem()
    each = nft_loss(v, v, x_t, t, x0, torch.full_like(t, 0.5))
    torch.testing.assert_close(each, torch.zeros_like(t), rtol=0, atol=1e-12)
    near = nft_loss(v + 1e-7, v + 1e-7, x_t, t, x0, torch.full_like(t, 0.5))
    torch.testing.assert_close(near, (t * 1e-7) ** 2 / 1e-5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("far", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(("beta", "clip"), [(1.0, 1.0), (0.1, 5.0), (0.7, 2.0)])
def test_unweighted_expansion(far, beta, clip):
    """(c/b) plain = (c/b) ||v_old - v||^2 + c b ||D||^2 + 2 A <D, v_old - v>."""
    v_theta, v_old, x_t, t, x0, v = problem(far=far)
    advantage = torch.tensor([-2.0, -0.3, 0.0, 0.4, 7.0], dtype=torch.float64).clamp(-clip, clip)
    r = advantage / (2 * clip) + 0.5
    plain = nft_loss(v_theta, v_old, x_t, t, x0, r, beta=beta, clip=clip, form="plain")
    d, off = v_theta - v_old, v_old - v
    expected = clip / beta * mean(off**2) + clip * beta * mean(d**2) + 2 * advantage * mean(d * off)
    torch.testing.assert_close(clip / beta * plain, expected, rtol=1e-12, atol=1e-12)


def test_plain_form_is_oars_equation_8():
    v_theta, v_old, x_t, t, x0, v = problem()
    r = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = r * mean((v_theta - v) ** 2) + (1 - r) * mean((2 * v_old - v_theta - v) ** 2)
    torch.testing.assert_close(nft_loss(v_theta, v_old, x_t, t, x0, r, form="plain"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("beta", "clip"), [(1.0, 1.0), (0.1, 5.0)])
def test_the_best_step_of_the_plain_form_is_the_mean_of_advantage_times_error(beta, clip):
    """One D shared by all samples: the loss has its minimum at D* = E[A (v - v_old)] / (c b)."""
    _, v_old, x_t, t, x0, v = problem()
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 0.9], dtype=torch.float64)
    best = (advantage.reshape(-1, 1, 1) * (v - v_old)).mean(0) / (clip * beta)
    d = best.clone().requires_grad_(True)
    nft_loss(
        v_old + d, v_old, x_t, t, x0, advantage / (2 * clip) + 0.5, beta=beta, clip=clip, form="plain"
    ).mean().backward()
    torch.testing.assert_close(d.grad, torch.zeros_like(d), rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", ["self_normalised", "plain"])
def test_on_policy_the_value_ignores_the_advantage_and_the_gradient_does_not(form):
    _, v_old, x_t, t, x0, v = problem()
    values, gradients = [], []
    for r in (0.0, 0.5, 1.0):
        v_theta = v_old.clone().requires_grad_(True)
        each = nft_loss(v_theta, v_old, x_t, t, x0, torch.full_like(t, r), form=form)
        each.sum().backward()
        values.append(each.detach())
        gradients.append(v_theta.grad)
    torch.testing.assert_close(values[0], values[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[0], -gradients[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1], torch.zeros_like(gradients[1]), rtol=0, atol=1e-14)
    # Good samples pull towards their velocity: descending the gradient at r = 1 shrinks v_theta - v.
    assert ((gradients[2] * (v_old - v)).flatten(1).sum(1) > 0).all()


def test_off_policy_the_value_depends_on_the_advantage():
    args = problem(far=5.0)[:5]
    r = torch.zeros(5, dtype=torch.float64)
    assert ((nft_loss(*args, r) - nft_loss(*args, 1 - r)).abs() > 0.1).all()


def test_gradient_against_finite_differences_with_the_divisor_held():
    v_theta, v_old, x_t, t, x0, v = problem(far=3.0)
    beta, r = 0.4, torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    held = [mean((m - v).abs()) for m in ((1 - beta) * v_old + beta * v_theta, (1 + beta) * v_old - beta * v_theta)]

    def value(v_hat):
        good, bad = (1 - beta) * v_old + beta * v_hat, (1 + beta) * v_old - beta * v_hat
        terms = r * mean((good - v) ** 2) / held[0] + (1 - r) * mean((bad - v) ** 2) / held[1]
        return float((t * terms / beta).sum())

    wanted = v_theta.clone().requires_grad_(True)
    nft_loss(wanted, v_old, x_t, t, x0, r, beta=beta).sum().backward()
    for place in ((0, 1, 2), (2, 0, 0), (4, 1, 1)):
        shift = torch.zeros_like(v_theta)
        shift[place] = 1e-5
        difference = (value(v_theta + shift) - value(v_theta - shift)) / 2e-5
        assert wanted.grad[place].item() == pytest.approx(difference, rel=1e-6)


def test_the_old_policy_gets_no_gradient():
    v_theta, v_old, x_t, t, x0, _ = problem()
    v_old.requires_grad_(True)
    loss = nft_loss(v_theta.requires_grad_(True), v_old, x_t, t, x0, torch.full_like(t, 0.7))
    loss.sum().backward()
    assert v_old.grad is None and v_theta.grad.abs().sum() > 0


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="plain"):
        nft_loss(*problem()[:5], torch.zeros(5), form="simple")


# The agent


@pytest.fixture
def agent(toy):
    return DiffusionNFT(toy.policy(), toy.reward(), group_size=4)


def test_rows_are_samples_times_the_samplers_own_times(agent, toy):
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    assert len(rows) == 3 * 4 * 5  # int(0.99 * 6) of the 6 times
    sigmas = agent.policy.sigmas(6, None)[:-1]
    assert all(any(torch.equal(t, s) for s in sigmas) for t in rows["t"])
    samples, sample = shared(rows)
    for one in range(12):
        assert len(set(rows["t"][sample == one].tolist())) == 5
    assert torch.equal(rows["optimality"], 0.5 + 0.5 * rows["advantage"].clamp(-1, 1))
    assert samples["x0"].shape[0] == 12


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("all", [0.0, 0.3, 0.5, 0.7, 1.0]), ("positive_only", [0.5, 0.5, 0.5, 0.7, 1.0]),
        ("negative_only", [0.0, 0.3, 0.5, 0.5, 0.5]), ("one_only", [0.5, 0.5, 0.5, 0.6, 0.6]),
        ("binary", [0.4, 0.4, 0.5, 0.6, 0.6]),
    ],
)  # fmt: skip
def test_which_advantages_count(mode, expected, toy):
    """c = 5: advantages of -9, -2, 0, 2 and 9, by hand."""
    found = optimality(torch.tensor([-9.0, -2.0, 0.0, 2.0, 9.0]), 5.0, mode)
    torch.testing.assert_close(found, torch.tensor(expected))
    agent = DiffusionNFT(toy.policy(), toy.reward(), group_size=4, clip=5.0, adv_mode=mode)
    rows = agent.prepare(toy.collect(agent, torch.arange(3)))
    assert torch.equal(rows["optimality"], optimality(rows["advantage"], 5.0, mode))
    with pytest.raises(ValueError, match="adv_mode is one of all, .*got 'some'"):
        DiffusionNFT(toy.policy(), toy.reward(), group_size=4, adv_mode="some")


def test_samples_behind_rows_are_kept_once(agent, toy):
    rollout = toy.collect(agent, torch.arange(3))
    rows = agent.prepare(rollout)
    assert shared(rows)[0]["x0"].data_ptr() == rollout["x0"].data_ptr()
    assert shared(rows[7:9])[0]["cond", "mean"].data_ptr() == rollout["cond", "mean"].data_ptr()


def test_invalid_samples_are_not_trained_on(agent, toy):
    rollout = toy.collect(agent, torch.arange(2))
    rollout["valid"][1], rollout["valid"][5:8] = False, False  # one of the first group, three of the second
    rows = agent.prepare(rollout)
    assert set(shared(rows)[1].tolist()) == {0, 2, 3}
    assert agent.stats["groups_invalid"] == 1 and agent.stats["samples_invalid"] == 4


def test_an_iteration_may_leave_nothing(agent, toy):
    rollout = toy.collect(agent, torch.arange(2))
    rollout["valid"][:] = False
    assert len(agent.prepare(rollout)) == 0


def test_noise_is_fresh_in_each_update_and_the_same_in_each_microbatch(agent, toy):
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    whole, again = agent.loss(rows), agent.loss(rows)
    parts = [agent.loss(rows[i : i + 1])["loss_policy"].item() for i in range(len(rows))]
    assert float(whole["loss_policy"]) == float(again["loss_policy"])
    assert sum(parts) / len(parts) == pytest.approx(float(whole["loss_policy"]), rel=1e-5)
    agent.after_update()
    assert float(agent.loss(rows)["loss_policy"]) != float(whole["loss_policy"])


def test_each_time_of_a_sample_has_noise_of_its_own(agent, toy):
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))
    seen = []
    velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: seen.append(x) or velocity(x, t, cond)
    agent.loss(rows)
    samples, sample = shared(rows)
    s = rows["t"].reshape(-1, 1, 1, 1)
    eps = (seen[0] - (1 - s) * samples["x0"][sample]) / s
    assert len(torch.unique(eps[:, 0, 0, 0])) == len(rows)
    assert eps.mean().abs() < 5 / eps.numel() ** 0.5 and abs(eps.std() - 1) < 0.1


def diverge(policy, by=0.3):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


def test_forwards_are_saved_where_they_can_be(agent, toy):
    rows = agent.prepare(toy.collect(agent, torch.arange(1)))
    calls = agent.policy.calls
    calls.clear()
    agent.loss(rows)
    assert sorted(grad for _, grad in calls) == [False, True]  # the base and the learner; `old` is the learner
    diverge(agent.policy)
    calls.clear()
    terms = agent.loss(rows)
    assert sorted(grad for _, grad in calls) == [False, False, True]
    assert float(terms["deviation"]) > 0
    lean = DiffusionNFT(agent.policy, toy.reward(), group_size=4, kl=0.0)
    calls.clear()
    assert "loss_kl" not in lean.loss(rows)
    assert sorted(grad for _, grad in calls) == [False, True]


def test_kl_is_the_mean_square_distance_from_the_base(agent, toy):
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    agent.policy.sync("default", "old")
    diverge(agent.policy)  # the base, the old policy and the learner are three
    terms = agent.loss(rows)
    shift = agent.policy.learnt().detach()
    # The toy's velocity moves with the shift by -t / ((1 - t)^2 s^2 + t^2).
    slope = rows["t"] / (((1 - rows["t"]) * toy.spread) ** 2 + rows["t"] ** 2)
    assert float(terms["kl"]) == pytest.approx(float((slope**2).mean() * (shift**2).mean()), rel=1e-4)
    assert float(terms["loss_kl"]) == pytest.approx(1e-4 * float(terms["kl"]), rel=1e-6)


@pytest.mark.parametrize("form", ["self_normalised", "plain"])
def test_loss_is_nft_loss_of_the_two_adapters(toy, form):
    """Against a computation that knows nothing of the agent but its rows: the value far from the old policy."""
    agent = DiffusionNFT(toy.policy(), toy.reward(), group_size=4, beta=0.5, clip=2.0, form=form, kl=0.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    diverge(agent.policy)
    seen = []
    plain_velocity = agent.policy.velocity
    agent.policy.velocity = lambda x, t, cond: seen.append((x, plain_velocity(x, t, cond))) or seen[-1][1]
    value = float(agent.loss(rows)["loss_policy"])
    samples, sample = shared(rows)
    (x_t, v_theta), (x_again, v_old) = seen
    assert torch.equal(x_t, x_again) and not torch.equal(v_theta, v_old)
    r = (rows["advantage"].clamp(-2, 2) / 4 + 0.5).clamp(0, 1)
    each = nft_loss(v_theta, v_old, x_t, rows["t"], samples["x0"][sample], r, beta=0.5, clip=2.0, form=form)
    assert value == pytest.approx(float(each.mean()), rel=1e-6)


def test_gradient_of_the_agent_against_finite_differences(toy):
    policy = toy.policy().double()
    agent = DiffusionNFT(policy, toy.reward(), group_size=4, form="plain", kl=0.05)
    rollout = toy.collect(agent, torch.arange(2))
    rollout["x0"] = rollout["x0"].double()
    rows = agent.prepare(rollout)
    diverge(policy, 0.2)
    for _, parameter in policy.trainable_parameters():
        parameter.grad = None
    terms = agent.loss(rows)
    (terms["loss_policy"] + terms["loss_kl"]).backward()
    for _, parameter in policy.trainable_parameters():
        place, values = (0,) * parameter.dim(), []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[place] += shift
                terms = agent.loss(rows)
                values.append(float(terms["loss_policy"] + terms["loss_kl"]))
        with torch.no_grad():
            parameter[place] += 1e-5
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("schedule", ["on_policy", "linear", 0.3])
def test_old_follows_once_an_iteration(toy, schedule):
    policy = toy.policy()
    agent = DiffusionNFT(policy, toy.reward(), group_size=4, old=schedule)
    diverge(policy)
    with policy.adapter("old"):
        before = policy.learnt().clone()
    agent.after_update()
    agent.after_update()
    with policy.adapter("old"):
        assert torch.equal(policy.learnt(), before)
    learner = [p.clone() for _, p in policy.trainable_parameters()]
    held = {name: p.clone() for name, p in policy.core.named_parameters() if ".old." in name}
    agent.after_iteration()
    decay = {"on_policy": 0.0, "linear": 0.002, 0.3: 0.3}[schedule]
    now = {name: p for name, p in policy.core.named_parameters() if ".old." in name}
    for (name, was), theta in zip(held.items(), learner, strict=True):
        torch.testing.assert_close(now[name], decay * was + (1 - decay) * theta)


def test_evaluation_average_is_a_third_copy(toy):
    policy = toy.policy()
    agent = DiffusionNFT(policy, toy.reward(), group_size=4)
    start = [p.clone() for _, p in policy.trainable_parameters()]
    diverge(policy)
    agent.after_update()
    averages = [p for name, p in policy.core.named_parameters() if ".ema." in name]
    for average, was, (_, theta) in zip(averages, start, policy.trainable_parameters(), strict=True):
        torch.testing.assert_close(average, 2 / 11 * was + 9 / 11 * theta)  # (1 + s) / (10 + s) at s = 1


def test_filter_and_combine_reach_the_rows(toy):
    agent = DiffusionNFT(
        toy.policy(), toy.reward(), group_size=4,
        filter={"mean": -1e9, "limit": 1e9, "scale": 1.0},
    )  # fmt: skip
    assert len(agent.prepare(toy.collect(agent, torch.arange(2)))) == 0
    assert agent.stats["groups_filtered"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0.0}, "beta"), ({"clip": -1.0}, "clip"), ({"kl": -1.0}, "kl"), ({"time_share": 0.0}, "time_share"),
        ({"form": "x"}, "form"), ({"std": "x"}, "std"), ({"solver": "sde"}, "solver"), ({"old": "x"}, "old policy"),
        ({"epochs": 0}, "epochs"), ({"ema": 1.0}, "ema"), ({"filter": 3}, "GroupFilter"),
    ],
)  # fmt: skip
def test_hyperparameters_are_checked(toy, wrong, message):
    with pytest.raises(ValueError, match=message):
        DiffusionNFT(toy.policy(), toy.reward(), **wrong)


def test_a_policy_without_adapters_is_refused(toy):
    with pytest.raises(Incompatible, match=r"DiffusionNFT.*'toy'.*add_adapters"):
        DiffusionNFT(toy.policy(adapters=False), toy.reward())


def test_the_norm_guard_is_a_hinge_on_velocities_longer_than_the_bases(toy):
    """mean max(0, ||v|| / ||v_base|| - 1) in float64, of value and gradient; nothing where the base's are longer."""
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([[0.0, 4.0], [0.0, 4.0], [2.0, 0.0]], dtype=torch.float64)
    assert norm_excess(v, base).tolist() == pytest.approx([0.25, 0.0, 0.0])
    norm_excess(v, base).sum().backward()
    assert v.grad[:2].flatten().tolist() == pytest.approx([0.6 / 4, 0.8 / 4, 0.0, 0.0])
    agent = DiffusionNFT(toy.policy(), toy.reward(), group_size=4, kl=0.0, norm_guard=2.0)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    with torch.no_grad():
        for _, parameter in agent.policy.trainable_parameters():
            parameter.mul_(3.0).add_(0.5)
    terms = agent.loss(rows)
    _, _, x_t, cond = agent._noised(rows)
    with torch.no_grad():
        ours = agent.policy.velocity(x_t, rows["t"], cond)
        with agent.policy.adapter(None):
            theirs = agent.policy.velocity(x_t, rows["t"], cond)
    norms = [u.double().flatten(1).square().sum(1).sqrt() for u in (ours, theirs)]
    expected = float((norms[0] / norms[1] - 1).clamp_min(0).mean())
    assert expected > 0.01 and float(terms["norm_excess"]) == pytest.approx(expected, rel=1e-5)
    assert float(terms["loss_norm"].detach()) == pytest.approx(2 * expected, rel=1e-5)
    assert "kl" not in terms and agent.workload().beside[None] == 1.0
    with pytest.raises(ValueError, match="norm_guard of at least 0"):
        DiffusionNFT(toy.policy(), toy.reward(), group_size=4, norm_guard=-1.0)
