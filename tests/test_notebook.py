"""What a notebook shows of contexts, rewards, scores, intervals and runs: their numbers, their pictures, and no markup
that came in with a name."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from srgym import envs, make_runner, rewards
from srgym.notebook import picture, table
from srgym.rewards import RewardOutput
from srgym.runners.statistics import Interval


@pytest.fixture(scope="module")
def context():
    task = envs.SRTask(envs.make_source("photographs", split="test", size=32), prompts=True)
    return task.context([0, 1])


def cells(html):
    """The text of each row's cells, of HTML that is well formed."""
    tree = ElementTree.fromstring(re.sub(r"(<img[^>]*)>", r"\1/>", html))
    return [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]


def test_a_context_shows_its_images(context):
    assert repr(context) == "Context(2 of 8 x 8, x4, with ground truth: chelsea/0, chelsea/1)"
    html = context._repr_html_()
    assert cells(html)[0] == ["context", "LR", "HR", "prompt"]
    assert [row[0] for row in cells(html)[1:]] == context.ids and cells(html)[1][3] == context.prompt[0]
    lr, hr = (Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html)[:2])
    assert (lr.size, hr.size) == ((8, 8), (32, 32))
    assert np.array_equal(np.asarray(lr), (context.lr[0] * 255).round().byte().permute(1, 2, 0).numpy())


def test_scores_show_what_is_missing():
    scores = RewardOutput(
        torch.tensor([0.25, torch.nan, 0.75]), torch.tensor([True, False, True]), {"f": torch.ones(3)}
    )
    assert repr(scores) == "RewardOutput(3 images: mean 0.5, 0.25 to 0.75, 1 without, components f)"
    assert cells(scores._repr_html_()) == [
        ["image", "total", "f"], ["0", "0.25", "1"], ["1", "nan", "1"], ["2", "0.75", "1"],
    ]  # fmt: skip
    none = RewardOutput(torch.tensor([torch.nan]), torch.tensor([False]), {})
    assert repr(none) == "RewardOutput(1 image: no score, 1 without)"


def test_a_reward_says_what_it_needs_and_is():
    told = dict(cells(rewards.make("ssim_y")._repr_html_())[1:])
    assert (told["needs"], told["range"], told["gradient"]) == ("hr", "-1 to 1", "reaches SR")


def test_an_interval_says_what_it_rests_on():
    whole = Interval(0.0144, -0.0137, 0.0425, units=4, seeds=3, p=0.2)
    assert repr(whole) == "Interval(0.0144 [-0.0137, 0.0425], photographs=4, seeds=3, p=0.2)"
    assert cells(whole._repr_html_())[1] == ["0.0144 [-0.0137, 0.0425]", "4", "3", "0.2"]
    assert repr(Interval(1.0, np.nan, np.nan, 4, 2)) == "Interval(1 without bounds, photographs=4, seeds=2)"


def test_a_run_says_how_far_it_is(tmp_path):
    run = make_runner("experiment=smoke", "stages.reinforce.runner.iterations=1", out=str(tmp_path / "run"))
    assert repr(run) == f"Run('smoke' in {tmp_path / 'run'}: 0 of 3 stages done)"
    assert [row[3] for row in cells(run._repr_html_())[1:]] == ["not yet"] * 3
    run.learn()
    assert repr(run).endswith(": 3 of 3 stages done)")
    assert all(re.fullmatch(r"\d+ s", row[3]) for row in cells(run._repr_html_())[1:])


def test_what_comes_in_as_text_stays_text():
    html = table(["<b>"], [["<script>"]], caption="a & b")
    assert "<script>" not in html and cells(html) == [["<b>"], ["<script>"]]
    assert table([], [[picture(torch.zeros(3, 4, 8), side=16)]]).count('width="16" height="8"') == 1
