"""The compact policy: shapes for every scale and size, an exact latent, and rollouts that belong to their samples."""

import pytest
import torch

from srgym.policies import Sampling, available, derive_seeds, load, make
from srgym.policies.compact import CompactPolicy, bicubic

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 5)])
def test_any_scale_and_size(scale, size):
    policy = CompactPolicy(scale=scale, weights=None, encoder_width=8, encoder_depth=1, width=8, middle=8)
    sr = policy.predict(images(2, *size), steps=2)
    assert sr.shape == (2, 3, scale * size[0], scale * size[1])
    assert sr.min() >= 0 and sr.max() <= 1


def test_a_new_policy_predicts_the_bicubic_mean():
    policy = CompactPolicy(weights=None)
    lr = images(2, 8, 8)
    torch.testing.assert_close(policy.predict_mean(lr), bicubic(lr, 4))


@pytest.mark.parametrize("size", [(8, 8), (7, 13)])
def test_the_mean_turns_with_its_input(tiny_policy, size):
    """Whatever the weights: a turned or mirrored input gives the turned or mirrored mean; one pass of the encoder
    doesn't."""
    lr = images(2, *size)
    mean = tiny_policy.predict_mean(lr)
    torch.testing.assert_close(tiny_policy.predict_mean(lr.rot90(1, (-2, -1))), mean.rot90(1, (-2, -1)))
    torch.testing.assert_close(tiny_policy.predict_mean(lr.flip(-2)), mean.flip(-2))
    with torch.no_grad():
        one, other = (tiny_policy.encode({"lr": image})["mean"] for image in (lr[:1], lr[:1].flip(-1)))
    height, width = (4 * side for side in size)
    assert (one[..., :height, :width] - other[..., :height, :width].flip(-1)).abs().max() > 1e-3


def test_the_latent_keeps_luma_exactly(tiny_policy):
    """decode(to_latent(image)) has the image's luma; only chroma finer than eight pixels is left to the mean."""
    image = 0.3 + 0.4 * images(2, 32, 32)
    with torch.no_grad():
        cond = tiny_policy.encode({"lr": images(2, 8, 8, seed=3)})
        back = tiny_policy.decode(tiny_policy.to_latent(image, cond), cond)
    inside = (back > 0) & (back < 1)
    assert inside.float().mean() > 0.95
    whole = inside.all(1, keepdim=True)
    torch.testing.assert_close((LUMA * back).sum(1, keepdim=True)[whole], (LUMA * image).sum(1, keepdim=True)[whole])


def test_rollout_does_not_depend_on_the_cut_or_the_order(tiny_policy):
    lr = images(3, 8, 8)
    index, k = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    seeds = derive_seeds(0, 2, index, k)
    sampling = Sampling(steps=4, solver="sde", noise_level=0.7, record=True)
    whole = tiny_policy.rollout({"lr": lr}, sampling, seeds)
    alone = tiny_policy.rollout({"lr": lr[1:2]}, sampling, seeds[4:8])
    for key in ("sr", "x0", "latents", "log_prob"):
        torch.testing.assert_close(alone[key], whole[key][4:8], rtol=0, atol=1e-5)
    assert whole["latents"].shape[:2] == (12, 5) and whole["log_prob"].shape == (12, 4)
    assert torch.equal(whole["latents"][:, -1], whole["x0"])


def test_samples_of_a_group_differ_and_repeat_with_their_seed(tiny_policy):
    seeds = derive_seeds(0, 0, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    one, two = (tiny_policy.rollout({"lr": images(1, 8, 8)}, Sampling(), seeds)["sr"] for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one[0], one[1])


def test_the_temperature_is_the_spread_of_what_samples_begin_from(tiny_policy, tmp_path):
    cold = CompactPolicy(**{**tiny_policy.config, "temperature": 0.5})
    cold.load_state_dict(tiny_policy.state_dict())
    cold.save(tmp_path)
    lr, seeds = images(1, 16, 16), torch.arange(64)
    warm, cool, loaded = (
        policy.rollout({"lr": lr}, Sampling(steps=2, record=True), seeds)
        for policy in (tiny_policy, cold, load(tmp_path))
    )
    torch.testing.assert_close(cool["latents"][:, 0].std(), torch.tensor(0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(warm["latents"][:, 0] * 0.5 / tiny_policy.temperature, cool["latents"][:, 0])
    assert torch.equal(cool["sr"], loaded["sr"])
    assert cool["sr"].std(0).mean() < warm["sr"].std(0).mean()
    for temperature in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"temperature above 0 and at most 1, got {temperature}"):
            CompactPolicy(weights=None, temperature=temperature)


def test_the_window_is_where_noise_enters(tiny_policy):
    seeds = derive_seeds(0, 0, torch.tensor([0]))
    sampling = Sampling(steps=4, solver="sde", noise_level=0.7, window=(1, 2), record=True)
    log_prob = tiny_policy.rollout({"lr": images(1, 8, 8)}, sampling, seeds)["log_prob"][0]
    assert log_prob[0] == 0 and log_prob[3] == 0 and (log_prob[1:3] != 0).all()


def test_gradient_reaches_the_last_steps_only(tiny_policy):
    seeds = derive_seeds(0, 0, torch.tensor([0]))
    obs = {"lr": images(1, 8, 8)}
    assert not tiny_policy.rollout(obs, Sampling(steps=3), seeds)["sr"].requires_grad
    tiny_policy.rollout(obs, Sampling(steps=3, grad_last=1), seeds)["sr"].sum().backward()
    assert tiny_policy.flow.leave.weight.grad.abs().sum() > 0


def test_velocity_is_the_best_linear_prediction_before_training():
    """For x0, eps ~ N(0, 1) the regression of eps - x0 on x_t has the slope (2t - 1) / (t^2 + (1 - t)^2)."""
    policy = CompactPolicy(weights=None)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(64, 18, 8, 8, generator=generator) for _ in range(2))
    cond = policy.encode({"lr": images(64, 8, 8)})
    for t in (0.1, 0.5, 0.9):
        x = (1 - t) * x0 + t * eps
        v = policy.velocity(x, torch.full((64,), t), cond)
        slope = ((eps - x0) * x).sum() / x.square().sum()
        # 73,728 pairs: the slope's standard error is below 0.004
        assert abs((v * x).sum() / x.square().sum() - slope) < 0.02


def test_save_and_load(tmp_path, tiny_policy):
    tiny_policy.save(tmp_path)
    lr = images(1, 8, 8)
    assert torch.equal(load(tmp_path).predict(lr), tiny_policy.predict(lr))


def test_the_registry_knows_it_and_mistakes_are_named(tmp_path):
    assert "compact" in available()
    with pytest.raises(ValueError, match="did you mean 'compact'"):
        make("compcat")
    with pytest.raises(FileNotFoundError, match="policy.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match="by 1, 2, 3 or 4, got 5"):
        make("compact", scale=5)
    with pytest.raises(FileNotFoundError, match="no such file"):
        make("compact", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"solver": "heun"}, "unknown solver 'heun'"),
        ({"noise_level": 0.7}, "belongs to the solvers"),
        ({"solver": "sde"}, "belongs to the solvers"),
        ({"grad_last": 9}, "between 0 and the 6 steps"),
    ],
)
def test_impossible_sampling_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**kwargs)


def test_a_rollout_wants_whole_groups(tiny_policy):
    with pytest.raises(ValueError, match="a multiple of 2 seeds, got 3"):
        tiny_policy.rollout({"lr": images(2, 8, 8)}, Sampling(), torch.arange(3))
