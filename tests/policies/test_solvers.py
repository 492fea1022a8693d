"""Each solver against the formula of its paper, its order, and the marginals it promises."""

import math

import pytest
import torch

from srgym.policies import solvers

B = 4
torch.manual_seed(0)
X = torch.randn(B, 3, 5, dtype=torch.float64)
V = torch.randn(B, 3, 5, dtype=torch.float64)
T = torch.tensor([0.9, 0.7, 0.5, 0.3], dtype=torch.float64)
T_NEXT = T - 0.15
NOISE = torch.randn(B, 3, 5, dtype=torch.float64)


def test_sde_step_is_the_formula_of_flow_grpo_sample_by_sample():
    a = 0.7
    got, log_prob = solvers.sde_step(V, X, T, T_NEXT, a, noise=NOISE)
    for i in range(B):
        t, dt = T[i].item(), (T_NEXT[i] - T[i]).item()
        s = a * math.sqrt(t / (1 - t))
        mean = X[i] * (1 + s**2 * dt / (2 * t)) + V[i] * (1 + s**2 * (1 - t) / (2 * t)) * dt
        std = s * math.sqrt(-dt)
        expected = mean + std * NOISE[i]
        normal = torch.distributions.Normal(mean, std)
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_prob[i], normal.log_prob(expected).mean(), rtol=0, atol=1e-12)


def test_the_function_that_sampled_is_the_function_that_scores():
    for step, extra in ((solvers.sde_step, {}), (solvers.cps_step, {}), (solvers.dance_step, {})):
        drawn, log_prob = step(V, X, T, T_NEXT, 0.5, noise=NOISE, **extra)
        again, scored = step(V, X, T, T_NEXT, 0.5, x_next=drawn, **extra)
        assert torch.equal(again, drawn) and torch.equal(scored, log_prob)


def test_sde_at_one_needs_the_cap_and_uses_it_there_only():
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x, v, n = X[:2], V[:2], NOISE[:2]
    with pytest.raises(ValueError, match="t_cap"):
        solvers.sde_step(v, x, t, t - 0.2, 0.7, noise=n)
    capped, _ = solvers.sde_step(v, x, t, t - 0.2, 0.7, noise=n, t_cap=0.9)  # not the next time, which is 0.8
    s = 0.7 * math.sqrt(1 / (1 - 0.9))
    expected = x[0] * (1 - s**2 * 0.2 / 2) + v[0] * -0.2 + s * math.sqrt(0.2) * n[0]
    torch.testing.assert_close(capped[0], expected, rtol=0, atol=1e-12)
    plain, _ = solvers.sde_step(v[1:], x[1:], t[1:], t[1:] - 0.2, 0.7, noise=n[1:])
    assert torch.equal(capped[1:], plain)


def test_cps_step_is_its_formula_and_keeps_the_coefficients():
    a = 0.6
    got, log_prob = solvers.cps_step(V, X, T, T_NEXT, a, noise=NOISE)
    for i in range(B):
        t, u = T[i].item(), T_NEXT[i].item()
        s = u * math.sin(a * math.pi / 2)
        x0, x1 = X[i] - t * V[i], X[i] + (1 - t) * V[i]
        mean = (1 - u) * x0 + math.sqrt(u**2 - s**2) * x1
        torch.testing.assert_close(got[i], mean + s * NOISE[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(log_prob[i], -((s * NOISE[i]) ** 2).mean(), rtol=0, atol=1e-12)


def test_dance_step_is_its_formula():
    eta = 0.3
    got, _ = solvers.dance_step(V, X, T, T_NEXT, eta, noise=NOISE)
    for i in range(B):
        t, dt = T[i].item(), (T_NEXT[i] - T[i]).item()
        x0 = X[i] - t * V[i]
        drift = V[i] + eta**2 * (X[i] - (1 - t) * x0) / (2 * t**2)
        torch.testing.assert_close(got[i], X[i] + drift * dt + eta * math.sqrt(-dt) * NOISE[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [solvers.sde_step, solvers.cps_step, solvers.dance_step])
def test_without_noise_every_stochastic_step_tends_to_euler(step):
    got, _ = step(V, X, T, T_NEXT, 1e-6, noise=NOISE)
    torch.testing.assert_close(got, solvers.euler_step(V, X, T, T_NEXT), rtol=0, atol=1e-5)


def gaussian_velocity(x, t, sigma=0.5):
    """The exact velocity for x0 ~ N(0, sigma^2), eps ~ N(0, 1): E[eps - x0 | x_t] in closed form."""
    variance = (1 - t) ** 2 * sigma**2 + t**2
    return x * (t - (1 - t) * sigma**2) / variance


def integrate(steps, kind, x):
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    memory = None
    for i in range(steps):
        t, u = times[i].expand(len(x)), times[i + 1].expand(len(x))
        v = gaussian_velocity(x, times[i])
        if kind == "euler":
            x = solvers.euler_step(v, x, t, u)
        elif kind == "dpm2m":
            x, memory = solvers.dpm2m_step(v, x, t, u, memory)
        else:
            x, _ = solvers.sde_step(v, x, t, u, 0.5, generator=torch.Generator().manual_seed(100 + i), t_cap=times[1])
    return x


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("dpm2m", 2)])
def test_order_of_convergence(kind, order):
    """The exact flow of a Gaussian is x -> sigma x, so the error and its order are known."""
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(integrate(n, kind, x).item() - 0.5) for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) > order - 0.3


def test_the_sde_keeps_the_marginals_of_the_ode():
    x = torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = integrate(60, "sde", x)
    # 16,000 numbers: the standard error of the deviation is 0.003; the rest is the error of 60 Euler steps
    assert abs(out.std() - 0.5) < 0.015 and abs(out.mean()) < 0.015


def test_cps_keeps_the_amount_of_noise():
    """Handed the exact velocity of one (x0, eps), the next state holds (1 - t') x0 and noise of variance t'^2."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, noise = torch.randn(3, 1, 40000, dtype=torch.float64, generator=generator)
    t, u = torch.tensor([0.8]), torch.tensor([0.6])
    out, _ = solvers.cps_step(eps - x0, 0.2 * x0 + 0.8 * eps, t, u, 0.7, noise=noise)
    # 40,000 numbers: the standard error of a deviation of 0.6 is 0.002
    assert abs((out - 0.4 * x0).std() - 0.6) < 0.01


def test_log_probabilities_are_float32_whatever_the_model_computes_in():
    half = [z.to(torch.bfloat16) for z in (V, X)]
    _, log_prob = solvers.sde_step(*half, T, T_NEXT, 0.5, noise=NOISE)
    assert log_prob.dtype == torch.float32
