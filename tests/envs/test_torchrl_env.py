"""The TorchRL environment: its checker, groups, partial resets, and TorchRL's own collector."""

import warnings

import pytest
import torch

from srgym import rewards
from srgym.envs import SuperResolutionTorchEnv
from srgym.rewards.base import Incompatible

SMALL = {"name": "photographs", "size": 32, "crops": 20}


def half_scored(sr):
    """Scores bright images alone."""
    mean = sr.mean((1, 2, 3))
    return torch.where(mean > 0.5, mean, torch.nan)


@pytest.mark.parametrize("prompts", [False, True, "a photograph"])
def test_torchrls_checker_has_nothing_to_say(source, reward, prompts):
    from torchrl.envs import check_env_specs

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = SuperResolutionTorchEnv(2, 3, source, reward, prompts)
        check_env_specs(env, seed=0, break_when_any_done="both")


def test_rows_of_a_group_share_a_context_and_are_scored():
    env = SuperResolutionTorchEnv(2, 3, SMALL, "ssim_y", seed=0)
    start = env.reset()
    assert start.batch_size == (2, 3) and start["lr"].shape == (2, 3, 3, 8, 8)
    assert (start["index"] == start["index"][:, :1]).all() and not start["valid"].any()
    samples = [env.task.source[int(i)] for i in start["index"][:, 0]]
    best = torch.stack([sample.hr for sample in samples])[:, None].expand(2, 3, -1, -1, -1)
    other = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([True, False, False]).view(1, 3, 1, 1, 1)
    end = env.step(start.set("action", torch.where(first, best, other)))["next"]
    torch.testing.assert_close(end["reward"][:, 0, 0], torch.ones(2))
    for g, sample in enumerate(samples):
        expected = rewards.make("ssim_y")(other[g], hr=sample.hr[None].expand(3, -1, -1, -1)).total
        torch.testing.assert_close(end["reward"][g, 1:, 0], expected[1:])
        assert torch.equal(end["lr"][g, 2], sample.lr)
    assert end["done"].all() and end["terminated"].all() and not end["truncated"].any() and end["valid"].all()


def test_seeds():
    one, other = SuperResolutionTorchEnv(4, 1, SMALL, seed=1), SuperResolutionTorchEnv(4, 1, SMALL, seed=1)
    first = one.reset()["index"]
    assert torch.equal(first, other.reset()["index"]) and not torch.equal(first, one.reset()["index"])
    one.set_seed(5)
    again = one.reset()["index"]
    one.set_seed(5)
    assert torch.equal(again, one.reset()["index"])


def test_a_partial_reset_is_of_whole_groups():
    env = SuperResolutionTorchEnv(2, 2, SMALL, seed=0)
    state = env.rand_step(env.reset())["next"].select("lr", "index", "valid", "done", "terminated", "truncated")
    before = state.clone()
    mask = torch.tensor([[[False], [False]], [[True], [True]]])
    after = env.reset(state.set("_reset", mask))
    assert torch.equal(after["index"][0], before["index"][0]) and torch.equal(after["lr"][0], before["lr"][0])
    assert not torch.equal(after["lr"][1], before["lr"][1])
    assert after["valid"].squeeze(-1).tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match="a reset of whole groups of 2 rows"):
        env.reset(before.set("_reset", torch.tensor([[[True], [False]], [[True], [True]]])))


def test_no_score_is_made_up():
    for told, chosen in ((torch.nan, None), (-1.0, -1.0)):
        env = SuperResolutionTorchEnv(1, 2, SMALL, rewards.make(half_scored), invalid_reward=chosen)
        levels = torch.tensor([0.0, 0.75]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 32, 32)
        end = env.step(env.reset().set("action", levels))["next"]
        assert end["reward"].flatten().tolist() == pytest.approx([told, 0.75], nan_ok=True)
        assert end["valid"].flatten().tolist() == [False, True]


def test_prompts_are_observed():
    env = SuperResolutionTorchEnv(2, 2, SMALL, prompts=True, seed=0)
    start = env.reset()
    for g in range(2):
        wanted = env.task.source[int(start["index"][g, 0])].prompt
        assert start[g, 0]["prompt"] == start[g, 1]["prompt"] == wanted


def test_torchrls_collector_gathers_episodes():
    from torchrl.collectors import Collector

    env = SuperResolutionTorchEnv(2, 3, SMALL, prompts="a photograph", seed=0)
    collector = Collector(env, None, frames_per_batch=12, total_frames=24)
    batches = list(collector)
    collector.shutdown()
    assert [tuple(batch.batch_size) for batch in batches] == [(2, 3, 2)] * 2
    for batch in batches:
        assert batch["next", "terminated"].all() and torch.isfinite(batch["next", "reward"]).all()
        assert not torch.equal(batch["index"][..., 0], batch["index"][..., 1])  # each step is a new episode
        assert torch.equal(batch["lr"], batch["next", "lr"])


def test_what_cannot_work_is_refused(folders):
    with pytest.raises(Incompatible, match="'psnr_y' needs 'hr'"):
        SuperResolutionTorchEnv(source={"name": "lr_folder", "path": folders["lr"]})
    with pytest.raises(ValueError, match="groups and group_size are at least 1, got 0 and 2"):
        SuperResolutionTorchEnv(0, 2, SMALL)
