"""The training of the compact FinPercep-RM in miniature, what ships with the package, and runs on it."""

import json

import pytest
import torch
from finpercep_picture import planted
from shipping import ship

from srgym import rewards
from srgym.envs import SRTask, sources
from srgym.rewards.finpercep.reward import SHIPPED
from srgym.rewards.finpercep.synthesis import band_energies
from srgym.rewards.finpercep.train import make_examples
from srgym.runners import make_runner
from srgym.runners.reward_models.finpercep import FinPercepSettings, build_finpercep, draw_examples, make_pool
from srgym.runners.reward_models.stage import train_scorer
from srgym.runners.run.made_with import made_with

ENV = {"name": "photographs", "split": "train", "preset": "mild", "scale": 4, "size": 64, "crops": 4, "seed": 0}
FEW = {"contexts": 2, "validation_contexts": 2, "candidates": 4, "shaken": [0.1], "steps": [1, 2], "crop": 32}


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """From its definition: Pearson's correlation of ranks."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def test_the_pipeline_writes_a_model_its_figures_and_every_stage(tiny_policy, tmp_path):
    cost = train_scorer({"model": "finpercep", **FEW}, tiny_policy, ENV, tmp_path / "stages/scorer", seed=0)
    made = tmp_path / "stages/scorer"
    assert {"rm0", "rm1", "scorer"} <= {path.name for path in made.iterdir()}
    figures = json.loads((made / "scorer/held_out.json").read_text())
    assert cost.items() >= figures.items() and cost["updates"] == 3
    assert 0 <= figures["ordered"] <= min(figures["gt_over_mixture"], figures["mixture_over_sr"]) <= 1
    model = json.loads((made / "scorer/model.json").read_text())
    assert model["model"]["stage"] == 1 and model["notes"]["s_base"] == 0.8

    (tmp_path / "config.json").write_text(json.dumps({"overrides": ["experiment=finpercep_compact"], "seed": 4}))
    record = {"made_with": made_with(), "stages": {"scorer": cost}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    ship("scorer", tmp_path, tmp_path / "shipped", "abc")
    provenance = json.loads((tmp_path / "shipped/provenance.json").read_text())
    assert provenance["held_out"]["validation"] == figures
    assert (provenance["command"], provenance["seed"]) == ("srgym train experiment=finpercep_compact", 4)
    assert rewards.make("finpercep", weights=str(tmp_path / "shipped")).has_map


def test_one_seed_gives_one_model_whatever_was_drawn_before(tiny_policy, tmp_path):
    made = []
    for run in range(2):
        torch.rand(run + 1)
        build_finpercep(FinPercepSettings(**FEW), tiny_policy, ENV, tmp_path / str(run), seed=3)
        made.append((tmp_path / str(run) / "scorer/model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_examples_are_parts_of_the_pool_and_follow_the_seed(tiny_policy):
    task = SRTask(sources.make(dict(ENV)), rewards.make("psnr_y"))
    pool = make_pool([task], {"base": tiny_policy}, n=2, kept=5, seed=3)
    assert all(len(one.kinds) == len(one.sr) == 5 and "truth" not in one.kinds for one in pool)
    settings = FinPercepSettings(**{**FEW, "contexts_per_step": 2, "candidates_per_step": 3})
    first, again = (next(draw_examples(pool, settings, 0.1, seed=5)) for _ in range(2))
    assert first.sr.shape == (6, 3, 32, 32) and torch.equal(first.synthetic, again.synthetic)
    assert len(first.better) == len(first.worse) == 2 * (settings.faults + 1)
    for i in range(2):  # the truth as it was over each of its faults, and the smooth enlargement over the squares
        start = (settings.faults + 1) * i
        rows = slice(start, start + settings.faults)
        assert (first.better[rows] - first.gt[3 * i]).abs().max() < 0.05  # dither
        assert (first.worse[rows] != first.better[rows]).flatten(1).any(1).all()
        squares = first.worse[start + settings.faults]
        edges = (squares[:, :, 1:] - squares[:, :, :-1]).abs().amax((0, 1)) > 1e-6
        assert 0 < edges.sum() <= 8  # a square is 4 pixels wide, and there are 32
    gap = (first.gt[:1] - first.gt).abs().mean((1, 2, 3))
    assert gap[:3].max() < 2 * settings.dither < gap[3:].min()  # three of one context, three of the other


def test_regions_are_cut_and_turned_with_the_picture(tiny_policy, monkeypatch):
    """Regions that are the bright and the dark places stay so, whatever part of the picture is seen from wherever."""
    seen = []

    def spy(pairs, *, segments, features, **options):
        seen.append((pairs[0][1], segments[0], features))
        return make_examples(pairs, segments=segments, features=features, **options)

    def halves(image):
        return (image.mean(0) > image.mean(0).median()).long()

    monkeypatch.setattr("srgym.runners.reward_models.finpercep.make_examples", spy)
    task = SRTask(sources.make(dict(ENV)), rewards.make("psnr_y"))
    pool = make_pool([task], {"base": tiny_policy}, n=2, kept=5, seed=3, segmenter=halves)
    examples = draw_examples(pool, FinPercepSettings(**FEW), 0.1, seed=5, features=torch.zeros_like)
    for _ in range(4):
        next(examples)
    for truth, regions, features in seen:
        assert features is torch.zeros_like
        for image, own in zip(truth.mean(1), regions, strict=True):
            assert own.unique().numel() < 2 or image[own == 1].min() > image[own == 0].max() - 1e-6


@pytest.mark.parametrize("model", ["dinov3", "sam"])
def test_a_model_that_is_not_there_is_refused_before_anything_is_made(model, tiny_policy, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a (DINOv3|SAM) model at 'nowhere'"):
        build_finpercep(FinPercepSettings(**{model: "nowhere"}), tiny_policy, ENV, tmp_path, 0)


@pytest.mark.parametrize(
    "change, told",
    [({"contexts": 0}, "scorer.contexts: expected at least 1, got 0"), ({"steps": [3, 0]}, "the last at least 1"),
     ({"crop": 16}, "scorer.crop: expected at least 32, got 16")],
)  # fmt: skip
def test_impossible_settings_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        FinPercepSettings(**change)


def test_an_unknown_model_and_a_policy_of_another_kind_are_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="one of compass, finpercep, lucid, got 'clip'"):
        train_scorer({"model": "clip"}, toy.policy(), ENV, tmp_path, 0)
    with pytest.raises(rewards.Incompatible, match="come from the compact policy"):
        build_finpercep(FinPercepSettings(), toy.policy(), ENV, tmp_path, 0)


# What ships with the package


def test_the_shipped_model_comes_with_its_figures_and_is_small():
    provenance = json.loads((SHIPPED / "provenance.json").read_text())
    assert provenance["command"].startswith("srgym train experiment=finpercep_compact")
    assert {"data", "seed", "date", "commit", "versions", "held_out"} <= set(provenance)
    assert not {"chelsea", "coffee", "china", "rocket", "flower", "hopper"} & set(provenance["data"].split())
    assert (SHIPPED / "model.safetensors").stat().st_size < 2_000_000
    assert provenance["held_out"]["validation"] == json.loads((SHIPPED / "model.json").read_text())["notes"]["held_out"]


def test_the_shipped_map_lights_up_where_faults_were_planted_in_photographs_it_never_saw():
    from sklearn.metrics import roc_auc_score

    reward = rewards.make("finpercep")
    _, mixed, mask = planted("validation")
    found = reward.map(mixed)
    areas = [roc_auc_score(m.flatten().numpy(), f.flatten().numpy()) for m, f in zip(mask, found, strict=True)]
    assert sum(areas) / len(areas) > 0.8 and min(areas) > 0.6, areas


def test_the_shipped_score_falls_as_pictures_get_worse():
    """Two kinds of damage in six steps, on the held-out photographs: the mean rank correlation within a picture."""
    reward, source = rewards.make("finpercep"), sources.make("photographs", split="validation", size=128)
    found = []
    for index in range(0, len(source), max(1, len(source) // 6)):
        hr = source[index].hr
        grain = torch.randn(hr.shape, generator=torch.Generator().manual_seed(index))
        noisy = torch.stack([hr + s * grain for s in (0.0, 0.01, 0.02, 0.04, 0.08, 0.15)]).clamp(0, 1)
        found.append(spearman(reward(noisy).total, -torch.arange(6.0)))
        smaller = [torch.nn.functional.interpolate(hr[None], scale_factor=1 / s, mode="area") for s in (1, 2, 3, 4)]
        blurred = torch.cat([torch.nn.functional.interpolate(x, size=hr.shape[-2:], mode="bicubic") for x in smaller])
        found.append(spearman(reward(blurred.clamp(0, 1)).total, -torch.arange(4.0)))
    assert sum(found) / len(found) > 0.6, found


def test_truth_outranks_mixture_outranks_bicubic_mostly():
    from srgym.policies.compact import bicubic

    reward, source = rewards.make("finpercep"), sources.make("photographs", split="validation", size=128)
    samples = [source[i] for i in range(0, len(source), max(1, len(source) // 12))]
    sr = torch.cat([bicubic(sample.lr[None], 4) for sample in samples])
    (example,) = make_examples(
        [(sr, torch.stack([sample.hr for sample in samples]))], seed=1, features=band_energies, divisor=1.0
    )
    s_sr, s_mixed, s_gt = (reward(images).total for images in (example.sr, example.synthetic, example.gt))
    assert float((s_gt > s_sr).float().mean()) > 0.8
    assert float((s_gt > s_mixed).float().mean()) > 0.6
    assert float((s_mixed > s_sr).float().mean()) > 0.6


def test_the_shipped_reward_has_a_gradient_that_points_at_the_fault():
    reward = rewards.make("finpercep")
    _, mixed, _ = planted("validation")
    sr = mixed[:1].requires_grad_()
    before = reward(sr).total
    (gradient,) = torch.autograd.grad(before.sum(), sr)
    step = sr.detach() + 1e-3 * gradient / gradient.square().mean().sqrt()
    assert float(reward(step).total) > float(before.detach())


@pytest.mark.parametrize("agent", ["nft", "refl"])
def test_a_run_on_finpercep_learns_and_logs_its_map(agent, tmp_path):
    folder = tmp_path / agent
    run = make_runner(
        f"agent={agent}", "reward=finpercep", f"out={folder}", "logger=csv", "env.size=32", "runner.iterations=2",
        "runner.contexts=2", "runner.eval_every=2", "runner.eval_contexts=2", "runner.images_every=2",
        "runner.eval_steps=1",
    )  # fmt: skip
    run.learn()
    header, *rows = (folder / "stages/main/metrics.csv").read_text().splitlines()
    columns = header.split(",")
    last = dict(zip(columns, rows[-1].split(","), strict=True))
    assert float(last["optim/gradient_norm"]) > 0
    assert 0 < float(last["eval/reward"]) < 1 and "eval/fault_mean" in columns
    from PIL import Image

    (picture,) = (folder / "stages/main/pictures").glob("*.png")
    assert Image.open(picture).size[0] > 4 * 32  # LR, SR, HR, the map and its scale
