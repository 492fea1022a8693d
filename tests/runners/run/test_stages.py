"""A run of several stages, on the compact policy in miniature: what is left behind, resumed, and merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srgym import policies
from srgym.policies.flow import FlowPolicy
from srgym.policies.merging import merge_policies
from srgym.runners import Run, make_runner
from srgym.runners.commands.cli import main
from srgym.runners.run.stages import remove_run

SMOKE = ("experiment=smoke", "runner.images_every=0", "runner.iterations=2", "logger=csv")


def smoke(out: Path, *overrides: str) -> Run:
    return make_runner(*SMOKE, f"out={out}", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    smoke(folder).learn()
    return folder


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_every_stage_leaves_a_policy(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["complete"]
    assert record["policy"] == "stages/merged/policy"
    assert list(record["stages"]) == ["cold_start", "reinforce", "merged"]
    # 2 iterations of 2 contexts; NFT draws 4 samples of each
    assert record["stages"]["cold_start"]["images"] == 4
    assert record["stages"]["reinforce"]["images"] == 16
    loaded = {name: policies.load(finished / "stages" / name / "policy") for name in record["stages"]}
    assert [loaded[name].has_adapters for name in record["stages"]] == [False, True, False]
    assert (finished / "stages" / "reinforce" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("agent.name=srgym.agents.dpo:DPP", "module 'srgym.agents.dpo' has no 'DPP'"),
        (
            "agent=srgym.agents.diffusion_nft:DiffusionNFT agent.betta=1",
            "unknown setting 'agent.betta'; did you mean 'agent.beta'",
        ),
        ("reward=srgym.rewards.toys:nothing", "has no 'nothing'"),
        ("reward=finpercep reward.weights=nowhere", "expected FinPercep-RM in 'nowhere'"),
        ("stages.reinforce.env.preset=hard", "'hard'"),
    ],
)
def test_a_later_stage_that_cannot_be_is_refused_before_the_first_trains(override, said, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        smoke(tmp_path, *override.split()).learn()
    assert not (tmp_path / "stages").exists()


def velocity(policy: FlowPolicy, adapter: str | None = None) -> torch.Tensor:
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = policy.encode({"lr": lr})
    x = torch.randn(1, *policy.latent_shape(cond), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), policy.adapter(adapter):
        return policy.velocity(x, torch.tensor([0.5]), cond)


def test_the_merge_adds_the_lora_to_the_cold_started_weights(finished: Path) -> None:
    stages = finished / "stages"
    start, learnt, merged = (policies.load(stages / n / "policy") for n in ("cold_start", "reinforce", "merged"))
    deltas = learnt.adapter_deltas("ema")
    assert max(float(delta.abs().max()) for delta in deltas.values()) > 1e-5
    own, new = dict(start.core.named_parameters()), dict(merged.core.named_parameters())
    for name, parameter in own.items():
        expected = parameter + deltas[name] if name in deltas else parameter
        torch.testing.assert_close(new[name], expected, rtol=0, atol=1e-6)


def test_a_lora_of_the_target_is_folded_in_before_the_merge(finished: Path) -> None:
    folder = finished / "stages" / "reinforce" / "policy"
    merged = merge_policies(folder, folder)
    learnt = policies.load(folder)
    twice = policies.make("compact", **json.loads((folder / "policy.json").read_text())["config"])
    twice.load_base(folder)
    twice.add_deltas(learnt.adapter_deltas("ema"), 2.0)
    torch.testing.assert_close(velocity(merged), velocity(twice), rtol=0, atol=1e-5)


def test_a_policy_without_a_lora_has_nothing_to_merge(finished: Path) -> None:
    folder = finished / "stages" / "cold_start" / "policy"
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_policies(folder, folder)


def test_finished_stages_are_not_run_again(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "stages" / "merged")
    before = (copy / "stages" / "reinforce" / "policy" / "manifest.json").stat().st_mtime_ns
    smoke(copy).learn()
    assert (copy / "stages" / "reinforce" / "policy" / "manifest.json").stat().st_mtime_ns == before
    merged = Path("stages/merged/policy/model.safetensors")
    assert same(copy / merged, finished / merged)


def test_a_stage_with_adapters_resumes_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    """What a crash in the middle of the second stage leaves: its first checkpoint, and no policy."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "stages" / "merged")
    stage = copy / "stages" / "reinforce"
    shutil.rmtree(stage / "policy")
    shutil.rmtree(stage / "checkpoints" / "00000002")
    assert (stage / "checkpoints" / "00000001").is_dir()
    smoke(copy).learn()
    for adapter in ("default", "old", "ema"):
        name = Path(f"stages/reinforce/policy/adapter_{adapter}.safetensors")
        assert same(copy / name, finished / name)


def test_another_run_does_not_go_on_in_the_folder(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"stages\.reinforce\.agent\.kl=0\.0001, and now it is 0\.5.*overwrite=true"):
        smoke(finished, "agent.kl=0.5").learn()
    with pytest.raises(ValueError, match=r"seed=0, and now it is 1"):
        smoke(finished, "seed=1").learn()


def test_settings_of_a_stage_that_has_not_begun_may_be_mended(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished / "stages" / "cold_start", copy / "stages" / "cold_start")
    for name in ("config.json", "run.json"):
        shutil.copy(finished / name, copy / name)
    with pytest.raises(ValueError, match="no adapters"):
        smoke(copy, "stages.reinforce.lora=null").learn()
    smoke(copy).learn()
    merged = Path("stages/merged/policy/model.safetensors")
    assert same(copy / merged, finished / merged)


def test_all_weights_cannot_be_trained_under_adapters(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    run = smoke(copy, "stages.merged.kind=train", "stages.merged.start_from=reinforce", "stages.merged.lora=null")
    shutil.rmtree(copy / "stages" / "merged")
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="stage 'merged' trains all weights .* starts from 'reinforce'"):
        run.learn()


def test_a_stage_starts_from_a_saved_policy(finished: Path, tmp_path: Path) -> None:
    """Of another run, by its folder: its weights stay, a LoRA is put on them."""
    start = finished / "stages" / "cold_start" / "policy"
    alone = ("~stages.cold_start", "~stages.merged")
    smoke(tmp_path / "on", *alone, f"stages.reinforce.start_from={start}").learn()
    trained = policies.load(tmp_path / "on" / "stages" / "reinforce" / "policy")
    assert trained.has_adapters
    assert same(tmp_path / "on" / "stages" / "reinforce" / "policy" / "model.safetensors", start / "model.safetensors")
    nowhere = smoke(tmp_path / "off", *alone, "stages.reinforce.start_from=runs/nowhere")
    with pytest.raises(FileNotFoundError, match="starts from runs/nowhere: no policy was saved there"):
        nowhere.learn()


def test_only_a_run_is_overwritten(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="isn't the folder of a run"):
        remove_run(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    remove_run(copy)
    assert not copy.exists()


STUBBORN = """
import torch
from srgym.policies.compact import CompactPolicy

class Stubborn(CompactPolicy):
    def __init__(self, **options):
        super().__init__(**options)
        self.told = float(torch.ones(3).sum())  # which has no value without storage
"""


def test_a_policy_that_cannot_be_made_without_storage_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn_policy.py").write_text(STUBBORN)
    monkeypatch.syspath_prepend(tmp_path)
    small = [f"policy.{key}={value}" for key, value in
             {"weights": "null", "encoder_width": 8, "encoder_depth": 1, "width": 8, "middle": 8}.items()]  # fmt: skip
    run = make_runner(*SMOKE, "policy=stubborn_policy:Stubborn", *(f"+{o}" for o in small), f"out={tmp_path / 'run'}")
    assert list(run.learn()) == ["cold_start", "reinforce", "merged"]


def test_a_run_from_ones_own_config_folder_is_resumed_without_naming_it(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = (Path(__file__).parents[3] / "configs" / "experiment" / "smoke.yaml").read_text()
    (tmp_path / "mine" / "experiment" / "my_smoke.yaml").write_text(text)
    line = ["train", "experiment=my_smoke", "logger=csv", "runner.images_every=0", f"out={tmp_path / 'run'}"]
    assert main([*line, "--config-dir", str(tmp_path / "mine")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"] == ["srgym", "train", f"--config-dir={tmp_path / 'mine'}", *line[1:]]
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
