"""Claims and their plan: what is shared, what is refused, and what a cell's name depends on."""

import re
from pathlib import Path

import pytest

from srgym.errors import Refusal
from srgym.runners.commands.cli import main
from srgym.runners.reproduce.claims import claim_names, read_claim, shared_arms
from srgym.runners.reproduce.plan import DOSES, make_plan
from srgym.runners.reproduce.results import wanted
from srgym.runners.run.overrides import defaults

TINY = """
paper: OARS
source: a test
title: Training helps
says: Training raises luma's accuracy.
arms:
  start: {experiment: smoke, probe: {kind: evaluate}, seeds: one}
  cold: {experiment: smoke, stages: [cold_start], seeds: one}
  trained:
    experiment: smoke
    stages: [reinforce]
    overrides: [stages.reinforce.start_from=@cold/stages/cold_start/policy]
    doses: true
  same:
    experiment: smoke
    stages: [reinforce]
    overrides: ["stages.reinforce.start_from=@cold/stages/cold_start/policy"]
    doses: true
testable:
  luma: psnr_y
  the same luma: {sum: {psnr_y: 2.0}}
contrasts:
  - {of: trained, over: start, metric: psnr_y, expect: up, says: it rises}
  - {of: trained, over: same, metric: psnr_y, expect: held, at: distance, primary: false, says: and holds}
"""


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def plan(claims: Path, *more: str):
    return make_plan(["claim=tiny", f"claims={claims}", f"out={claims.parent / 'out'}", *more])


@pytest.mark.parametrize("name", claim_names())
def test_every_claim_can_be_read_and_every_metric_has_a_margin(name):
    claim, arms = read_claim(name, shared_arms())
    margins = defaults("reproduce")["margins"]
    for contrast in claim.contrasts:
        assert contrast.margin is not None or contrast.metric in margins
        assert contrast.at != "distance" or (arms[contrast.of].doses and arms[contrast.over].doses)
        assert contrast.metric != "wobble" or (arms[contrast.of].climbs and arms[contrast.of].curve > 2)
    assert claim.contrasts or claim.testable


def test_all_claims_can_be_planned(tmp_path):
    made = make_plan(["seeds=1", "many=1", f"out={tmp_path}"])
    assert {claim.name for claim in made.claims} == set(claim_names())
    assert all(made.cells_of(claim.contrasts) or made.checks[claim.name] for claim in made.claims)


def test_claims_of_oars_are_of_any_policy(tmp_path):
    """Its arms start from policies of other arms by their folders, whatever the policy."""
    real = ["policy=sd3", "policy.path=models/sd3", "env=hr_folder", "env.path=HR", "env.size=512", "runner.lr=3e-4"]
    made = make_plan(["claim=[oars_table4,oars_table5,oars_table7]", *real, "seeds=1", "many=1", f"out={tmp_path}"])
    runs = [planned.config for planned in made.cells.values() if planned.cell.request.get("probe") is None]
    stages = [stage.sections for config in runs for stage in config.stages]
    assert len(runs) == 10 and {stage["policy"]["name"] for stage in stages} == {"sd3"}
    assert {(stage["env"]["name"], stage["env"]["size"]) for stage in stages} == {("hr_folder", 512)}
    assert {stage["runner"]["lr"] for stage in stages if stage["agent"]["name"] != "cold_start"} == {3e-4}
    (tuned,) = (config for config in runs if any("/stages/cold_start/policy" in s.start_from for s in config.stages))
    assert [stage.name for stage in tuned.stages] == ["full_reference", "non_reference"]


def test_arms_of_equal_settings_share_their_cells(claims):
    made = plan(claims)
    assert made.arms["trained"] == made.arms["same"]
    assert made.doses["trained"] == made.doses["same"]
    assert len(set(made.arms["trained"].values())) == 3  # of three seeds
    kinds = [name.rpartition("_")[0] for name in made.cells]
    assert sorted(kinds) == ["agreement", "cold_start", *["diffusion_nft"] * 3, *["evaluate"] * 4]


def test_a_cell_needs_what_it_refers_to_and_reads_its_folder(claims):
    made = plan(claims)
    trained = made.cells[made.arms["trained"][1]].cell
    (needed,) = trained.needs
    assert made.cells[needed].arm == "cold"
    start = f"{made.folder}/cells/{needed}/run/stages/cold_start/policy"
    assert f"stages.reinforce.start_from={start}" in trained.request["overrides"]
    dosed = made.cells[made.doses["trained"][1]].cell
    assert set(dosed.needs) == {trained.name, needed}
    assert dosed.request["probe"]["weights"] == list(DOSES)
    assert list(made.cells).index(needed) < list(made.cells).index(trained.name)


def test_the_claim_of_the_how_to_can_be_planned(tmp_path):
    page = Path(__file__).parents[3] / "docs" / "howto" / "test_a_claim.md"
    text = re.search(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)[1]
    (tmp_path / "gdpo.yaml").write_text(text)
    made = make_plan([f"claims={tmp_path}", "claim=gdpo", "seeds=2", f"out={tmp_path / 'out'}"])
    assert sorted(name.rpartition("_")[0] for name in made.cells) == ["dpo", "dpo", "gdpo_sr", "gdpo_sr"]


def test_what_training_cannot_tell_apart_is_not_trained(claims):
    text = TINY.replace('overrides: ["stages.reinforce', 'overrides: [runner.lr=0.5, "stages.reinforce')
    text = text.replace("  luma: ", "  trained: ").replace("  the same luma: ", "  same: ")
    (claims / "tiny.yaml").write_text(text)
    made = plan(claims)
    assert list(made.checks["tiny"]) == [("same", "trained")]
    whole, part = (wanted(made, {"tiny": {("same", "trained"): r}}) for r in (0.5, 0.995))
    assert whole == set(made.cells)
    assert {made.cells[name].arm for name in whole - part} == {"same"}
    assert set(made.arms["same"].values()) | set(made.doses["same"].values()) <= whole - part


def test_pairs_of_arms_are_asked_about_where_a_contrast_holds_them(tmp_path):
    made = make_plan(["claim=[oars_table3,oars_table7,oars_table8]", f"out={tmp_path}"])
    pairs = {claim: [set(pair) for pair in own] for claim, own in made.checks.items()}
    assert len(pairs["oars_table3"]) == 3
    assert pairs["oars_table7"] == [{"nft_compass", "nft_" + to} for to in ("delta_q", "finpercep", "structure", "sum")]
    assert pairs["oars_table8"] == [{"nft_compass", "nft_delta_q"}, {"nft_compass", "formulation 2"},
                                    {"nft_delta_q", "formulation 2"}]  # fmt: skip


def test_names_follow_settings_and_not_folders(claims, tmp_path):
    here = plan(claims)
    there = make_plan(["claim=tiny", f"claims={claims}", f"out={tmp_path / 'elsewhere'}"])
    assert list(here.cells) == list(there.cells)
    other = plan(claims, "runner.lr=0.5")  # of all that train, and of what is built on them
    assert set(here.cells) & set(other.cells) == {
        name for name, planned in here.cells.items() if planned.arm in ("start", "check")
    }


def test_a_tier_says_how_much(claims):
    made = plan(claims, "tier=full", "seeds=2")
    assert (made.settings["seeds"], made.settings["many"], made.settings["effort"]) == (2, 8, 1.0)
    assert "effort=1.0" in made.cells[made.arms["trained"][0]].cell.request["overrides"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["claim=oars_table55"], "claim=oars_table55 doesn't exist; did you mean 'oars_table5'?"),
        (["tier=quik"], "tier=quik doesn't exist: expected one of quick, full; did you mean 'quick'?"),
        (["seeds=0"], "seeds: expected at least 1, got 0"),
        (["precheck.limit=2"], "precheck.limit: expected at most 1"),
        (["claim=oars_section4", "reward=psnr_y,ssim_y"], "'reward=psnr_y,ssim_y' asks for several runs"),
        (["claim=oars_section4", "runner.lrr=1"], "unknown setting 'runner.lrr'; did you mean 'runner.lr'?"),
        (["claims=nowhere"], "expected a folder of claims at nowhere, found none"),
    ],
)
def test_what_cannot_be_is_refused(arguments, sentence, capsys, tmp_path):
    assert main(["reproduce", "--print", *arguments, f"out={tmp_path}"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("source: a test", "sauce: a test", "claims/tiny.yaml has an unknown key 'sauce'; did you mean 'source'?"),
        ("over: start", "over: strat", "claims/tiny.yaml: no arm is called 'strat'; did you mean 'start'?"),
        ("says: and holds", "says: it rises", "two contrasts say 'it rises' of one metric"),
        ("at: distance, primary", "over: null, at: distance, primary", "needs an arm to be held against: over"),
        ("expect: up", "expect: rise", "expect: expected 'up', 'down' or 'held', got 'rise'"),
        ("stages: [cold_start]", "stages: [cold_strat]",
         "experiment smoke has no stage 'cold_strat'; did you mean 'cold_start'?"),
        ("{kind: evaluate}", "{kind: guess}", "arms.start.probe.kind=guess doesn't exist: expected one of evaluate"),
        ("@cold/", "@warm/", "no arm is called 'warm'"),
        ("  cold: {", "  Cold: {", "an arm's name has small letters, digits and underscores, got 'Cold'"),
        ("paper: OARS", "paper: OARS\nprinted: {table: '99', dataset: RealSR, rows: [], metrics: []}",
         "OARS has no published table 99 on RealSR"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused(before, after, sentence, claims):
    (claims / "tiny.yaml").write_text(TINY.replace(before, after, 1))
    with pytest.raises(Refusal, match=re.escape(sentence)):
        plan(claims)


def test_what_a_run_would_stumble_over_is_refused_before_any_runs(claims, capsys):
    of_trained = "stages: [reinforce]\n    overrides: ["
    (claims / "tiny.yaml").write_text(TINY.replace(of_trained, f"{of_trained}env=preferences, env.path=nowhere, ", 1))
    out = claims.parent / "out"
    assert main(["reproduce", "claim=tiny", f"claims={claims}", f"out={out}"]) == 2
    assert "Preferences' has no option 'size'" in capsys.readouterr().err
    assert not (out / "cells").exists()


def test_test_time_tuning_sees_the_test_images_and_no_truth(tmp_path):
    made = make_plan(["claim=oars_table4", "seeds=1", "many=1", f"out={tmp_path}"])
    tuned = next(planned for planned in made.cells.values() if planned.arm == "on_base")
    stages = {stage.name: stage for stage in tuned.config.stages}
    assert list(stages) == ["full_reference", "non_reference", "ttt"]
    assert stages["ttt"].start_from == "non_reference"
    assert stages["ttt"].sections["env"] == {**stages["non_reference"].sections["env"], "split": "test"}
    assert stages["ttt"].sections["reward"]["mode"] == "non_reference"
    where = {planned.arm: planned.cell.request.get("probe", {}).get("test") for planned in made.cells.values()}
    assert (where["there"], where["elsewhere"]) == ({"split": "test"}, {"split": "validation"})


def test_the_curriculums_generator_climbs_each_model_of_one_training(tmp_path):
    made = make_plan(["claim=finpercep_ccl", "seeds=1", f"out={tmp_path}"])
    arms = {planned.arm: planned for planned in made.cells.values() if planned.cell.request.get("probe") is None}
    models = arms.pop("models").cell.name
    rewards = {arm: [stage.sections["reward"] for stage in own.config.stages] for arm, own in arms.items()}
    prefix = f"{models}/stages/scorer/"
    climbed = {arm: [reward["weights"].removeprefix(prefix) for reward in own] for arm, own in rewards.items()}
    assert climbed == {
        "curriculum": ["rm0", "rm1", "rm2", "rm3"], "reversed": ["rm3", "rm2", "rm1", "rm0"], "fixed": ["rm3"] * 4,
    }  # fmt: skip
    shares = [stage.sections["runner"]["iterations"] for stage in arms["curriculum"].config.stages]
    assert [share / sum(shares) for share in shares] == [0.4, 0.2, 0.2, 0.2]
