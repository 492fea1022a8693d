"""The miniature of COMPASS's pipeline: what is made, how it is labelled, and that a scorer learns the labels."""

from dataclasses import replace

import pytest
import torch

from srgym import rewards
from srgym.envs import SRTask, sources
from srgym.rewards.audit.faults import FAULTS, faults_of, spoilt
from srgym.rewards.compass.compact import CompactCompass
from srgym.rewards.compass.train import (
    Group,
    _family_loss,
    _flattered,
    _known_order,
    _loss,
    _order_loss,
    correlations,
    label,
    predict,
    train_scorer,
)
from srgym.runners.reward_models.compass import ScorerSettings, candidates, make_groups, shaken


@pytest.fixture
def context():
    source = sources.make("photographs", split="train", size=32, crops=4)
    sample = source[1]
    return sample.lr[None], sample.hr[None]


def test_candidates_are_many_kinds_of_one_size_and_repeat_with_the_seed(tiny_policy, context):
    lr, hr = context
    made = candidates(lr, hr, {"base": tiny_policy}, steps=2, seed=3)
    kinds = [kind for kind, _ in made]
    assert kinds[-1] == "bicubic" and {"truth", "mean", "nearest"} < set(kinds) and kinds.count("base") == 6
    for image, count in (("truth", 6), ("sample", 4), ("bicubic", 3)):
        faults = {kind for kind in kinds if kind.startswith(f"{image}, ")}
        assert len(faults) == count and {fault.partition(", ")[2] for fault in faults} <= set(FAULTS)
    assert all(image.shape == hr.shape and image.min() >= 0 and image.max() <= 1 for _, image in made)
    again = candidates(lr, hr, {"base": tiny_policy}, steps=2, seed=3)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(made, again, strict=True))


def test_the_truth_is_labelled_best_and_faults_lower(tiny_policy, context):
    lr, hr = context
    made = candidates(lr, hr, {"base": tiny_policy}, steps=1, seed=0)
    group = label([(lr, hr, [("truth, noise", spoilt(hr, "noise", 0.5)), *made])])[0]
    quality = dict(zip(group.kinds, group.quality.tolist(), strict=True))
    fidelity = dict(zip(group.kinds, group.fidelity.tolist(), strict=True))
    assert quality["truth"] == max(quality.values()) and fidelity["truth"] == max(fidelity.values())
    assert quality["truth"] > quality["bicubic"] and fidelity["truth"] > fidelity["truth, noise"]
    assert quality["truth"] > quality["truth, noise"]
    assert all(1 <= q <= 5 for q in quality.values())
    assert [len(rows) for rows in group.families()] == [6]


def test_a_family_is_ranked_in_its_own_unit():
    """Labels that differ by a thousandth rank the samples of a policy as those that differ by one do."""
    predicted, target = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert _family_loss(predicted, 1e-3 * target).item() == pytest.approx(0.0, abs=1e-5)
    assert _family_loss(predicted, -target).item() == pytest.approx(2.0, abs=1e-5)
    both = torch.cat([target, -1e-3 * target])  # judges that disagree everywhere say nothing
    assert _family_loss(predicted, both).item() == pytest.approx(1.0, abs=1e-5)


def test_flattered_images_stay_within_two_grey_levels_and_score_higher():
    torch.manual_seed(0)
    model, group = CompactCompass(widths=(8, 8, 8), hidden=16).eval(), synthetic_groups(1, seed=5)[0]
    flattered = _flattered(model, group.lr, group.images, torch.Generator().manual_seed(0), 2 / 255)
    moved = (flattered - group.images).abs().amax((1, 2, 3))
    assert moved.max() <= 2.501 / 255  # two, and the rounding to 8 bits
    assert (moved < 0.51 / 255).any() and (moved > 1 / 255).any()
    gain = predict(model, group.lr, flattered)[0] - predict(model, group.lr, group.images)[0]
    assert gain[moved > 1 / 255].min() > 0


def test_the_truth_is_learnt_to_be_above_faults_that_nobody_labelled():
    generator, truth = torch.Generator().manual_seed(0), synthetic_groups(1, seed=5)[0].images[0]
    faulty = faults_of(truth[None], 5, generator)
    assert faulty.shape == (5, *truth.shape) and (faulty != truth).flatten(1).any(1).all()
    quality, fidelity = torch.tensor([2.0, 3.0, 1.0]), torch.tensor([0.5, 0.9, 0.2])
    kinds = [("a", "truth"), ("a", "b", "truth")]
    right, wrong = (_order_loss(quality, fidelity, *_known_order(named, 3)).item() for named in kinds)
    assert right < 0.01 < 1 < wrong
    better, worse = _known_order(("nearest", "truth", "bicubic"), 4)
    pairs = set(zip(better.tolist(), worse.tolist(), strict=True))
    assert pairs == {(1, 0), (1, 2), (1, 3), (2, 0)}
    assert not len(_known_order(("a", "b"), 2)[0])


def test_a_group_without_labels_teaches_its_order_alone(tiny_policy):
    task = SRTask(sources.make("photographs", split="train", size=32, crops=4), rewards.make("psnr_y"))
    (group,) = make_groups([task], {"base": tiny_policy}, 1, seed=0, labelled=False)
    mixed = ["truth and sample", "truth and bicubic"]
    assert list(group.kinds) == ["base", "base", "mean", "truth", *mixed, "nearest", "bicubic"]
    torch.manual_seed(0)
    model = CompactCompass(widths=(8, 8, 8), hidden=16).eval()
    how = {"faults": 3, "order": 4.0, "family": 0.1, "flatter": 0.0}
    loss = _loss(model, group, torch.Generator().manual_seed(1), **how)
    images = torch.cat([group.images, faults_of(group.images[3:4], 3, torch.Generator().manual_seed(1))])
    quality, fidelity = predict(model, group.lr, images)
    torch.testing.assert_close(loss, 4 * _order_loss(quality, fidelity, *_known_order(group.kinds, 11)))
    labels = replace(group, labelled=True)
    assert _loss(model, labels, torch.Generator().manual_seed(1), **how) > loss


def test_a_shaken_policy_is_another_and_leaves_the_first_alone(tiny_policy):
    lr = torch.rand(1, 3, 8, 8)
    before = tiny_policy.predict(lr)
    other = shaken(tiny_policy, 0.1, seed=1)
    assert torch.equal(tiny_policy.predict(lr), before)
    assert not torch.equal(other.predict(lr, adapter="default"), before)


def synthetic_groups(n, seed):
    """Groups whose labels anyone can see: the noisier an image, the lower both."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for _ in range(n):
        clean = torch.nn.functional.interpolate(
            torch.rand(1, 3, 4, 4, generator=generator), size=(32, 32), mode="bicubic"
        )
        strength = torch.rand(8, generator=generator)
        noise = torch.randn(8, 3, 32, 32, generator=generator)
        images = (clean + 0.3 * strength.view(-1, 1, 1, 1) * noise).clamp(0, 1)
        lr = torch.nn.functional.avg_pool2d(clean, 4)[0].clamp(0, 1)
        groups.append(Group(lr, images, ("a",) * 8, 5 - 4 * strength, 1 - strength, 1 - strength[None]))
    return groups


def test_a_scorer_learns_to_rank_what_it_was_not_shown():
    held_out = synthetic_groups(6, seed=99)
    rows = []
    model = train_scorer(synthetic_groups(12, seed=0), held_out, steps=50, report=rows.append)
    ranks = correlations(model, held_out)
    assert ranks["quality_inside_groups"] > 0.8 and ranks["fidelity_inside_groups"] > 0.8
    assert ranks["quality_over_contexts"] > 0.8
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]


def test_contexts_without_truth_are_refused(tiny_policy, tmp_path):
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    source = sources.make("lr_folder", path=str(tmp_path), scale=4)
    task = SRTask(source, rewards.make("random"))
    with pytest.raises(rewards.Incompatible, match="no 'hr'"):
        make_groups([task], {"base": tiny_policy}, 1, seed=0)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"scorer\.groups: expected at least 1, got 0"):
        ScorerSettings(groups=0)
