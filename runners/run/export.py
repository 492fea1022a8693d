"""What a run learnt, in the form that stock diffusers reads, with a model card that says where it came from."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srgym import policies
from srgym.policies.export import Card, export_lora, export_merged

__all__ = ["card_of", "export"]

FORMS = ("lora", "merged")


def export(source: Path, out: Path, form: str, adapter: str, base_model: str | None, licence: str) -> Path:
    """Write a saved policy as a LoRA or as a whole model.

    Args:
        source: a policy's folder, or a run's (its last policy).
        out: where to.
        form: "lora" or "merged".
        adapter: which of a LoRA's adapters; a policy without any is written whole.
        base_model: the base's public name; None: the name of its folder.
        licence: of the weights.

    Raises:
        FileNotFoundError: if there is no policy.
        ValueError: for another form, or a policy that diffusers has no format for.
    """
    if form not in FORMS:
        raise ValueError(f"form is lora or merged, got '{form}'")
    folder = source
    if (folder / "run.json").is_file():
        folder = folder / json.loads((folder / "run.json").read_text())["policy"]
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"policy={source}: expected the folder of a saved policy or of a run, found neither")
    policy = policies.load(folder)
    name = base_model or Path(str(policy.config.get("path") or policy.name)).name
    card = card_of(folder, name, licence)
    if form == "lora":
        return export_lora(policy, out, adapter=adapter, card=card)
    return export_merged(policy, out, adapter=adapter if policy.has_adapters else None, card=card)


def card_of(folder: Path, base_model: str, licence: str = "other") -> Card:
    """The card of a policy, as far as the run that holds it tells: its reward, data, command and last evaluation."""
    run = next((parent for parent in folder.absolute().parents if (parent / "run.json").is_file()), None)
    if run is None:
        return Card(base_model, "not known", "not known", "not known", licence=licence)
    record, config = (json.loads((run / name).read_text()) for name in ("run.json", "config.json"))
    stage = config["stages"].get(folder.absolute().parent.name, {})
    trained = stage
    while "agent" not in trained and trained.get("lora_from") in config["stages"]:  # a merge: what was merged in
        trained = config["stages"][trained["lora_from"]]
    env = {k: v for k, v in trained.get("env", {}).items() if v is not None}
    return Card(
        base_model,
        reward=_said(trained.get("reward")),
        data=_said(env),
        command=" ".join(record["command"]),
        metrics=_last_evaluation(folder.absolute().parent / "metrics.csv"),
        licence=licence,
    )


def _said(section: Any) -> str:
    """A section of the settings in a line."""
    if not isinstance(section, Mapping):
        return str(section) if section is not None else "none"
    rest = ", ".join(f"{key} {value}" for key, value in section.items() if key != "name" and value is not None)
    return f"{section.get('name', '')}{f' ({rest})' if rest else ''}"


def _last_evaluation(log: Path) -> dict[str, float]:
    """The numbers of the last evaluation that a stage's log holds."""
    if not log.is_file():
        return {}
    with log.open() as file:
        rows = [row for row in csv.DictReader(file) if any(k.startswith("eval/") and v for k, v in row.items() if k)]
    return (
        {k.removeprefix("eval/"): float(v) for k, v in rows[-1].items() if k.startswith("eval/") and v} if rows else {}
    )
