"""Names, options, plug-ins: how a reward is found, and what is said when it isn't."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srgym import rewards
from srgym.rewards import registry
from srgym.rewards.builtin import BUILTIN
from srgym.rewards.info import describe


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Registration that ends with the test."""
    held: dict[str, object] = {}
    monkeypatch.setattr(registry.REWARDS, "registered", held)
    return held


def brightness(sr: Tensor) -> Tensor:
    return sr.mean((1, 2, 3))


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_a_reward_is_registered_under_its_name_where_the_table_says(name: str) -> None:
    info = registry.info_of(registry.REWARDS.find(name), name)
    assert (info.name, info.path) == (name, BUILTIN[name])


def test_names_are_known_without_torch() -> None:
    code = "import sys, srgym.rewards as r; print(len(r.available()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, torch_loaded = done.stdout.split()
    assert int(count) >= len(BUILTIN)
    assert torch_loaded == "False"


def test_listing_has_a_row_for_every_name(scratch: dict[str, object]) -> None:
    rows = {row["name"]: row for row in rewards.listing()}
    assert sorted(rows) == rewards.available()
    assert rows["psnr_y"]["needs"] == ["hr"]
    assert rows["psnr_y"]["differentiable"] is True
    assert all(row["doc"] and row["licence"] and row["weights"] and row["origin"] for row in rows.values())


def test_registered_function_is_made_by_name(scratch: dict[str, object]) -> None:
    rewards.register_reward("brightness", differentiable=True, range=(0.0, 1.0))(brightness)
    reward = rewards.make("brightness")
    assert reward.range == (0.0, 1.0)
    assert reward(torch.full((2, 3, 4, 4), 0.25)).total.tolist() == [0.25, 0.25]
    assert "brightness" in rewards.available()


def test_name_is_taken_once(scratch: dict[str, object]) -> None:
    rewards.register_reward("mine")(brightness)
    rewards.register_reward("mine")(brightness)  # the same cell run again
    with pytest.raises(ValueError, match=r"'mine' is taken by .*brightness"):
        rewards.register_reward("mine")(lambda sr: sr.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r"'psnr_y' is taken by srgym\.rewards\.fidelity:psnr_y"):
        rewards.register_reward("psnr_y")(brightness)


def test_first_argument_is_sr() -> None:
    with pytest.raises(TypeError, match=r"'wrong'.*first argument is 'sr', got \(image, hr\)"):
        rewards.register_reward("wrong")(lambda image, hr: image)


def test_group_reward_takes_group() -> None:
    with pytest.raises(TypeError, match="must take an argument 'group'"):
        rewards.register_reward("wrong", group=True)(brightness)


def test_signature_is_the_contract() -> None:
    def scorer(sr: Tensor, lr: Tensor, mask: Tensor, text: object = None, strength: float = 1.0) -> Tensor:
        return sr.mean((1, 2, 3))

    info = describe(scorer, "scorer")
    assert info.needs == {"lr", "mask"}
    assert info.wants == {"text"}  # `strength` is an option, not a context
    assert describe(lambda sr, group: sr, "judge").group


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("psnr", "unknown reward 'psnr': did you mean 'psnr_y'"),
        ("no_such_package.module:reward", "there is no module 'no_such_package.module'"),
        ("srgym.rewards.fidelity:psnry", "did you mean 'psnr_y'\\? module 'srgym.rewards.fidelity' has no 'psnry'"),
        ("subprocess:Popen", "expected a function whose first argument is 'sr', or a class .*, got <class .*Popen"),
        ("os:system", "expected a function whose first argument is 'sr', .*, got <built-in function system>"),
        ("os:sep", "expected a function whose first argument is 'sr', .*, got '/'"),
        ({"name": "random", "sead": 1}, "has no option 'sead': did you mean 'seed'"),
        ({"name": "psnr_y", "hr": 1}, "has no option 'hr': it takes none"),
        ({"nam": "psnr_y"}, "expected a reward as .* got the keys 'nam'"),
    ],
)
def test_misspelt(spec: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.make(spec)  # type: ignore[arg-type]


def test_dotted_path_and_callable() -> None:
    image, other = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    named = rewards.make("psnr_y")(image, hr=other).total
    assert torch.equal(rewards.make("srgym.rewards.fidelity:psnr_y")(image, hr=other).total, named)
    assert rewards.make(brightness)(image).total.shape == (2,)
    made = rewards.make("random", seed=3)
    assert rewards.make(made) is made


def test_import_error_inside_a_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_reward.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        rewards.make("broken_reward:reward")


def test_function_options_are_bound_by_keyword() -> None:
    def powered(sr: Tensor, power: float = 1.0) -> Tensor:
        return sr.mean((1, 2, 3)) ** power

    image = torch.full((1, 3, 4, 4), 0.5)
    assert rewards.make(powered, power=2.0)(image).total.item() == pytest.approx(0.25)
