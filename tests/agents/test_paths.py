"""The ways of a reward's gradient, against sums written out in NumPy's float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from srgym.agents.paths import KnownNoise, Leaps, leap, recovered, travelled
from srgym.agents.refl import REFL
from srgym.policies.noise import Noise

D = 5


class Wave:
    """v(x, t) = sin(W x + theta + t), whose derivatives are known: by theta diag(cos), by x diag(cos) W."""

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.w, self.theta = draw.normal(size=(D, D)), draw.normal(size=D)
        self.learnt = torch.tensor(self.theta, requires_grad=True)
        self.times: list[tuple[list[float], bool]] = []

    def __call__(self, x, t, cond):
        self.times.append((t.tolist(), torch.is_grad_enabled()))
        return torch.sin(x @ torch.tensor(self.w).T + self.learnt + t[:, None])

    def v(self, x, t):
        return np.sin(self.w @ x + self.theta + t)

    def by_theta(self, x, t):
        return np.diag(np.cos(self.w @ x + self.theta + t))

    def by_x(self, x, t):
        return self.by_theta(x, t) @ self.w

    def path(self, x, times):
        states = [x]
        for t, t_next in pairwise(times):
            states.append(states[-1] + (t_next - t) * self.v(states[-1], t))
        return states


def torch64(*arrays):
    return [torch.tensor(np.asarray(array)) for array in arrays]


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_leaps_have_the_papers_gradient(discount):
    """LeapAlign's eq. 10: -j dv(x_j) - (k - j) dv(x_k) + alpha j (k - j) dv(x_j)/dx_j dv(x_k), d by theta."""
    wave, draw = Wave(), np.random.default_rng(1)
    x_k, x_j, x0, c = draw.normal(size=(4, D))
    k, j = 0.8, 0.35
    expected = -j * wave.by_theta(x_j, j) - (k - j) * wave.by_theta(x_k, k)
    expected += discount * j * (k - j) * wave.by_x(x_j, j) @ wave.by_theta(x_k, k)
    got, far = leap(wave, *(t[None] for t in torch64(x_k, x_j, x0)), *torch64([k], [j]), None, discount)
    (got[0] @ torch.tensor(c)).backward()
    np.testing.assert_allclose(wave.learnt.grad.numpy(), c @ expected, rtol=1e-12)
    np.testing.assert_allclose(got[0].detach().numpy(), x0, rtol=1e-12)  # the value is the sampler's own
    landed = x_k - (k - j) * wave.v(x_k, k), x_j - j * wave.v(x_j, j)
    np.testing.assert_allclose(far[:, 0].numpy(), [np.abs(x_j - landed[0]).mean(), np.abs(x0 - landed[1]).mean()])


def test_leaps_start_at_two_of_the_samplers_times_and_weigh_by_how_far_they_land():
    """Eq. 12: 1 / (max(d_j, tau) + max(d_0, tau)); every pair of times is drawn, each sample its own."""
    wave, times = Wave(), np.array([1.0, 0.7, 0.4, 0.2, 0.0])
    rows = 60
    x = np.random.default_rng(2).normal(size=(rows, D))
    x0, weight = Leaps(discount=0.3, floor=0.1)(wave, *torch64(x), None, torch.tensor(times), Noise(torch.arange(rows)))
    (k, grad_k), (j, grad_j) = wave.times[-2:]
    assert grad_k and grad_j and not any(grad for _, grad in wave.times[:-2])
    assert {(a, b) for a, b in zip(k, j, strict=True)} == {(a, b) for a in times[:4] for b in times[:4] if a > b}
    for row in range(rows):
        states = wave.path(x[row], times)
        at_k, at_j = (states[list(times).index(t)] for t in (k[row], j[row]))
        d_j = np.abs(at_j - (at_k - (k[row] - j[row]) * wave.v(at_k, k[row]))).mean()
        d_0 = np.abs(states[-1] - (at_j - j[row] * wave.v(at_j, j[row]))).mean()
        assert float(weight[row]) == pytest.approx(1 / (max(d_j, 0.1) + max(d_0, 0.1)), rel=1e-12)
        np.testing.assert_allclose(x0[row].detach().numpy(), states[-1], rtol=1e-9)
    assert not weight.requires_grad
    assert Leaps(floor=None)(wave, *torch64(x), None, torch.tensor(times), Noise(torch.arange(rows)))[1] is None


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.5, 0.4), (0.05, 0.0), (0.7, 0.0)])
def test_a_known_noise_leaves_the_image_and_the_learners_share(t, s):
    """[(1 - t) x0 + (t - s)(eps - v)] / (1 - s), and its slope -(t - s)/(1 - s) dv."""
    wave = Wave()
    x0, eps, c = np.random.default_rng(3).normal(size=(3, D))
    x_t = (1 - t) * x0 + t * eps
    expected = ((1 - t) * x0 + (t - s) * (eps - wave.v(x_t, t))) / (1 - s)
    got = recovered(wave, *(u[None] for u in torch64(x0, eps)), *torch64([t], [s]), None)
    np.testing.assert_allclose(got[0].detach().numpy(), expected, rtol=1e-12)
    (got[0] @ torch.tensor(c)).backward()
    slope = -(t - s) / (1 - s) * c @ wave.by_theta(x_t, t)
    np.testing.assert_allclose(wave.learnt.grad.numpy(), slope, rtol=1e-12)


def test_a_velocity_that_is_right_recovers_the_image_itself():
    """Where v is eps - x0 the estimate is x0, at any time."""
    x0, eps = torch64(*np.random.default_rng(4).normal(size=(2, 3, D)))
    t = torch.tensor([1.0, 0.6, 0.1], dtype=torch.float64)
    found = recovered(lambda x, t, cond: eps - x0, x0, eps, t, (t - 0.1).clamp_min(0), None)
    torch.testing.assert_close(found, x0)


def test_the_noise_is_the_samples_own_and_every_time_is_drawn():
    wave, times = Wave(), torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0], dtype=torch.float64)
    x = torch.randn(40, D, dtype=torch.float64)
    found, weight = KnownNoise(span=0.1)(wave, x, None, times, Noise(torch.arange(40)))
    t = torch.tensor(wave.times[-1][0], dtype=torch.float64)
    assert set(t.tolist()) == set(times[:4].tolist()) and weight is None
    assert [grad for _, grad in wave.times] == [False] * 4 + [True]
    x0 = travelled(wave, x, None, times)[-1]
    torch.testing.assert_close(found, recovered(wave, x0, x, t, t - 0.1, None))


@pytest.mark.parametrize(("settings", "message"), [
    ({"path": "jumps"}, "path is one of last_steps, leaps, known_noise, got 'jumps'"), ({"discount": 1.5}, "discount"),
    ({"floor": 0.0}, "floor"), ({"span": 0.0}, "span"), ({"path": "leaps", "steps": 1}, "2 for leaps"),
])  # fmt: skip
def test_hyperparameters_are_checked(toy, settings, message):
    with pytest.raises(ValueError, match=message):
        REFL(toy.policy(), toy.reward(), **settings)


@pytest.mark.parametrize(("path", "forwards"), [("leaps", (6, 2)), ("known_noise", (6, 1))])
def test_its_workload_is_what_it_runs(toy, path, forwards):
    agent = REFL(toy.policy(), toy.reward(), path=path, floor=None)
    rows = agent.prepare(toy.collect(agent, torch.arange(2)))
    agent.policy.calls.clear()
    agent.loss(rows)
    flags = [grad for _, grad in agent.policy.calls]
    assert (flags.count(False), flags.count(True)) == forwards
    assert (agent.workload().forwards, agent.workload().forwards_with_gradient) == forwards
