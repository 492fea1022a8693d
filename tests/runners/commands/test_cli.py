"""The command line: help and mistakes at once, one sentence an error, and runs that stop and go on."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from srgym.runners.commands.cli import COMMANDS, main
from srgym.runners.commands.completion import offers

TINY = [
    "experiment=compact_base", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8", "policy.middle=8",
    "env.size=32", "runner.contexts=2", "runner.eval_every=0", "runner.images_every=0", "runner.log_every=1",
    "runner.autocast=off", "logger=csv",
]  # fmt: skip
SMOKE = ["experiment=smoke", "runner.eval_every=0", "runner.images_every=0", "logger=csv"]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"srgym {command}" in capsys.readouterr().out
    assert callable(import_module(f"srgym.runners.commands.{command}").run)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["trian"], ["upscale", "stpes=3"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    script = (
        "import sys; from srgym.runners.commands.cli import main; main(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'peft', 'transformers', 'torchrl', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "unknown command 'trian'"),
        (["train", "experiment=smok"], "did you mean 'smoke'"),
        (["train", "resume=nowhere"], "resume=nowhere: expected the folder of a run"),
        (["train", "--config-dir"], "--config-dir expects a value"),
        (["train", *SMOKE, "runner.schedule=cosin"], "runner.schedule: expected 'constant', 'cosine' or"),
        (
            ["train", *SMOKE, "runner.device=gpu"],
            "runner.device: expected auto, or a device of this machine, got 'gpu'",
        ),
        (["train", *SMOKE, "logger=tensorbord"], "logger is one of csv, tensorboard, wandb, trackio"),
        (["train", *SMOKE, "stages.reinforce.lora=null"], "has no adapters to keep the two apart"),
        (["train", "reward=compass_mllm", "+reward.judge.engine.token=hf_abc"], "reward.judge.engine.token holds a se"),
        (["train", *SMOKE, "name=${oc.env:HOME}"], "expected ${another.setting}, and no function in a reference"),
        (["evaluate", "policy=here", "env.path=${oc.env:HOME}"], "expected ${another.setting}"),
        (["rewards", "compas"], "did you mean 'compass'"),
        (["rewards", "check"], "expects one reward, got 0"),
        (["upscale"], "expects an image or a folder"),
        (["upscale", "nothing.jpg"], "expected an image or a folder of images at nothing.jpg"),
        (["upscale", "nothing.jpg", "stpes=3"], "did you mean 'steps'"),
        (["merge", "lora=here"], "needs into=PATH"),
        (["doctor", "serers=[]"], "did you mean 'servers'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("srgym: ")
    assert message in told


def test_print_shows_complete_settings(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert main(["train", "experiment=smoke", "agent.kl=0.25", "--print"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["stages"]["reinforce"]["agent"]["kl"] == 0.25
    assert shown["stages"]["reinforce"]["agent"]["group_size"] == 4


def test_rewards_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["psnr_y"]["needs"] == ["hr"]


def test_rewards_check_fails_on_a_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def upside_down(sr, hr):\n    return (sr - hr).abs().mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["rewards", "check", "mine:upside_down"]) == 1
    assert "direction" in capsys.readouterr().out
    assert main(["rewards", "check", "ssim_y"]) == 0


def test_envs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    assert "photographs" in capsys.readouterr().out
    assert main(["envs", "env=photographs", "env.split=test"]) == 0
    assert "contexts, LR of 32 x 32 pixels, x4, with degradation, hr, lr" in capsys.readouterr().out


def test_doctor_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    main(["doctor", f"out={tmp_path}", "servers=http://127.0.0.1:9", "all=true"])
    shown = capsys.readouterr().out
    assert "note  4096 threads on" in shown
    assert "no reward server answers at http://127.0.0.1:9" in shown
    assert f"{tmp_path} is writable" in shown
    assert "ok    torch " in shown


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_sigterm_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "srgym", "train", *TINY, f"out={folder}", "runner.iterations=4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = folder / "stages" / "main" / "metrics.csv"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.splitlines()[-1] == f"srgym: stopped by SIGTERM after saving; go on with: srgym train resume={folder}"
    reached = int(metrics.read_text().splitlines()[-1].split(",")[0])
    assert main(["train", f"resume={folder}", f"runner.iterations={reached + 1}"]) == 0
    steps = [line.split(",")[0] for line in metrics.read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, reached + 2)]
    assert json.loads((folder / "run.json").read_text())["complete"]


@pytest.mark.parametrize("words", [["compare"], ["launch"], ["launch", "slurm"]])
def test_a_bare_command_shows_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert f"srgym {words[0]}" in capsys.readouterr().out


def test_a_shell_is_offered_commands_settings_and_values() -> None:
    assert {"train", "evaluate"} <= set(offers([], "", list(COMMANDS)))
    assert list(offers([], "tr", list(COMMANDS))) == ["train"]
    assert list(offers(["train"], "agent=d", [])) == ["agent=dgpo", "agent=diffusion_nft", "agent=dpo"]
    assert "runner.lr=" in list(offers(["train", "experiment=oars"], "runner.l", []))
    assert "stages.cold_start.runner.lr=" in list(offers(["train", "experiment=oars"], "stages.cold", []))
    assert "runner.lr=" in list(offers(["train", "experiment=nothing"], "runner.l", []))


def test_a_shell_is_answered_through_argcomplete(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    line = "srgym train agent=di"
    asked = {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "_ARGCOMPLETE_COMP_WORDBREAKS": " \n",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "srgym"], env=os.environ | asked, check=True)
    assert (tmp_path / "answer").read_text().strip() == "agent=diffusion_nft"


def test_a_configuration_cannot_read_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text("# @package _global_\nname: ${oc.env:HOME}\n")
    assert main(["train", f"--config-dir={tmp_path}", "experiment=theirs", "--print"]) == 2
    captured = capsys.readouterr()
    assert "name='${oc.env:HOME}'" in captured.err and os.environ["HOME"] not in captured.out + captured.err


def test_the_current_folder_is_not_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('the current folder was imported')")
    (tmp_path / "theirs.py").write_text("raise SystemExit('the current folder was imported')")
    for arguments in (["--version"], ["rewards", "check", "theirs:reward"]):
        command = [sys.executable, "-m", "srgym", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "the current folder was imported" not in ended.stdout + ended.stderr
        assert ended.returncode == (2 if "check" in arguments else 0), ended.stderr
    assert "there is no module 'theirs'" in ended.stderr
