"""Every part by name: other packages' parts, aliases, paths, and what is said of a name that is none."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch

import srgym
from srgym import agents, envs, policies, rewards
from srgym.agents.registry import AGENTS
from srgym.envs.sources import SOURCES
from srgym.policies.registry import POLICIES
from srgym.rewards.registry import REWARDS
from srgym.runners.run.config import compose, resolve

REGISTRIES = {"agent": AGENTS, "env": SOURCES, "policy": POLICIES, "reward": REWARDS}

THEIRS = '''
"""One part of every kind."""

import torch
from srgym.agents.refl import REFL
from srgym.envs import Sample, Source
from srgym.policies.compact import CompactPolicy
from srgym.rewards import register_reward


class Squares(Source):
    """Grey squares."""

    size, provides = (8, 8), frozenset({"lr", "hr"})

    def __init__(self, level=0.5, scale=2):
        self.level, self.scale = level, scale

    def __len__(self):
        return 4

    def __getitem__(self, index):
        side = 8 * self.scale
        return Sample(f"square{index}", torch.full((3, 8, 8), self.level), torch.full((3, side, side), self.level))


class Small(CompactPolicy):
    """The compact policy, smaller."""

    name = "small"

    def __init__(self, *, scale=4, width=8):
        super().__init__(scale, None, 8, 1, width, 8)
        self._width = width

    @property
    def config(self):
        return {"scale": self.scale, "width": self._width}


class Late(REFL):
    """REFL of the last step."""

    name = "late"

    def __init__(self, policy, reward=None, *, pull=1.0, **options):
        super().__init__(policy, reward, **options)
        self.pull = pull


@register_reward("bright", differentiable=True)
def bright(sr, gain: float = 1.0):
    """How bright."""
    return gain * sr.mean((1, 2, 3))
'''
OFFERS = """
[srgym.envs]
squares = theirs_of_all:Squares
photographs = theirs_of_all:Squares
[srgym.policies]
small = theirs_of_all:Small
[srgym.agents]
late = theirs_of_all:Late
[srgym.rewards]
bright = theirs_of_all:bright
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An installed distribution that offers a part of every kind."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (tmp_path / "theirs_of_all.py").write_text(THEIRS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(OFFERS)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in REGISTRIES.values():
        vars(registry).pop("installed", None)
    with pytest.warns(UserWarning, match="source 'photographs' of theirs_of_all:Squares is hidden by srgym.envs"):
        assert SOURCES.names().count("photographs") == 1
    yield
    for registry in REGISTRIES.values():
        vars(registry).pop("installed", None)
    REWARDS.registered.pop("bright", None)
    sys.modules.pop("theirs_of_all", None)


@pytest.mark.usefixtures("theirs")
def test_parts_of_another_package_train_together_by_name(tmp_path):
    run = srgym.make_runner(
        *("env=squares", "policy=small", "agent=late", "reward=bright", "lora=null", "heldout=null"),
        *("runner.iterations=1", "runner.contexts=2", "agent.steps=2", "agent.pull=0.5", "env.level=0.25"),
        f"out={tmp_path / 'run'}",
    )
    sections = run.config.stages[0].sections
    assert sections["env"] == {"name": "squares", "level": 0.25, "scale": 2, "prompts": False, "descriptions": None}
    assert sections["policy"] == {"name": "small", "scale": None, "width": 8}
    assert sections["agent"]["pull"] == 0.5 and sections["agent"]["late"] == 0.25  # its base's default, too
    assert sections["reward"] == {"name": "bright", "gain": 1.0}
    run.learn()
    policy = policies.load(tmp_path / "run")
    assert type(policy).__name__ == "Small" and policy.scale == 2
    saved = next((tmp_path / "run").rglob("policy.json"))
    assert json.loads(saved.read_text())["policy"] == "small"


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("choice", "option", "near"),
    [
        ("env=squares", "env.levle", "env.level"),
        ("policy=small", "policy.widht", "policy.width"),
        ("agent=late", "agent.pul", "agent.pull"),
        ("reward=bright", "reward.gian", "reward.gain"),
        ("env=theirs_of_all:Squares", "env.levle", "env.level"),
    ],
)
def test_a_misspelt_option_of_theirs_is_refused_with_the_nearest(choice, option, near):
    with pytest.raises(ValueError, match=f"unknown setting '{option}'; did you mean '{near}'"):
        resolve(*compose([choice, f"{option}=1"]))


@pytest.mark.usefixtures("theirs")
def test_their_parts_are_made_and_listed():
    assert envs.make_source("squares", level=0.25)[0].lr.max() == 0.25
    assert envs.make_source({"name": "theirs_of_all:Squares", "level": 1.0})[0].lr.max() == 1
    assert policies.make("small").scale == 4
    rows = {row["name"]: row for row in envs.sources.listing()}
    assert (rows["squares"]["origin"], rows["hr_folder"]["origin"]) == ("theirs", "built-in")
    row = next(row for row in rewards.listing() if row["name"] == "bright")
    assert (row["origin"], row["licence"], row["doc"]) == ("theirs", "not stated", "How bright.")
    assert rewards.make("bright", gain=2.0)(torch.full((1, 3, 4, 4), 0.25)).total.tolist() == [0.5]
    with pytest.raises(ValueError, match="source 'squares' has no option 'levle': did you mean 'level'"):
        envs.make_source("squares", levle=1)


def test_what_is_of_the_wrong_kind_is_never_called(tmp_path, monkeypatch):
    (tmp_path / "tripwire.py").write_text(
        "def pull(*given, **more):\n    raise AssertionError('called')\nclass Wire:\n    __init__ = pull\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for registry in REGISTRIES.values():
        for path in ("tripwire:pull", "tripwire:Wire", "subprocess:Popen"):
            with pytest.raises(ValueError, match=f"{registry.noun} '{path}': expected .*, got <"):
                registry.make(path)
    for group in REGISTRIES:
        with pytest.raises(ValueError, match="'tripwire:Wire': expected .*, got <class 'tripwire.Wire'>"):
            compose([f"{group}=tripwire:Wire"])


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=list(REGISTRIES))
def test_names_that_lead_nowhere(registry):
    name = registry.names()[0]
    near = rf"unknown {registry.noun} '{name}x': did you mean '{name}'\? expected one of {name}, .* or module:attribute"
    for wrong, message in {
        f"{name}x": near,
        "not a path:x": "unknown .* 'not a path:x': expected one of",
        "nowhere.at_all:X": "'nowhere.at_all:X': there is no module 'nowhere.at_all' to import",
        "srgym.files:write_jsn": "did you mean 'write_json'. module 'srgym.files' has no 'write_jsn'",
    }.items():
        with pytest.raises(ValueError, match=message):
            registry.find(wrong)
    with pytest.raises(TypeError, match=f"expected a {registry.noun}'s name, or .*, got 3"):
        registry.make(3)
    with pytest.raises(ValueError, match=f"expected a {registry.noun} as .*, got the keys 'nmae'"):
        registry.make({"nmae": name})


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=list(REGISTRIES))
def test_every_built_in_name_is_what_its_registry_wants(registry):
    for name in registry.builtin:
        assert registry.name_of(registry.find(name)) == name and registry.origin(name) == "built-in"


def test_an_option_that_must_be_given():
    with pytest.raises(ValueError, match="source 'hr_folder' needs 'path', got 'scale'"):
        envs.make_source("hr_folder", scale=2)
    assert POLICIES.options(POLICIES.find("sd3"))["max_length"] == 256  # its own
    assert POLICIES.options(POLICIES.find("sd3"))["rows"] == 8  # what it passes on

    def anything(sr, **more):
        return sr

    assert REWARDS.options(anything) is None
    assert REWARDS.options(lambda sr, hr, mask, power=1.0: sr) == {"mask": inspect.Parameter.empty, "power": 1.0}


def test_a_short_name_works_wherever_the_long_one_does():
    folder = Path(srgym.__path__[0]) / "configs" / "agent"
    for short, name in AGENTS.aliases.items():
        assert AGENTS.find(short) is AGENTS.find(name)
        assert (folder / f"{short}.yaml").is_file()  # what Hydra's defaults lists read
    tree, line = compose(["agent=nft", "agent.beta=0.5"])
    tree["when"] = {"agent=nft": {"runner": {"lr": 0.125}}}
    tree["stages"] = {"first": {}, "second": {"agent": {"name": "nft", "beta": 2.0}}}
    first, second = (stage.sections for stage in resolve(tree, line).stages)
    assert first["agent"]["name"] == second["agent"]["name"] == "diffusion_nft"
    assert first["agent"]["beta"] == 0.5 and first["runner"]["lr"] == second["runner"]["lr"] == 0.125


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (agents, "make nft_loss grpo_loss dpo_loss refl_loss group_advantage"),
        (envs, "make_source degrade Source Sample"),
        (policies, "make load"),
        (rewards, "make register_reward available"),
        (srgym.runners, "collect evaluate"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_package_offers_is_there(package, names):
    for name in names.split():
        assert callable(getattr(package, name)) and name in dir(package)
