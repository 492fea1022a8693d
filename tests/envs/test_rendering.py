"""Faults over a picture: what is clean stays the grey picture, and heat rises with the fault."""

import numpy as np
import pytest
import torch

from srgym import rewards
from srgym.envs import SRTask, SuperResolutionEnv, SuperResolutionVectorEnv, sources
from srgym.envs.rendering import LEGEND_WIDTH, legend, overlay, panels

SMALL = {"name": "photographs", "size": 32, "crops": 4}


class Corner:
    """Finds the upper left quarter bad, and nothing else."""

    def __call__(self, sr):
        return sr.mean((1, 2, 3))

    def map(self, sr):
        fault = torch.zeros_like(sr[:, :1])
        fault[:, :, :16, :16] = 1
        return fault


def test_no_fault_is_the_grey_picture_and_the_worst_is_nearly_pale_yellow():
    image = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    clean = overlay(image, torch.zeros(1, 6, 5))
    torch.testing.assert_close(clean, (0.1 + 0.65 * luma).expand(3, 6, 5))
    worst = overlay(image, torch.ones(1, 6, 5))
    assert ((worst - torch.tensor([0.99, 1.0, 0.64]).view(3, 1, 1)).abs() < 0.1).all()


def test_on_mid_grey_heat_gets_lighter_from_a_third_up_and_redder_at_once():
    steps = torch.linspace(0, 1, 101).view(1, 1, 101)
    shown = overlay(torch.full((3, 1, 101), 0.5), steps)[:, 0]
    lightness = 0.299 * shown[0] + 0.587 * shown[1] + 0.114 * shown[2]
    assert (lightness[34:].diff() > 0).all()
    assert (shown[0] - shown[1])[10] > 0.05
    assert shown.min() >= 0 and shown.max() <= 1


def test_a_batch_is_overlaid_as_its_images_are():
    images, faults = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    both = overlay(images, faults)
    assert torch.equal(both[1], overlay(images[1], faults[1]))


def test_the_legend_runs_from_one_at_the_top_to_zero_and_names_both():
    scale = legend(40)
    assert scale.shape == (3, 40, LEGEND_WIDTH)
    bar, digits = scale[:, :, :8], scale[:, :, 8:]
    torch.testing.assert_close(bar[:, -1, 0], overlay(torch.full((3, 1, 1), 0.5), torch.zeros(1, 1, 1))[:, 0, 0])
    assert (bar[0, 0, 0], bar[2, 0, 0]) > (0.9, 0.5)
    for rows in (digits[:, :12], digits[:, -12:]):
        assert rows.min() < 0.3
    assert (digits[:, 16:24] == 1).all()


def test_a_frame_has_the_map_and_its_scale_at_the_right():
    lr, sr = torch.rand(3, 8, 8), torch.rand(3, 32, 32)
    plain = panels(lr, sr, None, 4)
    fault = Corner().map(sr[None])[0]
    frame = panels(lr, sr, None, 4, fault=fault, mapped=True)
    assert frame.shape == (32, 3 * 32 + 3 * 4 + LEGEND_WIDTH, 3)
    np.testing.assert_array_equal(frame[:, :68], plain)
    shown = frame[:, 72:104].astype(int)
    assert (shown[:16, :16, 0] > 220).all() and np.ptp(shown[16:], axis=2).max() <= 1


@pytest.mark.parametrize("vector", [False, True])
def test_an_environment_shows_the_map_of_a_reward_that_has_one(vector):
    env = (SuperResolutionVectorEnv(2, 1, SMALL, Corner, render_mode="rgb_array") if vector
           else SuperResolutionEnv(SMALL, Corner, render_mode="rgb_array"))  # fmt: skip
    env.reset(seed=0)
    before = env.render()[1] if vector else env.render()
    env.step(np.full((2, 32, 32, 3) if vector else (32, 32, 3), 0.5, np.float32))
    after = env.render()[1] if vector else env.render()
    assert before.shape == after.shape == (32, 4 * 32 + 4 * 4 + LEGEND_WIDTH, 3)
    assert (before[:, 108:140] == 128).all()
    assert (after[:16, 108:124, 0] > 220).all() and (np.ptp(after[16:, 108:140].astype(int), axis=2) <= 1).all()


def test_a_reward_without_a_map_says_so_and_one_of_a_wrong_shape_is_refused():
    task = SRTask(sources.make(SMALL), rewards.make("psnr_y"))
    context = task.context([0])
    assert not task.reward.has_map
    with pytest.raises(rewards.Incompatible, match="reward 'psnr_y' has no map of faults"):
        task.map(context, context.hr)

    class Flat(Corner):
        def map(self, sr):
            return sr.mean(1)

    with pytest.raises(ValueError, match=r"expected a map of shape \[1, 1, 32, 32\], got \[1, 32, 32\]"):
        SRTask(sources.make(SMALL), rewards.make(Flat)).map(context, context.hr)


def test_a_sum_shows_the_worst_of_its_parts_maps():
    both = rewards.make({"sum": {"psnr_y": 1.0, "corner": {"name": "finpercep", "weights": "random"}}})
    sr = torch.rand(2, 3, 32, 32)
    assert both.has_map
    assert not rewards.make({"sum": {"psnr_y": 1.0, "random": 1.0}}).has_map
    single = rewards.make("finpercep", weights="random")
    torch.testing.assert_close(both.map(sr), single.map(sr))
