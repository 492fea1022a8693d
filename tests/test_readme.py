"""What README.md and the pages of docs/ show: commands that compose, code that runs, files that are there, and the
messages that commands print."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from documents import README, ROOT, blocks, commands, pages, shown
from PIL import Image
from skimage import data

from srgym.rewards.registry import REWARDS
from srgym.runners.commands.cli import COMMANDS, main
from srgym.runners.run.config import compose, options, resolve

TUTORIALS = ROOT / "docs" / "tutorials"
SHOWN = {line: page for page in pages() for line in commands(page)}


def test_there_is_something_to_test():
    assert len(SHOWN) >= 60 and len(commands(README)) >= 8 and len(blocks(README, "python")) == 3


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """What a test imports and registers of its own is gone after it."""
    monkeypatch.setattr(REWARDS, "registered", dict(REWARDS.registered))
    for module in ("my_agents", "my_rewards"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    """The agent and the reward that the tutorials write, where Python finds them; the reward by its short name too."""
    (tmp_path / "my_agents.py").write_text(shown(TUTORIALS / "own_agent.md", "(Agent)"))
    (tmp_path / "my_rewards.py").write_text(shown(README, "register_reward"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(REWARDS.builtin, "edges", "my_rewards:edges")


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_exists_and_its_settings_compose(line, own_parts):
    command, *arguments = shlex.split(line.split(" 2>")[0].split(" || ")[0])[1:]
    assert command in COMMANDS
    given = [a for a in arguments if ("=" in a and not a.startswith("-")) or a.startswith("~")]
    named = [a.partition("=")[2] for a in given if a.startswith("experiment=")]
    assert all(name in options("experiment") for name in named)
    if command == "train" and "resume=" not in line and "temprature" not in line:
        assert resolve(*compose(given)).stages


def test_the_environment_runs_as_shown():
    scope = {}
    exec(shown(README, "gymnasium.make"), scope)
    assert scope["terminated"] and not scope["truncated"]
    assert 0 < scope["reward"] <= 1 and scope["info"]["valid"]


def test_the_run_is_made_as_shown():
    scope = {}
    exec(shown(README, "make_runner"), scope)
    assert [stage.name for stage in scope["run"].config.stages][:2] == ["cold_start", "full_reference"]


def test_the_verdicts_on_the_papers_claims_are_those_of_their_page():
    def rows(text):
        lines = [line for line in text.splitlines() if line.startswith(("| OARS", "| FinPercep", "| Ref", "| RealSR"))]
        return [[cell.strip(" |*") for cell in line.split(" | ")] for line in lines]

    told = README.read_text().partition("<!-- claims -->")[2].partition("<!-- end of claims -->")[0]
    page = (ROOT / "docs" / "reproduction.md").read_text().partition("*Cost is of one core")[0]
    assert len(rows(told)) == len(list((ROOT / "configs" / "claims").glob("*.yaml")))
    assert rows(told) == [[where, title, verdict] for where, title, _, _, verdict, *_ in rows(page)]


@pytest.mark.parametrize("page", [README, TUTORIALS / "own_reward.md"], ids=lambda page: page.stem)
def test_the_reward_as_shown_is_a_reward(page):
    from srgym import rewards

    exec(shown(page, "register_reward"), {"__name__": "readme"})
    image = torch.rand(2, 3, 16, 16)
    reward = rewards.make("edges")
    assert torch.equal(reward(image, hr=image).total, torch.zeros(2))
    assert (reward(image, hr=torch.rand(2, 3, 16, 16)).total < 0).all()


def test_the_agent_as_shown_trains(tmp_path, own_parts):
    from srgym.runners import make_runner

    run = make_runner(
        "agent=my_agents:RWR",
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "concepts").glob("*.md")), ids=lambda page: page.stem)
def test_the_code_of_the_concepts_runs(page, capsys):
    shown = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(shown) == len(blocks(page, "python"))
    for block, output in shown:
        exec(block, {})
        assert capsys.readouterr().out == output


def sessions(page):
    """Commands and what they print, of the blocks that show both."""
    for block in blocks(page, "console"):
        yield [(part.partition("\n")[0], part.partition("\n")[2]) for part in re.split(r"^\$ ", block, flags=re.M)[1:]]


FAQ = list(sessions(ROOT / "docs" / "faq.md"))


def test_ten_errors_are_told():
    assert len(FAQ) == 10


@pytest.mark.parametrize("session", FAQ, ids=lambda session: session[-1][0][:40])
def test_errors_are_as_the_commands_print_them(session, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where weights may lie
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SRGYM_WEIGHTS", raising=False)
    (tmp_path / "OLD").mkdir()
    for i in range(10):
        Image.fromarray(data.astronaut()[i : i + 64, :64]).save(tmp_path / "OLD" / f"{i}.png")
    for line, message in session:
        code = main(shlex.split(line)[1:])
        printed = capsys.readouterr().err
        pattern = ".*?".join(map(re.escape, message.strip().split("...")))
        if message:
            assert code == 2 and re.fullmatch(pattern, printed.strip(), re.DOTALL), printed
        else:
            assert code == 0, printed


LINKS = [(page, link) for page in pages() for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text())]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: getattr(value, "stem", None))
def test_every_file_it_links_to_is_there(page, link):
    target = Path(os.path.normpath(page.parent / link))
    if not target.is_relative_to(ROOT / "docs" / "reference"):  # made pages; the site's build checks links to them
        assert target.exists()


@pytest.mark.parametrize("line", ["make demo", "make test"])
def test_its_first_commands_are_targets_of_the_makefile(line):
    assert f"    {line}\n" in README.read_text()
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_version_is_the_same_everywhere():
    import yaml

    import srgym

    changes = (ROOT / "CHANGELOG.md").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == srgym.__version__ and cited["license"] == "Apache-2.0"
    assert f"## {srgym.__version__}" in changes or "## Unreleased" in changes
