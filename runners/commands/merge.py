"""srgym merge lora=PATH into=PATH out=PATH [key=value ...]: add a LoRA to the weights of a model (OARS, section 4).

  srgym merge lora=runs/oars/stages/non_reference/policy into=runs/oars/stages/cold_start/policy out=merged

  lora=PATH      a saved policy with a LoRA, or a LoRA as diffusers writes it
  into=PATH      a saved policy, or a model's folder
  out=PATH       where the merged one goes
  adapter=ema    which of a policy's adapters
  weight=1.0     what the LoRA is multiplied by

The result is checked against the model and the LoRA run one after the other, and models that don't fit are refused.
"""

from srgym.errors import Refusal
from srgym.runners.run.overrides import take_values

__all__ = ["run"]

_DEFAULTS = {"lora": None, "into": None, "out": None, "adapter": "ema", "weight": 1.0}


def run(arguments: list[str]) -> int:
    settings, _ = take_values(arguments, _DEFAULTS)
    for key in ("lora", "into", "out"):
        if not settings[key]:
            raise Refusal(f"srgym merge needs {key}=PATH; see srgym merge --help")
    from srgym.policies.merging import run as merge

    print(merge({key: str(value) if key in ("lora", "into", "out") else value for key, value in settings.items()}))
    return 0
