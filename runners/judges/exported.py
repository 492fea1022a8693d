"""A trained judge as others take it: a folder of weights (safetensors), JSON and a chat template, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from srgym.errors import MissingFile, Refusal
from srgym.files import write_json, write_whole
from srgym.rewards.serving.prompts import COMPARE, KINDS, REFREWARD, compass
from srgym.rewards.serving.server import model_folder
from srgym.sealed import drafted, file_hash, read_object

__all__ = ["EXPORTED", "card", "export", "questions", "read_judge", "write_scores"]

EXPORTED = frozenset({".safetensors", ".json", ".jinja", ".md"})
"""What an export consists of, by suffix: nothing that is unpickled."""

_RECORD = "judge.json"


def questions(recipe: str) -> list[str]:
    """What a judge of a recipe is asked, of every kind of input."""
    return {"compass": [compass(kind) for kind in KINDS], "compare": [COMPARE], "refreward": [REFREWARD]}[recipe]


def export(trained: Path, start: Path, processor: Any, run: Path, record: Mapping[str, Any]) -> None:
    """Write what was trained into the run's own folder, as `srgym serve` and the engines take it.

    Args:
        trained: where the trainer saved the weights, or a LoRA on those of `start`, which is merged into them.
        start: the model that the training started from; the export has its dtype.
        processor: of the model, with the size of images fixed.
        record: for `judge.json`, which is written last, and for the model card.

    Raises:
        Refusal: if anything but `EXPORTED` would be written.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    dtype = AutoConfig.from_pretrained(start, local_files_only=True).dtype or torch.float32
    lora = (trained / "adapter_config.json").is_file()
    model = AutoModelForImageTextToText.from_pretrained(
        start if lora else trained, dtype=torch.float32, local_files_only=True
    )
    if lora:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(trained)).merge_and_unload()
    with drafted(run / "training" / "export") as draft:
        model.to(dtype).save_pretrained(draft)
        processor.save_pretrained(draft)
        files = sorted(draft.iterdir(), key=lambda path: path.name == "config.json")
        foreign = [path.name for path in files if path.suffix not in EXPORTED]
        if foreign:
            raise Refusal(f"an export holds {', '.join(sorted(EXPORTED))} alone, and this would hold {foreign[0]}")
    weights = [path for path in files if path.suffix == ".safetensors"]
    hashes = {path.name: file_hash(run / "training" / "export" / path.name) for path in weights}
    for path in files:  # config.json last: a folder with one is taken for a whole model
        (run / "training" / "export" / path.name).replace(run / path.name)
    (run / "training" / "export").rmdir()
    whole = {**record, "questions": questions(record["recipe"]), "sha256": hashes, "scores": {}}
    write_whole(run / "README.md", card(whole).encode())
    write_json(run / _RECORD, whole)


def read_judge(run: str | Path) -> dict[str, Any]:
    """What is recorded of a trained judge.

    Raises:
        MissingFile: if the folder holds none.
        Refusal: if srgym's questions have changed since it was trained: it must be asked what it has learnt to answer.
    """
    folder = model_folder(run)
    if not (folder / _RECORD).is_file():
        raise MissingFile(f"expected a judge that `srgym judge train` made in {folder}, found no {_RECORD}")
    record = read_object(folder / _RECORD, {"recipe": str, "questions": list, "set": dict, "settings": dict})
    if record["questions"] != questions(record["recipe"]):
        raise Refusal(f"the judge in {folder} was trained on other questions than this srgym asks: train it again")
    return record


def write_scores(run: Path, where: str, scores: Mapping[str, Any]) -> None:
    """Put what was measured on a set into the judge's record and its model card, in place of what was there of it."""
    record = read_judge(run)
    record["scores"] = {**record.get("scores", {}), where: dict(scores)}
    write_whole(run / "README.md", card(record).encode())
    write_json(run / _RECORD, record)


def card(record: Mapping[str, Any]) -> str:
    """The model card: what it is, of which data and by which command it was made, and what was measured."""
    recipe, data, settings = record["recipe"], record["set"], record["settings"]
    use = {
        "compass": "srgym serve compass --model FOLDER, or reward=compass_mllm",
        "refreward": "srgym serve refreward --model FOLDER, or reward=refreward",
        "compare": "the annotator of `srgym judge label`'s stage `compare`",
    }[recipe]
    judges = ", ".join(data["annotators"]) or "nobody named"
    lines = [
        "---", "library_name: transformers", "pipeline_tag: image-text-to-text", "---", "",
        f"# A judge of super-resolution ({recipe})", "",
        f"From `{record['start']}`, {settings['tuning']} training on {settings['labels']} labels. For {use}.",
        "", "## Data", "",
        f"{data['rows']} rows of {data['groups']} inputs ({data['split']} split) of `{data['name']}`; labels by "
        f"{judges}. SHA-256 of its labels: `{data['sha256']}`.",
        "", "## Command", "", f"    {record['command']}", "", "## Scores", "",
    ]  # fmt: skip
    if not record.get("scores"):
        lines.append("Not measured yet: `srgym judge evaluate FOLDER on=SET`.")
    for where, scores in record.get("scores", {}).items():
        lines += [f"On `{where}`:", "", "| | |", "|---|---|"]
        lines += [
            f"| {name} | {value if isinstance(value, str) else f'{value:.4g}'} |" for name, value in scores.items()
        ]
        lines.append("")
    lines += ["## What it is asked", "", *(f"```\n{question}\n```" for question in record["questions"])]
    return "\n".join(lines) + "\n"


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))
