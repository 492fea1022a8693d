"""The linter: the built-in rewards pass, and each of the faults that it is there for is caught and named."""

import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from srgym import Incompatible, rewards
from srgym.rewards.check import CHECKS, CheckReport, check
from srgym.rewards.compass.mllm import MLLMScorer
from srgym.rewards.serving.question import Reply
from srgym.rewards.specimens import photographs, specimen
from srgym.runners.commands.cli import main


def mae(sr: Tensor, hr: Tensor) -> Tensor:
    return 1 - (sr - hr).abs().mean((1, 2, 3))


def lint(fault: Any, **declared: Any) -> CheckReport:
    """Lint a function as if it had been registered with what it declares."""
    from srgym.rewards.base import Reward
    from srgym.rewards.info import describe

    return check(Reward(fault, describe(fault, "fault", **declared)), size=64)


def failed(report: CheckReport) -> set[str]:
    return {f.check for f in report.findings if f.status == "fails"}


@pytest.mark.parametrize(
    "spec",
    [
        "psnr_y",
        "psnr_chroma",
        "ssim_y",
        {"name": "ms_ssim", "scales": 3},
        "structure_texture",
        "random",
        "random_network",
        "compass",
        {"name": "compass", "form": "delta_q"},
        {"name": "compass", "form": "gated"},
        {"name": "compass", "mode": "full_reference", "fidelity": "structure_texture"},
        {"name": "realsr_r1", "generation": "structure_texture"},
        {"sum": {"compass": {"weight": 1.0}, "psnr_y": 0.1}, "normalise": "per_component"},
        {"sum": {"psnr_y": 0.1, "structure_texture": 1.0}, "normalise": "per_component"},
        {"sum": {"psnr_y": 0.1, "ssim_y": 1.0}},
    ],
)
def test_built_in_passes(spec: Any) -> None:
    report = check(spec, size=64)
    assert report.ok, report.table()
    assert tuple(f.check for f in report.findings) == CHECKS


@pytest.mark.parametrize("name", ["dists", "lpips"])
def test_learned_reward_passes_with_random_weights(name: str) -> None:
    report = check(name, weights="random", size=32, skip=["cost", "batch"])
    assert report.ok, report.table()


def test_compass_passes_with_a_scorer() -> None:
    class Closeness(torch.nn.Module):
        """Fidelity, and with it quality, by closeness to LR."""

        def forward(self, lr: Tensor, sr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            small = torch.nn.functional.interpolate(sr, lr.shape[-2:], mode="area")
            f = (1 - 4 * (small - lr).abs().mean((1, 2, 3))).clamp(0, 1)
            ones = torch.ones_like(f)
            return f, 2 * ones, 1 + 3 * f, ones.bool()

    report = check({"name": "compass", "scorer": Closeness()}, size=64)
    assert report.ok, report.table()
    assert next(f for f in report.findings if f.check == "gradient").status == "ok"


def test_catches_wrong_length() -> None:
    report = lint(lambda sr, hr: mae(sr, hr)[:-1])
    assert failed(report) == {"shape"} and len(report.findings) == 1
    assert "expected 'total' of shape [8], one an image, got [7]" in report.violations[0]


def test_catches_nan() -> None:
    report = lint(lambda sr, hr: (sr.mean((1, 2, 3)) - 0.4).sqrt() + mae(sr, hr))
    assert "finite" in failed(report)
    assert any("no finite score for" in sentence and "root" in sentence for sentence in report.violations)


def test_catches_batch_dependence() -> None:
    def standardised(sr: Tensor, hr: Tensor) -> Tensor:
        score = mae(sr, hr)
        return (score - score.mean()) / (score.std(correction=0) + 1e-3)

    report = lint(standardised)
    assert "batch" in failed(report) and "order" not in failed(report)
    assert any("the images beside it" in sentence and "group=True" in sentence for sentence in report.violations)


def test_catches_order_dependence() -> None:
    report = lint(lambda sr, hr: mae(sr, hr) + 0.01 * torch.arange(len(sr)))
    assert {"batch", "order"} <= failed(report)


def test_catches_wrong_direction() -> None:
    report = lint(lambda sr, hr: (sr - hr).abs().mean((1, 2, 3)))
    assert failed(report) == {"direction"}
    assert "higher must be better, so return the negative of a distance" in report.violations[0]


@pytest.mark.parametrize(
    ("kind", "measured"),
    [("detached", "none"), ("rounded", "zero"), ("partial", "off"), ("scaled", "off"), ("root", "not finite")],
)
def test_catches_falsely_declared_gradient(kind: str, measured: str) -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return 1.3 * grads[0]

    def fault(sr: Tensor, hr: Tensor) -> Tensor:
        if kind == "detached":
            return mae(sr.detach(), hr)
        if kind == "rounded":
            return mae((sr * 255).round() / 255, hr)
        if kind == "partial":
            return mae(sr, hr) - (sr.detach() - hr).square().mean((1, 2, 3)).sqrt()
        if kind == "root":
            return mae(sr, hr) - (sr - sr).square().sum((1, 2, 3)).sqrt()
        return mae(Scaled.apply(sr), hr)

    report = lint(fault, differentiable=True)
    assert failed(report) == {"gradient"}, report.table()
    finding = next(f for f in report.findings if f.check == "gradient")
    assert measured in finding.measured and "declare differentiable=False" in finding.sentence


def test_catches_out_of_range() -> None:
    report = lint(lambda sr, hr: 2 * mae(sr, hr), range=(0.0, 1.0))
    assert failed(report) == {"range"}
    assert "though it declares [0, 1]" in report.violations[0]


def test_catches_chance_and_changed_inputs() -> None:
    assert "repeat" in failed(lint(lambda sr, hr: mae(sr, hr) + torch.rand(len(sr))))

    def greedy(sr: Tensor, hr: Tensor) -> Tensor:
        return 1 - hr.sub_(sr).abs_().mean((1, 2, 3))

    assert "inputs" in failed(lint(greedy))


def test_error_of_the_reward_is_reported_and_not_raised() -> None:
    def broken(sr: Tensor) -> Tensor:
        raise KeyError("nothing here")

    report = lint(broken)
    assert report.violations == ["fault: it raised KeyError: 'nothing here'"]


def test_unknown_needs_want_a_maker() -> None:
    def masked(sr: Tensor, hr: Tensor, mask: Tensor) -> Tensor:
        return mae(sr * mask, hr * mask)

    with pytest.raises(Incompatible, match="'masked' needs 'mask', which the linter can't make"):
        check(masked, size=64)
    report = check(masked, size=64, context={"mask": lambda specimen: torch.ones_like(specimen.sr[:, :1])})
    assert report.ok, report.table()


def test_report_is_readable() -> None:
    report = check(mae, size=64, skip=["direction"])
    lines = report.table().splitlines()
    assert lines[0] == "reward mae"
    assert [line.split()[0] for line in lines[1 : 1 + len(CHECKS)]] == list(CHECKS)
    assert "skipped" in lines[1 + CHECKS.index("direction")]
    with pytest.raises(ValueError, match="no such check: speed"):
        check(mae, skip=["speed"])
    with pytest.raises(ValueError, match="multiple of 4 between 16 and 280 pixels, got 50"):
        check(mae, size=50)


def test_pictures_are_photographs() -> None:
    pictures = photographs(280)
    assert pictures.shape == (4, 3, 280, 280)
    assert (pictures.std((2, 3)) > 0.05).all() and pictures.min() >= 0 and pictures.max() <= 1


def test_every_weightless_built_in_is_linted_here() -> None:
    weightless = {row["name"] for row in rewards.listing() if row["origin"] == "built-in" and row["weights"] == "none"}
    here = {"psnr_y", "psnr_chroma", "ssim_y", "ms_ssim", "structure_texture", "random",
            "random_network", "shuffled", "attribute_aware"}  # fmt: skip
    assert weightless - here == {"ssimulacra2", "flip"}  # test_deep_features.py lints them, where they are installed
    assert here <= weightless


def test_realsr_r1_is_told_text_record_and_tags() -> None:
    made = specimen(photographs(64)[:, None], photographs(64))
    reward = rewards.make("realsr_r1", generation="structure_texture")
    components = reward(made.sr, **made.context).components
    assert components["format"].tolist() == [1.0] * 4
    assert components["understanding"].tolist() == [1.0] * 4
    # The text gives four of the record's eight steps and leaves out the four that were not taken.
    assert components["degradation"].tolist() == [0.5] * 4


def answer(question: Any) -> Reply:
    """Scores that fall with the amount of detail that isn't in LR, as a judge's might."""
    from PIL import Image

    first, last = (
        np.asarray(Image.open(io.BytesIO(file)), float) for file in (question.images[0], question.images[-1])
    )
    close = 1 + 4 * math.exp(-np.abs(first - last).mean() / 8)
    return Reply(
        json.dumps({"consistency": close, "naturalness": close, "fidelity": (close - 1) / 4, "q_lr": 2, "q_sr": close})
    )


@pytest.mark.parametrize("served", ["refreward", "compass"])
def test_a_served_reward_passes_through_a_scripted_engine(served: str, scripted: Any) -> None:
    engine = scripted(answer)
    options = {"engine": engine} if served == "refreward" else {"scorer": MLLMScorer(engine)}
    report = check(served, size=64, **options)
    assert report.ok, report.table()
    assert len(engine.asked) > 8


@pytest.mark.parametrize("name", ["delta_q", "compass_full_reference", "compass_psnr"])
def test_the_command_checks_what_the_configs_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "check", name, "size=64"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1 : 1 + len(CHECKS)]] == list(CHECKS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["refreward", "reward.engine.urls=http://127.0.0.1:9"], "no server of the model 'refreward' answers at"),
        (["compas"], "did you mean 'compass'"),
        (["compass", "reward.gama=5"], "did you mean 'reward.gamma'"),
        (["psnr_y", "reward.x=5"], "unknown setting 'reward.x'"),
    ],
)
def test_the_command_refuses_what_cannot_be_checked(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rewards", "check", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_listing_says_direction_and_where_weights_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["name", "needs", "gradient", "range", "better", "licence"]
    at = next(i for i, line in enumerate(lines) if line.startswith("dists "))
    assert lines[at].split()[1:5] == ["hr", "yes", "-1..1", "higher"]
    assert "weights: VGG16 of torchvision (vgg16-397923af.pth)" in lines[at + 1]
