"""The site's pages of reference: every registered name, command and key is there, and says what it means."""

import inspect
import re
import sys
from pathlib import Path

import meanings
import pytest
import reference
import yaml

from srgym.runners.commands.cli import COMMANDS
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.run.groups import PARTS, options
from srgym.settings import parameters

ROOT = Path(__file__).parent.parent
FILES = {"env": "sources", "reward": "rewards", "policy": "policies", "agent": "agents"}


@pytest.fixture(scope="module")
def pages():
    return {Path(name).stem: text for name, text in reference.pages()}


def rows(text):
    """The cells of every row of the tables in a page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def section(text, name):
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found


@pytest.mark.parametrize("group", FILES)
def test_every_part_is_there_with_every_key_and_its_meaning(pages, group):
    registry = PARTS[group]
    for name in set(registry.names()) - set(registry.aliases):
        shown = {row[0].strip("`"): row for row in rows(section(pages[FILES[group]], name)) if row[0].startswith("`")}
        wanted = set(registry.options(registry.find(name)) or ())
        path = ROOT / "configs" / group / f"{name}.yaml"
        if path.is_file():
            wanted |= set(yaml.safe_load(path.read_text())) - {"name"}
        for key in wanted:
            held = [row for at, row in shown.items() if at == f"{group}.{key}" or at.startswith(f"{group}.{key}.")]
            assert held, f"{group} '{name}': {key} isn't in the reference"
            assert all(row[2] and not row[2].lower().startswith("see ") for row in held), f"{group} '{name}': {key}"


def test_what_comes_with_every_call_is_no_setting(pages):
    assert "No settings." in section(pages["rewards"], "psnr_y")


def test_every_other_setting_is_there_with_its_meaning(pages):
    shown = {row[0].strip("`"): row for row in rows(pages["settings"]) if len(row) == 3}
    wanted = {f"runner.{key}" for key in parameters(RunnerSettings)[0]}
    for name in ("config", "compare", "evaluate"):
        wanted |= set(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())) - {"defaults"}
    for key in wanted:
        held = [row for at, row in shown.items() if at == key or at.startswith(f"{key}.")]
        assert held and all(row[2] for row in held), f"{key} has no meaning: say it beside it in configs/"


def test_every_key_of_a_stage_is_there():
    from srgym.runners.run.config import _STAGE_KEYS

    assert [key for key, _, _ in reference.STAGE] == list(_STAGE_KEYS)


def test_every_command_and_experiment_is_there(pages):
    for name in COMMANDS:
        assert f"srgym {name}" in section(pages["commands"], name)
    said = {row[0].strip("`"): row[1] for row in rows(pages["settings"]) if len(row) == 2}
    assert all(said[name] for name in options("experiment"))


@pytest.mark.parametrize("package", reference.PUBLIC)
def test_every_public_name_is_there_and_documented(pages, package):
    page = pages[package.replace(".", "_")]
    for module in (package, *reference.PUBLIC[package]):
        held = sys.modules.get(module) or __import__(module, fromlist=["_"])
        for name in reference.public_names(module):
            found = getattr(held, name)
            assert re.search(rf"(\.|#+ ){name}$", page, re.MULTILINE), f"{module}.{name}"
            if inspect.isclass(found) or callable(found):
                assert inspect.getdoc(found), f"{module}.{name} has no docstring"


def test_a_meaning_is_followed_to_where_it_is_written():
    """DGPO's time_share says "see `ForwardAgent`"; DiffusionNFT's form says "see `nft_loss`"."""
    from srgym.agents import DGPO, DiffusionNFT

    assert meanings.meaning(DGPO, "time_share").startswith("of the sampler's times, how many")
    assert meanings.meaning(DiffusionNFT, "form").startswith('"plain", OARS eq. 8')


def test_a_comment_belongs_to_the_key_that_it_stands_beside(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("# A file.\n# Of two lines.\na: 1  # the first\nb:\n  # above\n  c: '#'\n  d: 2  # last\n")
    assert meanings.header(path) == "A file. Of two lines."
    assert meanings.comments(path) == {"a": "the first", "b.c": "above", "b.d": "last"}


def test_prose_is_no_markup():
    assert reference.said("a_b * [B] <x> `code_*` $HOME") == r"a\_b \* \[B\] &lt;x&gt; `code_*` \$HOME"
    assert reference.table(["a"], [["x | y"]]) == "| a |\n| --- |\n| x \\| y |\n"
