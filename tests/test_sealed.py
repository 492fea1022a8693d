"""What is loaded is what was written: sealed folders, JSON and tensors, and what is said of those that aren't."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from srgym import policies
from srgym.files import to_png, write_json
from srgym.policies.compact import CompactPolicy
from srgym.policies.merging import merge
from srgym.registry import TRUST, Untrusted
from srgym.rewards.compass import compact as compass
from srgym.rewards.finpercep import model as finpercep
from srgym.runners.commands.cli import main
from srgym.sealed import Damaged, check_shapes, read_object, read_tensors, seal, verify


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


def saved_policy(folder: Path, tiny_policy: CompactPolicy) -> Path:
    tiny_policy.add_adapters(2, 2.0)
    tiny_policy.save(folder)
    return folder


def saved_scorer(folder: Path, tiny_policy: CompactPolicy) -> Path:
    compass.CompactCompass((4, 4), 4).save(folder)
    return folder


def saved_finpercep(folder: Path, tiny_policy: CompactPolicy) -> Path:
    finpercep.FinPercepRM(hidden=4).save(folder)
    return folder


KINDS: dict[str, tuple[Callable[[Path, CompactPolicy], Path], Callable[[Path], Any]]] = {
    "policy": (saved_policy, policies.load),
    "compass": (saved_scorer, compass.load),
    "finpercep": (saved_finpercep, finpercep.load),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_noticed_and_its_file_named(
    kind: str, tmp_path: Path, tiny_policy: CompactPolicy
) -> None:
    save, load = KINDS[kind]
    folder = save(tmp_path / "saved", tiny_policy)
    load(folder)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for where in (0.0, 0.3, 0.9):
            flip(path, where)
            # A damaged manifest may be readable, and then accuses the file whose name or digest it has wrong.
            with pytest.raises(Damaged, match=str(folder) if path.name == "manifest.json" else path.name):
                load(folder)
            path.write_bytes(content)
    load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_or_missing_file_is_named_without_a_manifest_too(
    kind: str, tmp_path: Path, tiny_policy: CompactPolicy
) -> None:
    save, load = KINDS[kind]
    folder = save(tmp_path / "saved", tiny_policy)
    (folder / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"no manifest\.json"):
        load(folder)
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.warns(UserWarning), pytest.raises(Damaged, match=path.name):
            load(folder)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "config", [{"width": 10**6}, {"encoder_depth": 10**5}, {"width": None}, {"width": "8"}, {"width": True}]
)
def test_a_description_of_a_network_that_nobody_means_is_refused_before_it_is_built(
    config: dict[str, Any], tmp_path: Path, tiny_policy: CompactPolicy
) -> None:
    tiny_policy.save(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**described, "config": {**described["config"], **config}}))
    seal(tmp_path)
    with pytest.raises(ValueError, match="whole number"):
        policies.load(tmp_path)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "can't be read as JSON"),
        ("[]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ("{}", "expected the key 'policy', got none"),
        ('{"policy": 3}', "expected str as 'policy', got int"),
        ("[" * 100_000, "can't be read as JSON"),
        ("\x80", "can't be read as JSON"),
    ],
)
def test_what_is_no_description_gets_a_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(Damaged, match=sentence):
        read_object(path, {"policy": str})


@pytest.mark.parametrize(
    "manifest", ['{"sha256": []}', '{"sha256": {"/etc/hostname": "0"}}', '{"sha256": {"../a": "0"}}', "null"]
)
def test_a_manifest_can_name_nothing_outside(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(Damaged, match=r"manifest\.json"):
        verify(tmp_path)


def test_what_a_loader_might_read_instead_is_refused_and_a_card_is_not(
    tmp_path: Path, tiny_policy: CompactPolicy
) -> None:
    tiny_policy.save(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    policies.load(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(Damaged, match=r"other\.safetensors is not in the manifest"):
        policies.load(tmp_path)


def test_a_damaged_policy_is_not_merged(tmp_path: Path, tiny_policy: CompactPolicy) -> None:
    tiny_policy.save(tmp_path / "into")
    saved_policy(tmp_path / "lora", tiny_policy)
    flip(tmp_path / "into" / "model.safetensors", 0.9)
    with pytest.raises(Damaged, match=r"model\.safetensors has changed"):
        merge(tmp_path / "lora", tmp_path / "into", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_can_name_no_policy_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"policy": "../other"}')
    with pytest.raises(Damaged, match="outside of its folder"):
        policies.load(tmp_path)


def test_tensors_must_be_those_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    stored = read_tensors(path)
    check_shapes(path, stored, {"a": torch.ones(2)})
    with pytest.raises(Damaged, match=r"'a' in .*: expected \(3,\), got \(2,\)"):
        check_shapes(path, stored, {"a": torch.ones(3)})
    with pytest.raises(Damaged, match="'a' in .* belongs to no part"):
        check_shapes(path, stored, {})


def test_every_shipped_folder_of_weights_is_sealed() -> None:
    root = Path(policies.__file__).parents[1]
    folders = sorted(
        {path.parent for name in ("policies", "rewards") for path in root.glob(f"{name}/weights/*/*.json")}
    )
    assert len(folders) >= 3
    for folder in folders:
        verify(folder)


THEIRS = """
from pathlib import Path
from srgym.policies.compact import CompactPolicy
Path({mark!r}).write_text("ran")
class Theirs(CompactPolicy):
    pass
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_policy: CompactPolicy) -> Iterator[tuple[Path, Path]]:
    """A policy's folder that names code which leaves a mark when it is imported, and the mark."""
    mark = tmp_path / "mark"
    (tmp_path / "their_code.py").write_text(THEIRS.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(TRUST, "0")  # put back afterwards, whatever the command line sets
    tiny_policy.save(tmp_path / "policy")
    described = json.loads((tmp_path / "policy" / "policy.json").read_text())
    write_json(tmp_path / "policy" / "policy.json", {**described, "policy": "their_code:Theirs"})
    seal(tmp_path / "policy")
    yield tmp_path / "policy", mark
    sys.modules.pop("their_code", None)


def test_a_file_runs_no_code_unless_it_is_trusted(theirs: tuple[Path, Path]) -> None:
    folder, mark = theirs
    with pytest.raises(Untrusted, match=r"policy\.json names the policy 'their_code:Theirs'.*--trust"):
        policies.load(folder)
    assert not mark.exists()
    assert type(policies.load(folder, trust=True)).__name__ == "Theirs" and mark.exists()
    policies.load(folder)  # imported by now, so that nothing more is run


def test_trust_reaches_the_command_line(theirs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, mark = theirs
    image = folder.parent / "a.png"
    image.write_bytes(to_png(torch.rand(3, 8, 8)))
    line = ["upscale", str(image), f"policy={folder}", f"out={folder.parent / 'out'}"]
    assert main(line) == 2 and "names the policy 'their_code:Theirs'" in capsys.readouterr().err
    assert not mark.exists()
    assert main([*line, "--trust"]) == 0 and mark.exists()


@pytest.mark.parametrize("path", ["subprocess:Popen", "os:system", "srgym.rewards:make"])
def test_what_a_file_names_is_of_the_right_kind_before_it_is_called(path: str, tmp_path: Path) -> None:
    write_json(tmp_path / "policy.json", {"policy": path, "config": {"args": ["false"]}, "adapters": False})
    seal(tmp_path)
    with pytest.raises(ValueError, match="expected a subclass of srgym.policies.Policy"):
        policies.load(tmp_path, trust=True)


def test_a_resumed_run_names_no_code(
    tmp_path: Path, theirs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    write_json(run / "config.json", {"overrides": ["experiment=smoke", "policy=their_code:Theirs"]})
    assert main(["train", f"resume={run}"]) == 2
    assert "config.json names the policy 'their_code:Theirs'" in capsys.readouterr().err
    assert not theirs[1].exists()
