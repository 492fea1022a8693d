"""The foundation models' settings: a file gives its constructor's keys, an experiment its paper's numbers."""

import inspect
from pathlib import Path

import pytest
import yaml

from srgym.policies.diffusers_policy import DiffusersPolicy
from srgym.policies.registry import policy_class
from srgym.runners.run.config import compose, resolve

CONFIGS = Path(__file__).parents[2] / "configs" / "policy"


def keywords(name):
    """What a policy can be told, with its defaults."""
    found = {}
    for kind in reversed(policy_class(name).__mro__):
        if issubclass(kind, DiffusersPolicy):
            found |= inspect.signature(kind.__init__).parameters
    return {key: p.default for key, p in found.items() if key not in ("self", "pipe", "options")}


def test_a_file_gives_every_key_of_its_policy_and_its_default(kind):
    section = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    assert section.pop("name") == kind
    assert set(section) == set(keywords(kind))
    ours = {"scale", "prompt", "lora_targets"}  # told by the contexts, and spelt out
    for key in set(section) - ours:
        default = keywords(kind)[key]
        assert section[key] == (list(default) if isinstance(default, tuple) else default), key
    assert section["prompt"] and tuple(section["lora_targets"]) == policy_class(kind).lora_targets


def test_a_file_builds_its_policy(tiny, kind):
    section = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    options = {key: value for key, value in section.items() if key not in ("name", "path", "scale")}
    policy = policy_class(kind)(pipe=tiny(kind), **options)
    policy.add_adapters(rank=2)
    assert policy.trainable_parameters()


@pytest.mark.parametrize("name", ["oars_qwen", "oars_flux"])
def test_oars_has_the_papers_numbers(name):
    run = resolve(*compose([f"experiment={name}"]))
    stages = {stage.name: stage for stage in run.stages}
    assert list(stages) == ["cold_start", "full_reference", "non_reference", "oars"]
    for stage in (stages["full_reference"], stages["non_reference"]):
        agent, runner, lora = (stage.sections[key] for key in ("agent", "runner", "lora"))
        assert agent["name"] == "diffusion_nft" and (agent["group_size"], agent["steps"], agent["clip"]) == (24, 6, 1.0)
        assert agent["filter"] == {"mean": 0.9, "limit": 0.05, "spread": "std", "mode": "and", "scale": 5}
        assert (lora["rank"], lora["alpha"], runner["lr"], runner["weight_decay"]) == (32, 64, 3e-4, 1e-4)
        assert runner["eval_steps"] == 40
    assert stages["cold_start"].sections["agent"]["name"] == "cold_start"
    full, non = (stages[key].sections for key in ("full_reference", "non_reference"))
    assert (full["reward"]["mode"], full["reward"]["fidelity"]) == ("full_reference", "dists")
    assert full["env"]["name"] == "hr_folder" and full["env"]["path"].endswith("LSDIR")
    assert full["reward"]["scorer"] == non["reward"]["scorer"] and non["reward"]["mode"] == "non_reference"
    assert non["env"]["name"] == "lr_folder" and stages["non_reference"].start_from == "full_reference"
    assert stages["oars"].start_from == "cold_start" and stages["oars"].options["lora_from"] == "non_reference"
    assert full["policy"]["name"] == {"oars_qwen": "qwen_image_edit", "oars_flux": "flux_kontext"}[name]


def test_finpercep_climbs_its_reward_models():
    run = resolve(*compose(["experiment=finpercep_sd3"]))
    stages = [stage.sections for stage in run.stages[1:]]
    steps = [stage["runner"]["iterations"] for stage in stages]
    assert [step / sum(steps) for step in steps] == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert len({stage["reward"]["weights"] for stage in stages}) == 4
    assert all(stage["agent"]["name"] == "refl" and stage["policy"]["name"] == "sd3" for stage in stages)


def test_the_main_command_changes_by_its_policy_alone(kind):
    run = resolve(*compose(["experiment=oars", f"policy={kind}", "policy.path=somewhere"]))
    assert all(stage.sections["policy"]["name"] == kind for stage in run.stages)
