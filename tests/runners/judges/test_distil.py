"""Distillation: the student learns the judge's order among one policy's samples, and sees no ground truth."""

import json
import math

import pytest
import torch

from srgym.policies.compact import CompactPolicy
from srgym.rewards.compass.compact import CompactCompass, load
from srgym.rewards.compass.train import Group as Taught
from srgym.rewards.serving.question import Reply
from srgym.runners.judges.distil import DistilSettings, agreement, distil, pair_loss, with_samples
from srgym.runners.judges.sft import from_png


def test_a_pair_counts_by_how_sure_the_judge_is_of_it():
    taught, said = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.3, 0.1, 0.7])
    noise = 0.5
    total, weight, gaps = 0.0, 0.0, 0.0
    for i in range(3):
        for j in range(3):
            gap = float(taught[i] - taught[j])
            w = 2 * (0.5 * (1 + math.erf(abs(gap) / (math.sqrt(2) * noise) / math.sqrt(2)))) - 1 if gap else 0.0
            weight, gaps = weight + w, gaps + w * abs(gap)
    for i in range(3):
        for j in range(3):
            gap = float(taught[i] - taught[j])
            w = 2 * (0.5 * (1 + math.erf(abs(gap) / (math.sqrt(2) * noise) / math.sqrt(2)))) - 1 if gap else 0.0
            margin = float(said[i] - said[j]) / (gaps / weight)
            total += w * math.log1p(math.exp(-math.copysign(1, gap) * margin)) if w else 0.0
    assert pair_loss(said, taught, noise).item() == pytest.approx(total / weight, rel=1e-5)
    # Samples that the judge doesn't tell apart teach nothing, and are no error.
    alike = torch.ones(3)
    said.requires_grad_()
    pair_loss(said, alike, noise).backward()
    assert said.grad.tolist() == [0.0] * 3


class Sharp:
    """A judge that rates an image by how much its neighbouring pixels differ."""

    def __init__(self):
        self.asked = 0

    def ask(self, questions, read):
        self.asked += len(questions)
        return [read(Reply(self.answer(question))) for question in questions]

    def answer(self, question):
        low, high = (min(4.0, 40 * from_png(image).diff(dim=-1).abs().mean().item()) for image in question.images)
        return f'{{"fidelity":0.50,"q_lr":{1 + low:.2f},"q_sr":{1 + high:.2f}}}'


def settings(**changes):
    return DistilSettings(**{"samples": 3, "sampler_steps": 2, "steps": 4, **changes})


def test_the_judge_is_asked_once_and_never_about_the_ground_truth(make_material, tiny_policy, tmp_path):
    material, judge = make_material(2, 3), Sharp()

    def forbidden(group):
        raise AssertionError("the student looked at the ground truth")

    material.images.hr = forbidden
    own = settings()
    asked = with_samples(material, tiny_policy, own)
    assert asked.groups[0].methods[3:] == (*3 * ["policy compact"], "the input, enlarged")
    assert asked.groups[0].quality == ()
    assert [asked.images.sr(1, 4) for _ in range(2)] == 2 * [asked.images.sr(1, 4)]
    assert asked.images.sr(0, 4) != asked.images.sr(1, 4)
    result = distil(judge, material, material, tiny_policy, own, tmp_path)
    assert judge.asked == 2 * 2 * (3 + 3 + 1)
    assert result["noise"] == pytest.approx(0.01 / math.sqrt(12))
    assert set(result["agreement"]) == {"inside_groups", "one_policy"}
    assert json.loads((tmp_path / "distillation.json").read_text())["samples"] == 3
    assert isinstance(load(tmp_path), CompactCompass)
    distil(judge, material, material, tiny_policy, own, tmp_path)
    assert judge.asked == 2 * 2 * (3 + 3 + 1)


def test_agreement_is_the_mean_over_photographs_with_its_error(make_material):
    torch.manual_seed(0)
    model = CompactCompass().eval()
    lessons = {}
    for i, name in enumerate(("barn/1", "barn/2", "lake/1")):
        lr, images = torch.rand(3, 8, 8), torch.rand(4, 3, 32, 32)
        with torch.no_grad():
            up = torch.nn.functional.interpolate(lr[None], size=(32, 32), mode="bicubic").clamp(0, 1)
            said = model.rate(up.expand_as(images), images)[0]
        # The teacher agrees with the student on the second barn and the lake, and says the opposite of the first barn.
        taught = said if i else -said
        lessons[name] = Taught(lr, images, 4 * ("policy",), taught, taught, taught[None])
    found = agreement(model, lessons, {name: name.split("/")[0] for name in lessons})["one_policy"]
    assert found["spearman"] == pytest.approx((0 + 1) / 2)  # photographs: (-1 + 1) / 2, and 1
    assert found["error"] == pytest.approx(0.5)
    assert (found["photographs"], found["groups"]) == (2, 3)


def test_a_policy_of_another_scale_and_a_judge_without_noise_are_refused(make_material):
    policy = CompactPolicy(weights=None, scale=2, encoder_width=8, encoder_depth=1, width=8, middle=8)
    with pytest.raises(ValueError, match=r"expected samples of the candidates' size, \(64, 64\), got \(32, 32\)"):
        with_samples(make_material(1, 2), policy, settings()).images.sr(0, 2)
    with pytest.raises(ValueError, match="a judge is asked several times to know its noise, which it has at a temp"):
        settings(repeats=3)


@pytest.mark.campaign
def test_a_student_learns_the_order_of_a_judge_that_is_sure(make_material, tiny_policy, tmp_path):
    result = distil(
        Sharp(), make_material(24, 3), make_material(8, 3), tiny_policy, settings(samples=8, steps=300), tmp_path
    )
    assert result["agreement"]["one_policy"]["spearman"] > 0.6
