"""Settings that can't be: each is a sentence and exit code 2, before anything is trained or written."""

from pathlib import Path

import pytest

from srgym.runners.commands.cli import main

WRONG = [
    ("runner.lr=abc", "runner.lr: expected a number, got 'abc'"),
    ("runner.device=cuda:9", "runner.device: expected auto, or a device of this machine, got 'cuda:9'"),
    ("runner.iterations=0", "runner.iterations: expected at least 1, got 0"),
    ("runner.iterations=true", "runner.iterations: expected a whole number, got True"),
    ("runner=[a]", "runner: expected a mapping, got ['a']"),
    ("seed=1.5", "seed: expected a whole number, got 1.5"),
    ("reward=[a,b]", "reward: expected a text or a mapping, got ['a', 'b']"),
    ("agent.group_size=1", "can't work with groups of 1"),
    ("agent.beta=abc", "agent 'diffusion_nft', beta: expected a number, got 'abc'"),
    ("agent=refl reward=random", "reward 'random' isn't differentiable"),
    ("reward=compass stages.cold_start.reward.gamma=abc", "reward 'compass', gamma: expected a number, got 'abc'"),
    ("lora.rank=0", "lora.rank: expected at least 1, got 0"),
    ("lora.targets=[nope]", "LoRA target 'nope' matches no module"),
    ("lora=3", "lora: expected a mapping, got 3"),
    ("stages.cold_start.lora.rank=2 stages.reinforce.start_from=cold_start stages.reinforce.lora=null",
     "'reinforce' trains all weights (lora=null) but starts from 'cold_start', which has adapters"),
    ("policy=qwen_image_edit", "policy 'qwen_image_edit' has no option 'weights'"),
    ("policy.width=abc", "policy 'compact', width: expected a whole number, got 'abc'"),
    ("env.size=abc", "source 'photographs', size: expected a whole number, got 'abc'"),
    ("env.scale=-1", "a scale is a whole number of at least 1, got -1"),
    ("reward=compass reward.scorer=[a,b]", "expected a scorer, by name, as {'name': ...} or made, got ['a', 'b']"),
    ("stages.merged.weight=heavy", "weight: expected a number, got 'heavy'"),
    ("logger=3", "logger: expected a text or a list, got 3"),
    ("report=yes_please", "report: expected a mapping, got 'yes_please'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[settings for settings, _ in WRONG])
def test_a_dry_run_finds_it(settings: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=smoke", *settings.split(), f"out={tmp_path / 'run'}", "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", ["agent.group_size=1", "lora.targets=[nope]", "agent=refl reward=random"])
def test_training_finds_it_before_the_first_stage(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "experiment=smoke", *settings.split(), f"out={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith("srgym: ")
    assert not (tmp_path / "run" / "stages").exists()


def test_a_folder_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for command in (["train", "experiment=smoke"], ["evaluate", "policy=compact"], ["compare", "agent=nft"]):
        assert main([*command, f"out={tmp_path / 'file' / 'run'}"]) == 2
        assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err


def test_a_dry_run_says_which_files_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=smoke", "env=hr_folder", "env.path=nowhere", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("missing here: expected a folder of images, got nowhere")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate policy=compact steps=abc", "steps: expected a whole number, got 'abc'"),
        ("evaluate policy=compact steps=0", "steps: expected at least 1, got 0"),
        ("evaluate policy=3", "policy: expected a text or a list or a mapping, got 3"),
        ("evaluate policy=compact metrics=3", "metrics: expected"),
        ("evaluate policy=compact save_images=banana", "save_images: expected true or false, got 'banana'"),
        ("compare agent=nft budget=3", "budget: expected a mapping, got 3"),
        ("compare agent=nft budget.images=many", "budget.images: expected a whole number, got 'many'"),
        ("compare agent=nft executor=cloud", "executor: expected 'local' or 'slurm', got 'cloud'"),
        ("compare agent=nft seed=1.5", "seed: expected a whole number or a list, got 1.5"),
        ("train experiment=smoke overwrite=banana", "overwrite: expected true or false, got 'banana'"),
        ("upscale steps=abc nowhere.jpg", "steps: expected a whole number, got 'abc'"),
        ("launch slurm gpus=two experiment=smoke", "gpus: expected a whole number, got 'two'"),
        ("rewards check psnr_y size=abc", "size: expected a whole number, got 'abc'"),
    ],
)
def test_every_command_checks_its_own_settings(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err
