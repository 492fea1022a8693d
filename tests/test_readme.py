"""The README's own lines: commands that compose, code that runs, files and folders that are there."""

import re
import shlex
from pathlib import Path

import pytest

from srgym.runners.commands.cli import COMMANDS
from srgym.runners.run.config import compose, resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = [line.strip().split("#")[0].strip() for line in README.splitlines()]
COMMAND_LINES = [line.removeprefix(".venv/bin/") for line in LINES if re.match(r"(\.venv/bin/)?srgym \w", line)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_test():
    assert len(COMMAND_LINES) >= 6 and len(PYTHON) == 4


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_exists_and_its_settings_compose(line, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "agents.py").write_text(next(code for code in PYTHON if "(Agent)" in code))
    monkeypatch.syspath_prepend(tmp_path)
    command, *arguments = shlex.split(line)[1:]
    assert command in COMMANDS
    if command == "train":
        given = [a for a in arguments if not a.startswith("--") and a not in ("reward=edges",)]
        assert resolve(*compose(given)).stages
    elif command == "compare":
        experiment = next(a for a in arguments if a.startswith("experiment="))
        assert (ROOT / "configs" / "experiment" / f"{experiment.removeprefix('experiment=')}.yaml").is_file()


def test_the_environment_runs_as_shown():
    shown = next(code for code in PYTHON if "gymnasium.make" in code)
    scope = {}
    exec(shown, scope)
    assert scope["terminated"] and not scope["truncated"]
    assert 0 < scope["reward"] <= 1 and scope["info"]["valid"]


def test_the_reward_as_shown_is_a_reward():
    import torch

    from srgym import rewards

    shown = next(code for code in PYTHON if "register_reward" in code)
    exec(shown, {"__name__": "readme"})
    image = torch.rand(2, 3, 16, 16)
    reward = rewards.make("edges")
    assert torch.equal(reward(image, hr=image).total, torch.zeros(2))
    assert (reward(image, hr=torch.rand(2, 3, 16, 16)).total < 0).all()


def test_the_agent_as_shown_trains(tmp_path, monkeypatch):
    from srgym.runners import make_runner

    (tmp_path / "readme_agents.py").write_text(next(code for code in PYTHON if "(Agent)" in code))
    monkeypatch.syspath_prepend(tmp_path)
    run = make_runner(
        "agent=readme_agents:RWR",
        "agent.temperature=0.3",
        "agent.group_size=4",
        "experiment=smoke",
        f"out={tmp_path}/run",
    )
    run.learn()
    header, *rows = (tmp_path / "run/stages/reinforce/metrics.csv").read_text().splitlines()
    column = header.split(",").index("optim/gradient_norm")
    moved = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert len(moved) == 2 and all(0 < norm < float("inf") for norm in moved)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_file_it_shows_is_there(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("line", ["make demo", "make test"])
def test_its_first_commands_are_targets_of_the_makefile(line):
    assert f"    {line}\n" in README
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
