"""The vector environment: groups, autoreset, wrappers, and the same scores as one environment at a time."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from srgym import rewards
from srgym.envs import SuperResolutionEnv, SuperResolutionVectorEnv
from srgym.envs import vector_env as module

ID = "srgym/SuperResolution-v0"
SMALL = {"name": "photographs", "size": 32, "crops": 20}


def half_scored(sr):
    """Scores bright images alone."""
    mean = sr.mean((1, 2, 3))
    return {"total": torch.where(mean > 0.5, mean, torch.nan), "bright": torch.where(mean > 0.5, mean, torch.nan)}


def rank(sr, group):
    """Place of an image in its group, by brightness."""
    mean = sr.mean((1, 2, 3))
    same = group[:, None] == group[None]
    return (same & (mean[:, None] > mean[None])).sum(1).float()


def actions(env, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((env.num_envs, *env.single_action_space.shape), dtype=np.float32)


@pytest.mark.parametrize("prompts", [False, True, "a photograph"])
def test_observations_and_actions_are_in_their_spaces(source, reward, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(ID, num_envs=4, group_size=2, source=source, reward=reward, prompts=prompts)
        observation, _ = env.reset(seed=0)
        assert observation in env.observation_space
        env.action_space.seed(0)
        action = env.action_space.sample()
        assert action in env.action_space
        observation, reward_, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        env.close()
    assert reward_.shape == (4,) and np.isfinite(reward_).all() and info["valid"].all()
    assert terminated.all() and not truncated.any()


def test_rows_of_a_group_are_contiguous_and_share_a_context():
    env = SuperResolutionVectorEnv(6, 3, SMALL)
    observation, info = env.reset(seed=1)
    assert info["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(info["index"][:3])) == len(set(info["index"][3:])) == 1 and info["index"][0] != info["index"][3]
    assert all((observation[row] == observation[row - row % 3]).all() for row in range(6))


def test_it_scores_as_single_environments_do():
    env, single = SuperResolutionVectorEnv(4, 2, SMALL), SuperResolutionEnv(SMALL)
    observation, info = env.reset(seed=0)
    action = actions(env)
    _, reward, _, _, told = env.step(action)
    for row in range(4):
        seen, _ = single.reset(options={"index": info["index"][row]})
        np.testing.assert_array_equal(seen, observation[row])
        _, alone, _, _, about = single.step(action[row])
        assert alone == pytest.approx(reward[row], rel=1e-6) and about["id"] == told["id"][row]


def test_a_reward_of_groups_sees_whole_groups():
    env = SuperResolutionVectorEnv(4, 2, SMALL, rewards.make(rank))
    env.reset(seed=0)
    levels = np.array([0.1, 0.2, 0.9, 0.8], np.float32)
    action = np.broadcast_to(levels[:, None, None, None], (4, 32, 32, 3))
    assert env.step(action)[1].tolist() == [0, 1, 1, 0]


def test_seeds():
    one, other = SuperResolutionVectorEnv(4, 1, SMALL), SuperResolutionVectorEnv(4, 1, SMALL)
    drawn = [one.reset(seed=5)[1]["index"].tolist(), one.reset()[1]["index"].tolist()]
    assert drawn == [other.reset(seed=5)[1]["index"].tolist(), other.reset()[1]["index"].tolist()]
    assert drawn[0] != drawn[1] != other.reset(seed=6)[1]["index"].tolist()


def test_without_autoreset_a_step_needs_a_reset():
    env = gymnasium.make_vec(ID, num_envs=2, source=SMALL)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    with pytest.raises(ResetNeeded):
        env.step(actions(env))
    env.reset(seed=0)
    env.step(actions(env))
    with pytest.raises(ResetNeeded, match="reset\\(\\) of all groups"):
        env.step(actions(env))


def test_a_mask_resets_whole_groups():
    env = SuperResolutionVectorEnv(4, 2, SMALL)
    before, info = env.reset(seed=0)
    env.step(actions(env))
    after, told = env.reset(options={"reset_mask": np.array([False, False, True, True]), "index": [7]})
    np.testing.assert_array_equal(before[:2], after[:2])
    assert told["index"].tolist() == [*info["index"][:2], 7, 7]
    assert told["_index"].tolist() == [False, False, True, True]
    with pytest.raises(ResetNeeded):
        env.step(actions(env))
    env.reset(options={"reset_mask": np.array([True, True, False, False])})
    env.step(actions(env))
    for mask, sentence in (
        (np.array([True, False, False, False]), "whole groups of 2 rows"),
        (np.array([True, True]), r"as bool \[4\] with at least one row, got bool \[2\]"),
        (np.zeros(4, bool), "at least one row"),
        (np.ones(4), "got float64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match=r"options\['index'\] for 2 groups, got \[4\]"):
        env.reset(options={"index": [0, 0, 1, 1]})
    with pytest.raises(ResetNeeded, match="first reset"):
        SuperResolutionVectorEnv(4, 2, SMALL).reset(options={"reset_mask": np.array([True, True, False, False])})


@pytest.mark.parametrize("mode", ["SameStep", "SAME_STEP", AutoresetMode.SAME_STEP])
def test_same_step_gives_the_next_contexts_and_the_last_ones(mode):
    env, manual = SuperResolutionVectorEnv(4, 2, SMALL, autoreset_mode=mode), SuperResolutionVectorEnv(4, 2, SMALL)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    first, about = env.reset(seed=0)
    manual.reset(seed=0)
    for seed in range(3):
        second, reward, terminated, _, info = env.step(actions(env, seed))
        _, expected, _, _, last = manual.step(actions(env, seed))
        np.testing.assert_array_equal(reward, expected)
        np.testing.assert_array_equal(np.stack(list(info["final_obs"])), first)
        np.testing.assert_array_equal(info["final_info"]["index"], about["index"])
        assert info["final_info"].keys() == last.keys() and info["_final_obs"].all() and terminated.all()
        next_, _ = manual.reset()
        np.testing.assert_array_equal(second, next_)
        first, about = second, info


def test_next_step_is_refused():
    for mode in ("NextStep", AutoresetMode.NEXT_STEP):
        with pytest.raises(ValueError, match="'NextStep' doesn't go with episodes of one step"):
            SuperResolutionVectorEnv(2, 1, SMALL, autoreset_mode=mode)
    with pytest.raises(ValueError, match="autoreset_mode is 'Disabled' or 'SameStep', got 'often'"):
        SuperResolutionVectorEnv(2, 1, SMALL, autoreset_mode="often")


def test_no_score_is_made_up():
    for told, chosen in ((np.nan, None), (-1.0, -1.0)):
        env = SuperResolutionVectorEnv(2, 2, SMALL, rewards.make(half_scored), invalid_reward=chosen)
        env.reset(seed=0)
        action = np.stack([np.zeros((32, 32, 3), np.float32), np.full((32, 32, 3), 0.75, np.float32)])
        _, reward, _, _, info = env.step(action)
        np.testing.assert_allclose(reward, [told, 0.75])
        assert info["valid"].tolist() == [False, True]
        assert info["components"]["_bright"].tolist() == [False, True]


def test_infos_follow_gymnasiums_form():
    env = DictInfoToList(SuperResolutionVectorEnv(2, 2, SMALL, rewards.make(half_scored)))
    env.reset(seed=0)
    _, _, _, _, infos = env.step(np.full((2, 32, 32, 3), 0.75, np.float32))
    assert infos[1]["valid"] and infos[1]["components"]["bright"] == pytest.approx(0.75) and infos[1]["group"] == 0


@pytest.mark.parametrize("mode", ["Disabled", "SameStep"])
def test_statistics_of_episodes(mode):
    env = RecordVectorStatistics(gymnasium.make_vec(ID, num_envs=3, source=SMALL, autoreset_mode=mode))
    env.reset(seed=0)
    for seed in range(2):
        _, reward, _, _, info = env.step(actions(env, seed))
        np.testing.assert_allclose(info["episode"]["r"], reward)
        assert info["episode"]["l"].tolist() == [1, 1, 1]
        if mode == "Disabled":
            env.reset()


def test_batch_spaces_are_built_when_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "batch_space", lambda space, n: asked.append(n) or space)
    env = gymnasium.make_vec(ID, num_envs=64, group_size=8, source=SMALL)
    env.reset(seed=0)
    env.step(actions(env))
    assert asked == []
    assert env.action_space is env.action_space and asked == [64]


def test_a_specification_survives_json():
    env = gymnasium.make_vec(ID, num_envs=4, group_size=2, source=SMALL, reward="ssim_y", autoreset_mode="SameStep")
    again = gymnasium.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.num_envs == 4 and again.group_size == 2
    np.testing.assert_array_equal(env.reset(seed=2)[0], again.reset(seed=2)[0])
    np.testing.assert_array_equal(env.step(actions(env))[1], again.step(actions(env))[1])


def test_rendering():
    env = SuperResolutionVectorEnv(2, 1, SMALL, render_mode="rgb_array")
    env.reset(seed=0)
    assert [frame.shape for frame in env.render()] == [(32, 104, 3)] * 2
    env.step(np.ones((2, 32, 32, 3), np.float32))
    assert all((frame[:, 36:68] == 255).all() for frame in env.render())
    env.reset(options={"reset_mask": np.array([True, False])})
    first, second = env.render()
    assert (first[:, 36:68] == 128).all() and (second[:, 36:68] == 255).all()
    assert SuperResolutionVectorEnv(2, 1, SMALL).render() is None


@pytest.mark.parametrize("rows, size", [(4, 3), (0, 1), (2, 0)])
def test_groups_must_fit(rows, size):
    with pytest.raises(ValueError, match=f"num_envs is a multiple of group_size, got {rows} rows in groups of {size}"):
        SuperResolutionVectorEnv(rows, size, SMALL)


def test_actions_of_another_shape_are_refused():
    env = SuperResolutionVectorEnv(2, 1, SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"of shape \[2, 32, 32, 3\], got float32 of \[1, 32, 32, 3\]"):
        env.step(actions(env)[:1])
