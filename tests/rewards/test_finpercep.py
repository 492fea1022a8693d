"""FinPercep-RM: its map, its modulations, its growth, and that it learns."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from srgym.rewards import make
from srgym.rewards.finpercep.encoders import CompactEncoder, RN50Encoder, load_clip_rn50
from srgym.rewards.finpercep.heldout import area_under_curve, held_out
from srgym.rewards.finpercep.model import FinPercepRM, load
from srgym.rewards.finpercep.synthesis import (
    band_energies,
    dinov3,
    fault_map,
    normaliser,
    random_mask,
    region_mask,
    sam,
    synthesise,
)
from srgym.rewards.finpercep.train import (
    fit,
    grade_loss,
    likelihood_loss,
    losses,
    make_examples,
    map_loss,
    measure,
    order_loss,
    rank_loss,
    train,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(
    stage: int = 1, modulation: str = "clean", seed: int = 0, encoder: str = "compact", **options: object
) -> FinPercepRM:
    torch.manual_seed(seed)
    return FinPercepRM(encoder, stage, modulation, **options)


@pytest.fixture
def images() -> Tensor:
    """Smooth pictures of different colours and detail."""
    coarse = torch.rand(4, 3, 6, 6, generator=seeded(0))
    return F.interpolate(coarse, size=(40, 32), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("modulation", ["clean", "residual", "paper"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_score_and_a_map_of_the_images_size(stage: int, modulation: str, images: Tensor) -> None:
    score, fault = model(stage, modulation)(images)
    assert score.shape == (4,)
    assert fault.shape == (4, 1, 40, 32)
    assert ((score > 0) & (score < 1)).all()
    assert ((fault >= 0) & (fault <= 1)).all()


def test_the_compact_model_has_about_230_thousand_parameters() -> None:
    assert CompactEncoder().widths == (16, 32, 64, 96)
    assert sum(p.numel() for p in model(1).parameters()) == pytest.approx(230_000, rel=0.03)


def test_at_first_everything_is_taken_to_be_nearly_clean(images: Tensor) -> None:
    # sigmoid(-4) = 0.018
    assert model(1).map(images).mean().item() == pytest.approx(0.018, abs=0.004)


def test_the_modulation_is_what_its_name_says(images: Tensor) -> None:
    for name, gate in (("clean", lambda m: 1 - m), ("residual", lambda m: 1 + m), ("paper", lambda m: m)):
        net = model(1, name)
        with torch.no_grad():
            last = net.features(images)[-1]
            small = F.adaptive_avg_pool2d(net.map(images), last.shape[-2:])
            expected = net.head((last * gate(small)).mean((2, 3))).squeeze(1).sigmoid()
            torch.testing.assert_close(net.score(images), expected)


def test_the_printed_modulation_collapses_on_clean_images_and_the_default_does_not(images: Tensor) -> None:
    def spread(modulation: str) -> float:
        net = model(1, modulation)
        with torch.no_grad():
            net.branches[0].out.bias.fill_(-16.0)  # a map that says: nothing wrong anywhere
            return float(net.score(images).std())

    assert spread("paper") < 1e-6
    assert spread("clean") > 1e-4
    assert spread("residual") == pytest.approx(spread("clean"), rel=1e-3)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_grown_model_is_the_one_it_grew_from_until_it_is_trained(stage: int, images: Tensor) -> None:
    before = model(stage - 1, seed=stage)
    with torch.no_grad():
        for parameter in before.parameters():  # as after training: nothing of what is there is zero
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(7)))
        score, fault = before(images)
        before.grow()
        grown_score, grown_fault = before(images)
    assert before.stage == stage
    assert torch.equal(grown_score, score)
    assert torch.equal(grown_fault, fault)
    # What is new can learn: one step moves it.
    old = {name for name, _ in model(stage - 1).named_parameters()}
    terms = losses(before, make_examples([(images.flip(0), images)], seed=0)[0], lambda x: torch.zeros(len(x)))
    torch.stack(list(terms.values())).sum().backward()
    moved = {name for name, p in before.named_parameters() if name not in old and p.grad is not None and p.grad.any()}
    assert any(name.startswith("branches") for name in moved)
    assert any(name.startswith("adapters") for name in moved)


def test_a_stage_trains_the_encoder_up_to_stage_1_and_only_what_sits_on_it_after() -> None:
    for stage, trained in ((0, True), (1, True), (2, False), (3, False)):
        net = model(stage)
        held = {id(p) for p in net.trainable()}
        assert all((id(p) in held) == trained for p in net.encoder.parameters())
        assert all(id(p) in held for p in net.head.parameters())


def test_no_score_depends_on_its_neighbours(images: Tensor) -> None:
    net = model(3).eval()
    with torch.no_grad():
        whole = net.score(images)
        torch.testing.assert_close(net.score(images.flip(0)).flip(0), whole, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.cat([net.score(i[None]) for i in images]), whole, atol=1e-6, rtol=0)


def test_the_reward_has_a_gradient_that_finite_differences_confirm(images: Tensor) -> None:
    reward = make("srgym.rewards.finpercep.reward:FinPercep", weights="random", stage=2)
    assert reward.differentiable
    assert not reward.needs
    sr = images[:1].clone().requires_grad_()
    output = reward(sr)
    output.total.sum().backward()
    assert set(output.components) == {"score", "fault_mean", "fault_max"}
    step = 1e-4 * torch.randn(sr.shape, generator=seeded(1))
    with torch.no_grad():
        net = reward.score.model.double()
        x = sr.detach().double()
        rise = (net.score(x + step) - net.score(x - step)) / 2
    assert sr.grad is not None
    assert (sr.grad * step).sum().item() == pytest.approx(rise.item(), rel=1e-3)


def test_the_ablation_mixes_the_global_score_with_the_worst_place(images: Tensor) -> None:
    reward = make("srgym.rewards.finpercep.reward:FinPercep", weights="random", total="global_map", mix=[0.25, 0.75])
    net = reward.score.model
    expected = 0.25 * net.global_score(images) + 0.75 * (1 - net.map(images).amax((1, 2, 3)))
    torch.testing.assert_close(reward(images).total, expected)


def test_weights_are_named_or_said_to_be_random(tmp_path: Path, images: Tensor) -> None:
    made = "srgym.rewards.finpercep.reward:FinPercep"
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        make(made, weights=str(tmp_path))
    with pytest.raises(ValueError, match="'stage' is a property of the weights"):
        make(made, weights=str(tmp_path), stage=2)
    with pytest.raises(ValueError, match="expected a total of score, global_map"):
        make(made, weights="random", total="best")
    with pytest.raises(ValueError, match="sum to 1"):
        make(made, weights="random", mix=[1, 1])
    same = [make(made, weights="random", seed=3)(images).total for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], make(made, weights="random", seed=4)(images).total)


def test_a_saved_model_scores_as_before(tmp_path: Path, images: Tensor) -> None:
    net = model(3, "residual").eval()
    net.save(tmp_path, data="none", date="2026-01-01")
    back = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(back.score(images), net.score(images))
    assert (back.stage, back.modulation) == (3, "residual")
    assert json.loads((tmp_path / "model.json").read_text())["notes"]["date"] == "2026-01-01"
    assert torch.equal(
        make("srgym.rewards.finpercep.reward:FinPercep", weights=str(tmp_path))(images).total, net.score(images)
    )


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="unknown encoder 'vgg': expected one of compact, rn50"):
        FinPercepRM("vgg")
    with pytest.raises(ValueError, match="unknown modulation"):
        FinPercepRM(modulation="dirty")
    with pytest.raises(ValueError, match="stage from 0 to 3"):
        FinPercepRM(stage=4)
    with pytest.raises(ValueError, match="none to grow to"):
        model(3).grow()


# CLIP's RN50


def test_clips_resnet_loads_by_its_own_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    encoder, other = (RN50Encoder(width=8, depths=(1, 1, 1, 1)) for _ in range(2))
    state = {"visual.attnpool.positional_embedding": torch.zeros(1)}
    for name, tensor in other.state_dict().items():
        level, _, rest = name.removeprefix("levels.").partition(".")
        if level == "0":
            part, _, rest = rest.partition(".")
            state[f"visual.{rest}" if part == "0" else f"visual.layer1.{rest}"] = tensor
        else:
            state[f"visual.layer{int(level) + 1}.{rest}"] = tensor
    # Names that CLIP's own checkpoint has, so that the mapping isn't tested against itself alone.
    assert {"visual.conv1.weight", "visual.bn3.bias", "visual.layer1.0.conv2.weight"} <= set(state)
    assert {"visual.layer2.0.downsample.0.weight", "visual.layer4.0.bn3.running_var"} <= set(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    load_clip_rn50(encoder, tmp_path / "clip.safetensors")
    for a, b in zip(encoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"'conv1\.weight'.*expected \(8, 3, 3, 3\), got \(4, 3, 3, 3\)"):
        load_clip_rn50(RN50Encoder(width=16, depths=(1, 1, 1, 1)), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"has no tensor 'layer1\.1\.conv1\.weight'"):
        load_clip_rn50(RN50Encoder(width=8, depths=(2, 1, 1, 1)), tmp_path / "clip.safetensors")


def test_clips_resnet_has_clips_size_and_keeps_its_statistics(images: Tensor) -> None:
    with torch.device("meta"):
        # CLIP's RN50 has 38.3 M parameters, 14.8 M of them in the attention pool that isn't used here.
        assert sum(p.numel() for p in RN50Encoder().parameters()) == 23_527_264
    net = model(2, encoder="rn50", width=8, depths=[1, 1, 1, 1]).train()
    before = {name: b.clone() for name, b in net.named_buffers() if "running" in name}
    score, fault = net(images)
    assert score.shape == (4,)
    assert fault.shape == (4, 1, 40, 32)
    assert all(torch.equal(dict(net.named_buffers())[name], b) for name, b in before.items())


# What it learns from


def test_masks_cover_two_to_thirty_percent_and_follow_the_seed(images: Tensor) -> None:
    shares, regions = [], []
    for seed in range(60):
        mask = random_mask(40, 32, seeded(seed))
        assert mask.shape == (1, 40, 32)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        shares.append(mask.mean().item())
        assert torch.equal(mask, random_mask(40, 32, seeded(seed)))
    for seed in range(8):
        regions.append(region_mask(images[seed % 4], seeded(seed)).mean().item())
    assert 0.02 <= min(shares) < 0.08
    assert 0.15 < max(shares) <= 0.30
    assert min(regions) >= 0.02
    assert max(regions) <= 0.30


def test_region_masks_are_whole_regions(images: Tensor) -> None:
    segments = (torch.arange(40)[:, None] // 10) * 4 + torch.arange(32)[None] // 8
    mask = region_mask(images[0], seeded(3), segments)[0]
    for name in segments.unique():
        assert mask[segments == name].unique().numel() == 1


def test_a_mixture_is_broken_where_the_mask_is_and_nowhere_else(images: Tensor) -> None:
    sr = images.flip(0)
    mask = torch.stack([random_mask(40, 32, seeded(i)) for i in range(4)])
    mixed = synthesise(sr, images, mask)
    fault = fault_map(mixed, images)
    assert (fault[mask == 0] == 0).all()
    torch.testing.assert_close(fault, mask * (sr - images).abs().mean(1, keepdim=True))
    assert fault_map(images, images, lambda x: x - 0.5).abs().max() < 1e-6


def test_the_normaliser_is_the_data_sets_and_keeps_severity(images: Tensor) -> None:
    faint, grave = 0.02 * torch.rand(1, 1, 40, 32, generator=seeded(0)), torch.rand(1, 1, 40, 32, generator=seeded(1))
    divisor = normaliser(torch.cat([faint, grave]))
    assert (faint / divisor).max() < 0.03
    assert (grave / divisor).clamp(max=1).max() == 1
    assert normaliser(torch.zeros(3)) == 1.0


def test_dinov3_features_are_a_map_of_patches(tmp_path: Path, images: Tensor) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        num_register_tokens=2,
    )  # fmt: skip
    DINOv3ViTModel(config).save_pretrained(tmp_path)
    features = dinov3(tmp_path)
    assert features(images).shape == (4, 32, 5, 4)
    broken = images.clone()
    broken[:, :, :8, :8] = 1 - broken[:, :, :8, :8]
    fault = fault_map(broken, images, features)
    assert fault.shape == (4, 1, 40, 32)
    assert fault[..., :8, :8].mean() > 3 * fault[..., 24:, 16:].mean()
    with pytest.raises(FileNotFoundError, match="expected the folder of a DINOv3 model"):
        dinov3(tmp_path / "nothing")


def test_sam_gives_every_place_a_region(tmp_path: Path, images: Tensor) -> None:
    """SAM's classes with random weights, which find something everywhere once nothing is too unsure."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 4, "num_pos_feats": 8,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
               "iou_head_hidden_dim": 16}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SamModel(
            SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
        ).save_pretrained(tmp_path)
    SamProcessor(SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )).save_pretrained(tmp_path)  # fmt: skip
    segments = sam(tmp_path, pred_iou_thresh=-9.0, stability_score_thresh=0.0, crops_nms_thresh=1.0, points_per_crop=4)
    labels = segments(images[0])
    assert labels.shape == images.shape[-2:]
    assert labels.dtype == torch.int64
    assert labels.unique().numel() > 1
    mask = region_mask(images[0], seeded(3), labels)
    assert mask.shape == (1, *images.shape[-2:])
    with pytest.raises(FileNotFoundError, match="expected the folder of a SAM model"):
        sam(tmp_path / "nothing")


def test_masks_follow_the_regions_that_are_given(images: Tensor) -> None:
    """Of every image its own: where a mask follows regions, each is in it whole or not at all."""
    quarters = (torch.arange(40)[:, None] // 10) * 4 + torch.arange(32)[None] // 8
    segments = torch.stack([quarters, quarters.T.repeat(2, 2)[:40, :32]] * 2)
    (example,) = make_examples([(1 - images, images)], seed=0, segments=[segments], regions=1.0)
    changed = (example.synthetic != example.gt).any(1)
    for regions, mask in zip(segments, changed, strict=True):
        assert mask.any()
        assert all(mask[regions == name].unique().numel() == 1 for name in regions.unique())


def test_a_model_may_begin_with_anothers_encoder_and_head(images: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trained, fresh = FinPercepRM("compact", 2), FinPercepRM("compact", 0)
    trained.eval(), fresh.eval()
    assert not torch.equal(fresh.score(images), trained.global_score(images))
    fresh.begin_with(trained)  # a model of stage 2 has adapters in its encoder, which do nothing until they are trained
    assert torch.allclose(fresh.score(images), trained.global_score(images), atol=1e-6)
    with pytest.raises(ValueError, match="whose encoder and head are built as this one's"):
        fresh.begin_with(FinPercepRM("compact", 0, hidden=32))


def test_the_losses_are_the_papers() -> None:
    s_sr, s_syn, s_gt = torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.5]), torch.tensor([0.42, 0.4])
    # relu(.05 - .1) + relu(.05 - .02) = .03;  relu(.05 - 0) + relu(.05 + .1) = .2
    assert rank_loss(s_sr, s_syn, s_gt).tolist() == pytest.approx([0.03, 0.2], abs=1e-6)
    assert map_loss(torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 2, 2)).tolist() == [0.25]


def test_the_terms_of_our_own_are_what_they_say() -> None:
    # One pair: severities .5 apart, scores .1 the right way round: softplus(-10 * .1), in either order.
    for order in (0, 1), (1, 0):
        found = grade_loss(torch.tensor([0.6, 0.5])[list(order)], torch.tensor([0.0, 0.5])[list(order)])
        assert found.item() == pytest.approx(0.313262, abs=1e-5)
    # Kullback-Leibler of Bernoulli(.25) from Bernoulli(.5): .25 log .5 + .75 log 1.5
    maps = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.25)
    assert likelihood_loss(*maps).item() == pytest.approx(0.130812, abs=1e-5)
    assert likelihood_loss(maps[1], maps[1]).item() == pytest.approx(0, abs=1e-6)


def test_pairs_of_a_known_order_count_by_how_far_the_wrong_way_they_are(images: Tensor) -> None:
    better, worse = torch.tensor([0.8, 0.8, 0.6]), torch.tensor([0.3, 0.8, 0.8])
    for ours, gap in zip(order_loss(better, worse), (0.5, 0.0, -0.2), strict=True):
        assert float(ours) == pytest.approx(math.log1p(math.exp(-20 * gap)), rel=1e-5)
    scorer = model()
    (plain,) = make_examples([(degraded(images), images)], seed=0)
    paired = replace(plain, better=images[:2], worse=degraded(images)[:2])
    without, beside = (losses(scorer, e, lambda x: x.new_full((len(x),), 0.8), order=2.0) for e in (plain, paired))
    s_better, s_worse = scorer.score(images[:2]), scorer.score(degraded(images)[:2])
    expected = 2 * torch.log1p(torch.exp(20 * (s_worse - s_better))).mean()
    assert "order" not in without and torch.allclose(beside.pop("order"), expected, atol=1e-5)
    assert all(torch.allclose(beside[name], without[name], atol=1e-6) for name in without)


def test_band_energies_see_missing_detail_and_forgive_faint_noise_on_a_flat_place() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert band_energies(flat).shape == (1, 4, 32, 32)
    speckled = flat + 0.002 * torch.randn(flat.shape, generator=seeded(0))
    checks = flat + 0.2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 - 0.5)
    faint = fault_map(speckled, flat, band_energies, alpha=0.0)
    missing = fault_map(flat, checks, band_energies, alpha=0.0)
    assert faint.max() < 0.02 < 0.5 < missing[..., 4:-4, 4:-4].min()


def test_the_area_under_the_curve_is_a_share_of_pairs() -> None:
    # of 2 x 3 pairs: 3 beats 1, 2, ties 3 (half); 1 ties 1 (half), loses twice
    assert area_under_curve(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(3.0 / 6)
    assert area_under_curve(torch.tensor([2.0]), torch.tensor([1.0, 0.0])) == 1.0


def test_held_out_figures_of_a_model_that_knows_and_of_one_that_knows_the_opposite(images: Tensor) -> None:
    generator = seeded(2)
    contexts = []
    for truth in images:
        gt = truth.expand(4, -1, -1, -1)
        sr = (
            gt + torch.tensor([0.05, 0.1, 0.2, 0.3]).view(4, 1, 1, 1) * torch.randn(gt.shape, generator=generator)
        ).clamp(0, 1)
        contexts += make_examples([(sr, gt)], seed=1, divisor=0.2)

    class Oracle:
        """Looks the truth up."""

        def __init__(self, sign: float) -> None:
            self.sign = sign

        def _fault(self, sr: Tensor) -> Tensor:
            gaps = (sr[:, None] - images[None]).abs().mean((2, 3, 4))
            return (sr - images[gaps.argmin(1)]).abs().mean(1, keepdim=True)

        def score(self, sr: Tensor) -> Tensor:
            return -self.sign * self._fault(sr).mean((1, 2, 3))

        def map(self, sr: Tensor) -> Tensor:
            return (0.5 + self.sign * (self._fault(sr) / 0.2 - 0.5)).clamp(0, 1)

    def judge(sr: Tensor, gt: Tensor) -> Tensor:
        return -(sr - gt).abs().mean((1, 2, 3))

    good, bad = (held_out(Oracle(sign), contexts, judge) for sign in (1.0, -1.0))  # type: ignore[arg-type]
    for name in ("spearman_inside", "spearman_over", "kendall_inside", "candidates_spearman_inside"):
        assert good[name] > 0.95 and bad[name] < -0.95, name  # faults beyond 1 are cut off and tie
    assert good["ordered"] == 1.0 and bad["ordered"] == 0.0
    assert good["map_auc"] > 0.999 and bad["map_auc"] < 0.001
    assert good["map_mae"] < 1e-3 < good["map_mae_blank"] < bad["map_mae"]


def degraded(images: Tensor) -> Tensor:
    return (images + 0.15 * torch.randn(images.shape, generator=seeded(11))).clamp(0, 1)


def test_it_learns_to_rank_and_to_point_at_what_is_broken(images: Tensor, tmp_path: Path) -> None:
    examples = make_examples([(degraded(images), images)], seed=0)
    net = model(1, seed=1)
    before = measure(net, examples)
    found = fit(net, examples, examples, tmp_path, steps={1: 120, 2: 5}, seed=0, lr=1.5e-3, notes={"data": "a test"})
    assert found["ordered"] == 1.0
    assert found["spearman"] > 0.7
    assert found["map_l1"] < 0.85 * before["map_l1"]
    assert found["map_pearson"] > before["map_pearson"] + 0.2
    assert net.stage == 2
    written = json.loads((tmp_path / "model.json").read_text())["notes"]
    assert written["held_out"] == found
    assert written["data"] == "a test"


def test_examples_do_not_depend_on_how_they_are_batched_and_training_says_when_they_run_out(images: Tensor) -> None:
    whole = make_examples([(degraded(images), images)], seed=4, divisor=1.0)
    halves = make_examples([(degraded(images)[i : i + 2], images[i : i + 2]) for i in (0, 2)], seed=4, divisor=1.0)
    assert torch.equal(whole[0].synthetic, torch.cat([half.synthetic for half in halves]))
    with pytest.raises(ValueError, match="expected examples for 2 steps, got 1"):
        train(model(0), whole, steps=2)
    with pytest.raises(ValueError, match="at least one batch"):
        make_examples([], seed=0)
