"""The control that deals a reward's scores out to the wrong samples."""

import pytest
import torch

from srgym import rewards

GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1])


def images():
    hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    hr = hr[GROUP]
    return (hr + 0.05 * torch.arange(1, 8)[:, None, None, None] * noise).clamp(0, 1), hr


def made(inner="psnr_y", **options):
    return rewards.make({"name": "shuffled", "reward": inner, **options})


def test_scores_stay_in_their_group_and_leave_their_sample():
    sr, hr = images()
    own, dealt = rewards.make("psnr_y")(sr, hr=hr).total, made()(sr, hr=hr, group=GROUP, index=GROUP).total
    for label in (0, 1):
        members = label == GROUP
        assert torch.equal(own[members].sort().values, dealt[members].sort().values)
    assert not (own == dealt).any()


def test_the_order_of_a_batch_changes_nothing_and_the_seed_does():
    sr, hr = images()
    dealt = made()(sr, hr=hr, group=GROUP, index=GROUP).total
    turned = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    assert torch.equal(made()(sr[turned], hr=hr[turned], group=GROUP, index=GROUP).total, dealt[turned])
    assert not torch.equal(made(seed=1)(sr, hr=hr, group=GROUP, index=GROUP).total, dealt)


def test_alone_a_sample_keeps_its_score_and_components_go_with_totals():
    sr, hr = images()
    inner = {"name": "realsr_r1", "generation": {"sum": {"psnr_y": 0.01, "ssim_y": 0.5}}, "reference": False}
    text = [f"<degradation>{'First blur: none.' * (i % 2)}</degradation>" for i in range(7)]
    record = [{"blur1": None}] * 7
    beside = {"hr": hr, "text": text, "degradation": record, "tags": [("cat",)] * 7}
    own = rewards.make(inner)(sr, **beside)
    alone = made(inner)(sr, group=torch.arange(7), index=torch.arange(7), **beside)
    torch.testing.assert_close(alone.total, own.total)
    dealt = made(inner)(sr, group=GROUP, index=GROUP, **beside)
    source = [int((own.total == total).nonzero()) for total in dealt.total]
    assert torch.equal(dealt.components["degradation"], own.components["degradation"][source])
    assert torch.equal(dealt.components["generation/ssim_y"], own.components["generation/ssim_y"][source])
    assert (
        made(inner).score.weights == rewards.make(inner).score.weights
        and made(inner).range == rewards.make(inner).range
    )


def test_it_needs_what_the_other_needs():
    assert "hr" in made().needs and "hr" not in made("random").needs
    with pytest.raises(ValueError, match="unknown reward 'psnr_z'"):
        made("psnr_z")
