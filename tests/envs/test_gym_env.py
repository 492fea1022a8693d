"""The Gymnasium environment: its checker, seeds, episodes, wrappers, and its specification through JSON."""

import json
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo

import srgym  # registers
from srgym import rewards
from srgym.envs import SuperResolutionEnv, sources
from srgym.rewards.base import Incompatible

ID = "srgym/SuperResolution-v0"
SMALL = {"name": "photographs", "size": 32, "crops": 20}


def half_scored(sr):
    """Scores bright images alone."""
    mean = sr.mean((1, 2, 3))
    return {"total": torch.where(mean > 0.5, mean, torch.nan), "mean": mean, "absent": mean * torch.nan}


def sample(env, seed=0):
    env.action_space.seed(seed)
    return env.action_space.sample()


@pytest.mark.parametrize("prompts", [False, True, "a photograph"])
def test_gymnasiums_checker_has_nothing_to_say(source, reward, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, source=source, reward=reward, prompts=prompts)
        check_env(env.unwrapped)
        env.close()


def test_spaces():
    env = SuperResolutionEnv(SMALL)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    assert env.action_space == gymnasium.spaces.Box(0, 1, (32, 32, 3), np.float32)


def test_prompts_are_observed(source, reward):
    env = SuperResolutionEnv(source, reward, prompts=True)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation["prompt"] == env.task.source[info["index"]].prompt
    fixed = SuperResolutionEnv(source, reward, prompts="ein schönes Bild")
    observation, _ = fixed.reset(seed=0)
    assert observation in fixed.observation_space and observation["prompt"] == "ein schönes Bild"


def test_an_episode_is_one_step_scored_by_the_reward():
    env = SuperResolutionEnv(SMALL, "ssim_y")
    observation, info = env.reset(seed=3)
    context = env.task.source[info["index"]]
    assert info["id"] == context.id
    np.testing.assert_array_equal(observation, np.rint(context.lr.permute(1, 2, 0).numpy() * 255))
    action = sample(env)
    after, reward, terminated, truncated, info = env.step(action)
    np.testing.assert_array_equal(after, observation)
    expected = rewards.make("ssim_y")(torch.from_numpy(action).permute(2, 0, 1)[None], hr=context.hr[None])
    assert reward == pytest.approx(float(expected.total)) and type(reward) is float
    assert (terminated, truncated, info["valid"]) == (True, False, True)
    with pytest.raises(ResetNeeded, match="one step"):
        env.step(action)


def test_ground_truth_is_the_best_action():
    env = SuperResolutionEnv(SMALL, "ssim_y")
    _, info = env.reset(seed=0)
    best = env.task.source[info["index"]].hr.permute(1, 2, 0).numpy()
    assert env.step(best)[1] == pytest.approx(1)


def test_seeds():
    one, other = SuperResolutionEnv(SMALL), SuperResolutionEnv(SMALL)
    drawn = [one.reset(seed=5)[1]["index"]] + [one.reset()[1]["index"] for _ in range(10)]
    assert drawn == [other.reset(seed=5)[1]["index"]] + [other.reset()[1]["index"] for _ in range(10)]
    assert drawn != [other.reset(seed=6)[1]["index"]] + [other.reset()[1]["index"] for _ in range(10)]
    assert len(set(drawn)) > 5
    assert one.reset(options={"index": 4})[1]["index"] == 4


def test_an_action_is_clipped_and_never_misread():
    env = SuperResolutionEnv(SMALL)
    env.reset(seed=0)
    action = sample(env)
    inside = env.step(np.where(action > 0.5, 1, 0).astype(np.float32))[1]
    env.reset(seed=0)
    assert env.step(np.where(action > 0.5, 1.7, -3).astype(np.float32))[1] == inside
    for wrong, came in ((action[:16], r"float32 of \[1, 16, 32, 3\]"), ((action * 255).astype(np.uint8), "uint8 of")):
        env.reset(seed=0)
        with pytest.raises(ValueError, match=rf"SR as floats in \[0, 1\] of shape \[1, 32, 32, 3\], got {came}"):
            env.step(wrong)


@pytest.mark.parametrize("action", [np.full((32, 32, 3), np.nan, np.float32), np.zeros((32, 32, 3), np.float32)])
def test_no_score_is_made_up(action):
    for told, chosen in ((np.nan, None), (-1.0, -1.0)):
        env = SuperResolutionEnv(SMALL, rewards.make(half_scored), invalid_reward=chosen)
        env.reset(seed=0)
        _, reward, terminated, _, info = env.step(action)
        assert terminated and info["valid"] is False
        assert reward == pytest.approx(told, nan_ok=True)


def test_components_are_told_where_there_are_some():
    env = SuperResolutionEnv(SMALL, rewards.make(half_scored))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.full((32, 32, 3), 0.75, np.float32))
    assert info["components"] == {"mean": pytest.approx(0.75)} and reward == pytest.approx(0.75)


def test_rendering():
    env = SuperResolutionEnv(SMALL, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="nothing to render"):
        env.render()
    observation, info = env.reset(seed=0)
    before = env.render()
    assert before.shape == (32, 3 * 32 + 2 * 4, 3) and before.dtype == np.uint8
    np.testing.assert_array_equal(before[:, :32], observation.repeat(4, 0).repeat(4, 1))
    assert (before[:, 32:36] == 255).all() and (before[:, 36:68] == 128).all()
    env.step(np.ones((32, 32, 3), np.float32))
    after = env.render()
    assert (after[:, 36:68] == 255).all()
    hr = env.task.source[info["index"]].hr
    np.testing.assert_array_equal(after[:, 72:], np.rint(hr.permute(1, 2, 0).numpy() * 255))
    assert SuperResolutionEnv(SMALL).render() is None
    with pytest.raises(ValueError, match="render_mode is 'rgb_array' or None, got 'human'"):
        SuperResolutionEnv(SMALL, render_mode="human")


def test_rendering_without_ground_truth(folders):
    env = SuperResolutionEnv({"name": "lr_folder", "path": folders["lr"]}, "random", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (64, 2 * 64 + 4, 3)


def test_a_specification_survives_json(folders):
    arguments = {
        "source": {"name": "hr_folder", "path": folders["hr"], "size": 32, "preset": "bicubic"},
        "reward": {"sum": {"psnr_y": 1.0, "ssim_y": 10.0}},
        "prompts": "a photograph",
    }
    env = gymnasium.make(ID, **arguments)
    text = env.spec.to_json()
    json.loads(text)
    again = gymnasium.make(EnvSpec.from_json(text))
    first, second = env.reset(seed=1), again.reset(seed=1)
    np.testing.assert_array_equal(first[0]["lr"], second[0]["lr"])
    action = sample(env)
    assert env.step(action)[1] == again.step(action)[1]
    assert again.unwrapped.task.reward.name == env.unwrapped.task.reward.name


def test_importing_registers_and_needs_no_torch():
    code = (
        "import sys, srgym, gymnasium; spec = gymnasium.spec('srgym/SuperResolution-v0');"
        "assert spec.max_episode_steps is None; assert 'torch' not in sys.modules; srgym.register_envs()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert srgym.__version__


def test_it_can_be_made_through_its_module():
    assert gymnasium.make(f"srgym:{ID}", source=SMALL).spec.id == ID


def test_statistics_of_episodes():
    env = RecordEpisodeStatistics(gymnasium.make(ID, source=SMALL))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(sample(env))
    assert info["episode"]["l"] == 1 and info["episode"]["r"] == pytest.approx(reward)


def test_a_video_is_recorded(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # moviepy's own
        env = RecordVideo(gymnasium.make(ID, source=SMALL, render_mode="rgb_array"), str(tmp_path), lambda n: True)
        env.reset(seed=0)
        env.step(sample(env))
        env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 0


def test_gymnasiums_own_vectorisation():
    envs = SyncVectorEnv([lambda: gymnasium.make(ID, source=SMALL, prompts=True) for _ in range(3)])
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space and observation["lr"].shape == (3, 8, 8, 3)
    envs.action_space.seed(0)
    _, reward, terminated, _, info = envs.step(envs.action_space.sample())
    assert terminated.all() and info["valid"].all() and np.isfinite(reward).all()


def test_images_of_different_sizes_need_a_crop(tmp_path, draw):
    draw(tmp_path / "a.png", 64, 64)
    draw(tmp_path / "b.png", 64, 80)
    source = {"name": "hr_folder", "path": str(tmp_path)}
    with pytest.raises(ValueError, match=r"'hr_folder' differ: give it size=\.\.\., .* or use srgym\.envs\.SRTask"):
        SuperResolutionEnv(source)
    assert SuperResolutionEnv(source | {"size": 32}).action_space.shape == (32, 32, 3)


def test_what_cannot_work_is_refused_at_construction(folders):
    with pytest.raises(Incompatible, match="'psnr_y' needs 'hr'"):
        gymnasium.make(ID, source={"name": "lr_folder", "path": folders["lr"]})
    with pytest.raises(ValueError, match="did you mean 'photographs'"):
        gymnasium.make(ID, source="photograph")
    with pytest.raises(ValueError, match="did you mean 'ssim_y'"):
        gymnasium.make(ID, source=SMALL, reward="ssim-y")


def test_made_parts_are_taken_as_they_are():
    made = sources.make(SMALL)
    assert SuperResolutionEnv(made, rewards.make("ssim_y")).task.source is made


def test_the_documentation_has_gymnasiums_sections():
    for title in ("Description", "Observation Space", "Action Space", "Rewards", "Starting State", "Episode End"):
        assert f"## {title}\n" in SuperResolutionEnv.__doc__
