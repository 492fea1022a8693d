"""Taking a trained policy out of the house: LoRA files and model folders that stock diffusers reads, model cards."""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.policies import adapters
from srgym.policies.base import Policy
from srgym.policies.diffusers_policy import DiffusersPolicy, core_state, write_core
from srgym.policies.registry import load, policy_folder
from srgym.sealed import drafted, read_object, sort_header

__all__ = [
    "FORMS", "LORA_FILE", "Card", "card_of", "export", "export_lora", "export_merged", "import_lora", "model_card",
]  # fmt: skip

FORMS = ("lora", "merged")
LORA_FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Card:
    """What a model card says beside what the policy knows itself.

    Attributes:
        base_model: the base's public name ("Qwen/Qwen-Image-Edit-2509").
        reward: what it was trained to please.
        data: what it was trained on.
        command: the command that trained it.
        metrics: measured values by name.
        licence: of the weights: that of the base unless it allows another.
    """

    base_model: str
    reward: str
    data: str
    command: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = "other"


def _over_diffusers(policy: Policy) -> DiffusersPolicy:
    if not isinstance(policy, DiffusersPolicy):
        raise Refusal(f"expected a policy over a diffusers pipeline, got '{policy.name}', which has no such format")
    return policy


def _with_lora(policy: Policy, adapter: str) -> adapters.LoraSettings:
    if policy.lora is None:
        raise Refusal(f"expected a policy with a LoRA, got a '{policy.name}' without")
    if adapter not in adapters.names(policy.core):
        held = ", ".join(adapters.names(policy.core))
        raise Refusal(f"no adapter '{adapter}': the policy has {held}")
    return policy.lora


def export_lora(policy: Policy, folder: str | Path, *, adapter: str, card: Card | None = None) -> Path:
    """Write one adapter as the stock pipeline's `load_lora_weights` reads it, float32, with its rank and alpha.

    Args:
        policy: one over a diffusers pipeline, with adapters.
        folder: where to; `pytorch_lora_weights.safetensors` and, with a card, `README.md`.
        adapter: "default" (the weights as trained) or "ema" (their average): another model, so there is no default.
        card: for the model card.

    Returns:
        The LoRA file.

    Raises:
        ValueError: if there is no such adapter, or the policy isn't over a diffusers pipeline.
    """
    owner, settings, folder = _over_diffusers(policy), _with_lora(policy, adapter), Path(folder)
    tensors = {
        name.replace(f".{adapter}.", "."): p.detach().float().cpu().contiguous()
        for name, p in adapters.parameters(owner.core, adapter)
    }
    modules = tuple(sorted(adapters.layers(owner.core)))  # in full, so that nothing has to be left out again
    described = adapters.peft_config(adapters.LoraSettings(settings.rank, settings.alpha, modules)).to_dict()
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in described.items()}
    draft = folder / ".partial"
    type(owner.pipe).save_lora_weights(
        str(draft), transformer_lora_layers=tensors, transformer_lora_adapter_metadata=plain
    )
    sort_header(draft / LORA_FILE)
    if card is not None:
        (draft / "README.md").write_text(model_card(owner, card, adapter=adapter))
    for path in draft.iterdir():
        path.replace(folder / path.name)
    draft.rmdir()
    return folder / LORA_FILE


@torch.no_grad()
def import_lora(policy: Policy, path: str | Path) -> None:
    """Read a LoRA file in diffusers' format into the policy's adapters `default`, `old` and `ema`.

    A file without metadata is read as diffusers reads it: alpha equal to the rank.

    Args:
        policy: one over a diffusers pipeline, without adapters.
        path: the file, or its folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the first tensor that doesn't fit.
    """
    from safetensors import safe_open

    owner, path = _over_diffusers(policy), Path(path)
    path = path / LORA_FILE if path.is_dir() else path
    if not path.is_file():
        raise MissingFile(f"expected a LoRA file at {path}, found none")
    with safe_open(path, "pt") as file:
        tensors = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    strange = next((name for name in tensors if ".lora_" not in name), None)
    if strange is not None:
        raise Refusal(f"expected LoRA tensors of a transformer in {path}, got '{strange}'")
    modules = tuple(dict.fromkeys(name.split(".lora_")[0] for name in tensors))
    rank = int(next(t for name, t in tensors.items() if ".lora_B." in name).shape[1])
    alpha = float(described.get("transformer.lora_alpha", rank))
    owner._add_adapters(adapters.LoraSettings(rank, alpha, modules))
    for name, parameter in adapters.parameters(owner.core, "default"):
        key = name.replace(".default.", ".")
        if key not in tensors or tensors[key].shape != parameter.shape:
            came = tuple(tensors[key].shape) if key in tensors else "nothing"
            raise Refusal(f"LoRA tensor '{key}' in {path}: expected {tuple(parameter.shape)}, got {came}")
        parameter.copy_(tensors[key])
    for target in ("old", "ema"):
        owner.sync("default", target)


def export_merged(policy: Policy, folder: str | Path, *, adapter: str | None, card: Card | None = None) -> Path:
    """Write the whole pipeline with an adapter merged into its transformer: a folder for `from_pretrained`.

    The sum is made in float32 and rounded once to the base's type; in bf16 it would cost up to 8e-3 a weight.

    Args:
        policy: one over a diffusers pipeline on disk.
        folder: where to; must not exist yet, or be empty.
        adapter: "default", "ema", or None for the base as it is (a policy without adapters).
        card: for the model card.

    Raises:
        ValueError: if there is no such adapter, the policy has no folder on disk, or `folder` holds something.
    """
    owner, folder = _over_diffusers(policy), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise Refusal(f"expected an empty folder for the merged model, got {folder}, which holds something")
    deltas: Mapping[str, Tensor] = {}
    if adapter is not None:
        _with_lora(owner, adapter)
        deltas = owner.adapter_deltas(adapter)
    base = Path(owner.config["path"])
    state = core_state(owner.core)
    for name, delta in deltas.items():
        weight = state[name]
        state[name] = (weight.float().cpu() + delta).to(weight.dtype)
    with drafted(folder) as draft:
        shutil.copytree(
            base, draft, ignore=lambda where, _: ["transformer"] if Path(where) == base else [], dirs_exist_ok=True
        )
        write_core(owner.core, state, draft / "transformer")
        if card is not None:
            (draft / "README.md").write_text(model_card(owner, card, adapter=adapter, merged=True))
    return folder


# The card


_USE = {
    "qwen_image_edit": """\
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from srgym.policies.qwen_image_edit import restore_positions

restore_positions(pipe.text_encoder)  # transformers 5 loses the positions of image tokens without it
stock.VAE_IMAGE_SIZE = {reference}  # the reference's pixels; diffusers' own value is 1024 x 1024
stock.CONDITION_IMAGE_SIZE = {text_image} ** 2
image = pipe([photo], {prompt!r}, width=width, height=height, true_cfg_scale=1.0, num_inference_steps=40).images[0]""",
    "flux_kontext": """\
image = pipe(
    photo, {prompt!r}, width=width, height=height, max_area=width * height, _auto_resize=False,
    guidance_scale={embedded_guidance}, max_sequence_length={max_length}, num_inference_steps=40,
).images[0]""",
    "flux_controlnet": """\
image = pipe(
    {prompt!r}, control_image=photo, width=width, height=height, controlnet_conditioning_scale={conditioning_scale},
    guidance_scale={embedded_guidance}, max_sequence_length={max_length}, num_inference_steps=40,
).images[0]""",
    "flux2_klein": """\
image = pipe(
    photo, {prompt!r}, width=width, height=height, guidance_scale=1.0, max_sequence_length={max_length},
    text_encoder_out_layers={text_layers}, num_inference_steps=4,
).images[0]""",
    "sd3": """\
pixels = 2 * to_tensor(photo)[None].to(pipe.vae.device, pipe.vae.dtype) - 1
vae = pipe.vae.config
with torch.no_grad():
    latent = pipe.vae.encode(pixels).latent_dist.mode()
reference = (latent - vae.shift_factor) * vae.scaling_factor
with conditioned(pipe, reference):
    image = pipe(
        {prompt!r}, latents=torch.randn_like(reference), width=width, height=height, guidance_scale=1.0,
        max_sequence_length={max_length}, num_inference_steps=40,
    ).images[0]""",
}


def _usage(policy: DiffusersPolicy, base_model: str, merged: bool) -> str:
    """Python that runs the model in stock diffusers on photo.png, from inside the card's folder."""
    options = dict(policy.config, prompt=policy.prompt)
    side = options.get("reference")
    options["reference"] = f"{side} ** 2" if side else "width * height"
    names, extra = "DiffusionPipeline", ""
    opened: list[str] = []
    if policy.name == "flux_controlnet" and options["controlnet"]:
        names, extra = "FluxControlNetModel, FluxControlNetPipeline", ", controlnet=controlnet"
        opened = [f'controlnet = FluxControlNetModel.from_pretrained("{options["controlnet"]}", dtype=dtype)']
    cell = 2 * policy.factor
    weights = '"."' if merged else f'"{base_model}"'
    opened.append(f"pipe = {names.split(', ')[-1]}.from_pretrained({weights}, dtype=dtype{extra})")
    if not merged and policy.name == "sd3":
        opened += ["widen(pipe.transformer)  # room for the LR image"]
    if not merged:
        opened.append('pipe.load_lora_weights(".")  # this folder')
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {names}",
            "from PIL import Image",
            *(["from srgym.policies.sd3 import conditioned, widen"] if policy.name == "sd3" else []),
            *(["from torchvision.transforms.functional import to_tensor"] if policy.name == "sd3" else []),
            "",
            f"dtype = torch.{options['dtype']}",
            *opened,
            'photo = Image.open("photo.png").convert("RGB")',
            f"width, height = (side * {policy.scale} // {cell} * {cell} for side in photo.size)",
            "photo = photo.resize((width, height), Image.Resampling.BICUBIC)",
            *_USE[policy.name].format(**options).splitlines(),
        ]
    )


def model_card(policy: DiffusersPolicy, card: Card, *, adapter: str | None, merged: bool = False) -> str:
    """A README.md for a repository of weights: where they come from, what they are, how to run them in diffusers."""
    lora = policy.lora
    kind = "merged model" if merged else "LoRA"
    which = {"default": "the weights as trained", "ema": "the running average of the trained weights"}.get(
        adapter or "", "all weights"
    )
    front = {
        "base_model": card.base_model,
        "base_model_relation": "finetune" if merged else "adapter",
        "library_name": "diffusers",
        "license": card.licence,
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "reinforcement-learning", *([] if merged else ["lora"])],
    }
    rows = [
        ("Base model", card.base_model),
        ("Weights", f"{which}" + (f" (adapter `{adapter}`)" if adapter else "")),
        ("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}" if lora is not None else "none"),
        ("Scale", f"{policy.scale} times"),
        ("Prompt", f"`{policy.prompt}`" if policy.prompt else "none"),
        ("Reward", card.reward),
        ("Data", card.data),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in card.metrics.items())
    measured = f"| metric | value |\n|---|---|\n{metrics}\n" if metrics else "None were measured.\n"
    head = "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items())
    return (
        f"---\n{head}\n---\n\n# Super-resolution {kind} for {card.base_model}\n\n"
        f"Trained by reinforcement learning with srgym.\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Training\n\n```\n{card.command}\n```\n\n## Metrics\n\n{measured}\n"
        f"## Use in diffusers\n\n```python\n{_usage(policy, card.base_model, merged)}\n```\n"
    )


# From a saved policy or run


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
        raise Refusal(f"form is lora or merged, got '{form}'")
    folder = policy_folder(source)
    if not (folder / "policy.json").is_file():
        raise MissingFile(f"policy={source}: expected the folder of a saved policy or of a run, found neither")
    policy = load(folder)
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
    record, config = (read_object(run / name, {}) for name in ("run.json", "config.json"))
    stage = config["stages"].get(folder.absolute().parent.name, {})
    trained = stage
    while "agent" not in trained and trained.get("lora_from") in config["stages"]:  # a merge: what was merged in
        trained = config["stages"][trained["lora_from"]]
    env = {k: v for k, v in trained.get("env", {}).items() if v is not None}
    return Card(
        base_model,
        reward=_in_a_line(trained.get("reward")),
        data=_in_a_line(env),
        command=" ".join(record["command"]),
        metrics=_last_evaluation(folder.absolute().parent / "metrics.csv"),
        licence=licence,
    )


def _in_a_line(section: Any) -> str:
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
