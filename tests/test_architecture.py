"""The rules of the house that a machine can check: floors of imports, light packages, nothing unsafe on disk."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "rewards": set(),
    "policies": set(),
    "envs": {"rewards"},
    "agents": {"policies", "rewards"},
    "runners": {"rewards", "policies", "envs", "agents", "configs"},
}
FILES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; say srgym.x"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# Inside runners/, from the ground up; `settings` is what run/ builds the parts of a run from.
ROOMS = (
    "preferences", "measure", "loop", "settings", "reward_models", "report", "arena", "run", "judges", "compare",
    "reproduce", "commands",
)  # fmt: skip
SETTINGS = {"config", "groups", "overrides", "build"}


def room(parts: tuple[str, ...]) -> str:
    """The room of a module of runners/, from what follows `srgym.runners`."""
    return "settings" if parts[0] == "run" and len(parts) > 1 and parts[1] in SETTINGS else parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down_only(path):
    package = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in FLOORS, f"{path} imports '{name}': say 'srgym.{name}'"
        if parts[0] == "srgym" and len(parts) > 1 and parts[1] in FLOORS:
            assert parts[1] == package or parts[1] in FLOORS[package], f"{package}/ may not import {name}"


@pytest.mark.parametrize("name", ["errors", "files", "notebook", "precision", "registry", "sealed", "settings"])
def test_what_lies_below_every_package_imports_nothing_of_ours_but_what_lies_below_itself(name):
    further = {"registry": "srgym.settings", "sealed": "srgym.files", "notebook": "srgym.files"}
    below = {"srgym.errors", further.get(name, "srgym.errors")}
    ours = {module for module in imported(ROOT / "src" / "srgym" / f"{name}.py") if module.startswith("srgym")}
    assert all(module.startswith(tuple(below)) for module in ours)


@pytest.mark.parametrize("path", sorted((ROOT / "runners").glob("*/**/*.py")), ids=lambda path: path.stem)
def test_rooms_of_the_runners_are_entered_from_above(path):
    here = room(path.relative_to(ROOT / "runners").with_suffix("").parts)
    for name in imported(path):
        if name.startswith("srgym.runners."):
            there = room(tuple(name.split(".")[2:]))
            assert ROOMS.index(there) <= ROOMS.index(here), f"{here} may not import {name}"


# What is imported late on purpose: the command line answers before anything heavy is there, parts come by name.
LATE = re.compile(r"runners/commands/|/registry\.py$|^rewards/serving/engines\.py$")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_own_modules_are_imported_at_the_top(path):
    if LATE.search(path.relative_to(ROOT).as_posix()):
        return
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
            ours = [node.module for node in late if (node.module or "").startswith("srgym")]
            assert not ours, f"{path}: {function.name} imports {ours} late: is it a cycle?"


def test_no_modules_import_each_other_in_a_circle():
    names = {path: "srgym." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items()}
    needs = {name: {m for m in at_the_top(path) if m in modules and m != name} for name, path in modules.items()}
    while free := [name for name, others in needs.items() if not others]:
        for name in free:
            del needs[name]
        needs = {name: others - set(free) for name, others in needs.items()}
    assert not needs, f"these import each other in a circle: {sorted(needs)}"


def at_the_top(path):
    """Modules imported when this one is, leaving out what stands under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in [n for n in tree.body if isinstance(n, ast.ImportFrom)]:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled_and_no_remote_code_is_trusted(path):
    text = path.read_text()
    # The two readers of weights that others published, tensors alone.
    if path in (ROOT / "rewards" / "backbones.py", ROOT / "policies" / "vlcot" / "vq8.py"):
        assert text.count("torch.load(") == 1
        text = text.replace('torch.load(path, map_location="cpu", weights_only=True)', "")
    assert not re.search(
        r"^\s*(import|from) pickle|torch\.(save|load)\(|trust_remote_code\s*=\s*True", text, re.MULTILINE
    )


def test_importing_srgym_is_light():
    """`srgym --help` and a misspelt key must answer at once: no torch, no diffusers, until something needs them."""
    code = "import sys, srgym, srgym.runners, srgym.rewards, srgym.policies, srgym.agents, srgym.envs;" \
        "print([m for m in ('torch', 'diffusers', 'peft', 'transformers', 'torchrl') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_weight_file_has_its_provenance():
    for weights in ROOT.glob("*/weights/*/*.safetensors"):
        provenance = weights.parent / "provenance.json"
        assert provenance.is_file(), f"{weights} has no provenance.json beside it"
        for key in ("data", "command", "seed", "date", "commit", "held_out"):
            assert f'"{key}"' in provenance.read_text(), f"{provenance} doesn't say '{key}'"
