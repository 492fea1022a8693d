"""What counts as a witness: kinship through labels and data, read both ways, and what each judge is a judge of."""

from typing import Any

import pytest
from torch import Tensor

from srgym import rewards
from srgym.rewards.info import RewardInfo
from srgym.rewards.kin import JUDGES, independent, independent_judges, installed_judges, purpose, relatives
from srgym.rewards.registry import REWARDS, register_reward


@pytest.mark.parametrize(
    ("metric", "trained", "expected"),
    [
        ("compass", ["compass"], False),
        ("ssimulacra2", ["compass"], False),  # it labels quality
        ("structure_texture", ["compass"], False),  # it labels fidelity
        ("compass", ["ssimulacra2"], False),  # as true the other way round
        ("finpercep", ["compass"], False),  # the compact scorer looks with it
        ("structure_texture", ["ssimulacra2"], False),  # both label COMPASS
        ("lite0_statistics", ["lite0_features"], False),  # one network
        ("topiq_nr", ["musiq"], False),  # one data set of opinions
        ("lite0_features", ["compass", "finpercep", "psnr_y"], True),
        ("flip", ["compass", "finpercep"], True),
        ("psnr_y", ["compass"], True),
        ("psnr_y", ["random"], True),
        ("maniqa", ["musiq"], True),
        ("psnr_y", [], True),
    ],
)
def test_independence_is_of_what_trained_and_labelled(metric: str, trained: list[str], expected: bool) -> None:
    assert independent(metric, trained) is expected


@pytest.mark.parametrize(
    "reward",
    [
        {"name": "compass", "mode": "full_reference", "fidelity": "lite0_statistics"},
        {"sum": {"psnr_y": 0.1, "lite0_features": {"weight": 1.0}}},
        {"sum": {"texture": {"weight": 1.0, "name": "lite0_features"}}},
        {"name": "realsr_r1", "generation": ["lpips", "lite0_features"]},
    ],
)
def test_every_reward_inside_a_specification_counts(reward: Any) -> None:
    assert not independent("lite0_features", [reward])
    assert independent("psnr_chroma", [reward])


def test_a_made_sum_counts_as_its_parts() -> None:
    made = rewards.make({"sum": {"ssim_y": 1.0, "structure_texture": 0.5}})
    assert not independent("ssimulacra2", [made])
    assert independent("psnr_y", [made])
    assert independent(rewards.make("psnr_y"), [made])


def test_a_reward_of_ones_own_declares_what_labelled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REWARDS, "registered", dict(REWARDS.registered))

    @register_reward("distilled", purpose="perceptual", kin=["musiq", "my_photographs"])
    def distilled(sr: Tensor) -> Tensor:
        return sr.mean((1, 2, 3))

    assert relatives(["distilled"]) >= {"distilled", "musiq", "my_photographs", "KonIQ-10k", "liqe"}
    assert not independent("liqe", [distilled])
    assert not independent("distilled", ["topiq_nr"])
    assert purpose("distilled") == purpose(distilled) == "perceptual"


def test_of_what_nothing_is_known_nothing_is_claimed() -> None:
    assert not independent("a_label_of_somebodys", ["psnr_y"])
    assert purpose("a_label_of_somebodys") == ""


def test_judges_are_listed_by_what_they_judge() -> None:
    metrics = {"PSNR": "psnr_y", "looks": {"name": "lite0_features"}, "label": "ssimulacra2", "chance": "random"}
    assert independent_judges(metrics, ["compass"]) == {"fidelity": ["PSNR"], "perceptual": ["looks"]}
    assert independent_judges(metrics, ["psnr_y"]) == {"fidelity": [], "perceptual": ["looks", "label"]}


def test_judges_of_the_extra_are_kin_to_no_reward_that_is_trained_on() -> None:
    for judge in JUDGES:
        assert independent(judge, ["compass", "finpercep", "realsr_r1", "refreward", "dists", "lpips", "ssim_y"])
    assert set(installed_judges()) <= set(JUDGES)


def test_every_built_in_says_what_it_is_a_judge_of() -> None:
    rows = {row["name"]: row for row in rewards.listing() if row["origin"] == "built-in"}
    assert {name for name, row in rows.items() if row["purpose"] == "fidelity"} == {
        "psnr_y", "psnr_chroma", "ssim_y", "ms_ssim", "lucid_consistency"
    }  # fmt: skip
    assert {name for name, row in rows.items() if not row["purpose"]} == {"random", "random_network", "shuffled"}


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a purpose of .*'fidelity', 'perceptual'.*, got 'beauty'"):
        RewardInfo("pretty", "somewhere:pretty", purpose="beauty")
