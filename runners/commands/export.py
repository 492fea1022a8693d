"""srgym export policy=PATH out=PATH [key=value ...]: write what was learnt so that stock diffusers reads it.

  srgym export policy=runs/qwen/stages/non_reference/policy out=exported/lora
  srgym export policy=runs/qwen form=merged out=exported/model base_model=Qwen/Qwen-Image-Edit-2509 licence=apache-2.0

  policy=PATH       a saved policy, or a run (its last policy)
  out=PATH          where to
  form=lora         lora: pytorch_lora_weights.safetensors, for load_lora_weights; merged: a whole model's folder
  adapter=ema       which of a LoRA's adapters: ema (the average) or default (as trained)
  base_model=NAME   the base's public name, for the model card; by default its folder's
  licence=other     of the weights, for the model card

Beside the weights goes README.md, a model card: base model, reward, data, command, the last evaluation, and Python that
runs it.
"""

from pathlib import Path

from srgym.errors import Refusal
from srgym.runners.run.overrides import take_values

__all__ = ["run"]

_DEFAULTS = {"policy": None, "out": None, "form": "lora", "adapter": "ema", "base_model": None, "licence": "other"}


def run(arguments: list[str]) -> int:
    settings, _ = take_values(arguments, _DEFAULTS)
    for key in ("policy", "out"):
        if not settings[key]:
            raise Refusal(f"srgym export needs {key}=PATH; see srgym export --help")
    from srgym.policies.export import export

    base = None if settings["base_model"] is None else str(settings["base_model"])
    source, out = Path(str(settings["policy"])), Path(str(settings["out"]))
    print(export(source, out, str(settings["form"]), str(settings["adapter"]), base, str(settings["licence"])))
    return 0
