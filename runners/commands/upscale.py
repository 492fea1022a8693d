"""srgym upscale IMAGE|FOLDER ... [key=value ...]: super-resolve photographs into PNG files.

  srgym upscale photo.jpg                            writes photo_x4.png beside it
  srgym upscale holiday/ out=holiday_large           every image of a folder
  srgym upscale photo.jpg policy=runs/mine steps=10 seed=3
  srgym upscale photo.jpg policy=qwen_image_edit model=/models/Qwen-Image-Edit-2509 lora=exported/lora steps=40

  out=PATH          for one image a file, in the format of its suffix, else a folder
  policy=PATH|NAME  a saved policy, a run, or a name; by default the newest OARS run's under runs/, else the base
                    weights that ship with the package
  scale=N           of a policy by name; a saved one has its own
  model=PATH        the folder of the foundation model, in diffusers' format, of a policy by name
  lora=PATH         a LoRA as diffusers writes it, put onto that
  sampling=mean     the policy's prediction, where it makes one (the default there, unless steps, seed or solver is
                    said); sample: one of its samples
  steps=6 seed=0 solver=euler                        of a sample
  colour=auto       none, adain, wavelet; auto: none for the compact policy, adain for others
  tile=192 overlap=32                                in pixels of the input, for large images
  adapter=ema       under which a policy with a LoRA runs
  overwrite=false   true replaces files that are there
  device=auto threads=N

The orientation is applied, the colour profile and EXIF data are kept. An image that can't be read is named and skipped.
"""

import sys
from pathlib import Path
from typing import Any, Literal

from srgym.errors import MissingFile, Refusal
from srgym.runners.commands.arguments import take_option
from srgym.runners.run.overrides import take_values
from srgym.settings import Count

__all__ = ["run"]

_DEFAULTS: dict[str, Any] = {
    "out": None, "policy": None, "scale": None, "model": None, "lora": None, "sampling": None, "steps": 6, "seed": 0,
    "solver": "euler", "colour": "auto",
    "tile": 192, "overlap": 32, "adapter": "ema", "overwrite": False, "device": "auto", "threads": None,
}  # fmt: skip
_KINDS = {"threads": Count | None, "scale": Count | None, "sampling": Literal["mean", "sample"] | None,
          "adapter": str | None}  # fmt: skip


def run(arguments: list[str]) -> int:
    for option in ("policy", "out", "model", "lora"):  # --policy P, as other tools have it
        arguments += [f"{option}={value}" for value in take_option(arguments, f"--{option}")]
    inputs = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    settings, _ = take_values([argument for argument in arguments if argument not in inputs], _DEFAULTS, kinds=_KINDS)
    if not inputs:
        raise Refusal("srgym upscale expects an image or a folder of images, got none: srgym upscale photo.jpg")
    for path in inputs:
        if not Path(path).exists():
            raise MissingFile(f"expected an image or a folder of images at {path}, found nothing")
    if settings["sampling"] is None and any(
        argument.startswith(("steps=", "seed=", "solver=")) for argument in arguments
    ):
        settings["sampling"] = "sample"
    return _upscale(inputs, settings)


def _upscale(inputs: list[str], settings: dict[str, Any]) -> int:
    from srgym.runners.run.build import pick_device, use_threads
    from srgym.runners.run.upscaling import Upscaling, default_policy, find_policy, plan, upscale_file

    use_threads(settings["threads"])
    named = settings["policy"] or default_policy() or "compact"
    places = (None if settings[key] is None else str(settings[key]) for key in ("model", "lora"))
    policy = find_policy(str(named), settings["scale"], *places).to(pick_device(settings["device"])).eval()
    sampling: Any = settings["sampling"] or ("mean" if hasattr(policy, "predict_mean") else "sample")
    colour = settings["colour"]
    if colour == "auto":
        colour = "none" if policy.name == "compact" else "adain"
    kept: dict[str, Any] = {key: settings[key] for key in ("steps", "seed", "solver", "tile", "overlap", "adapter")}
    how = Upscaling(sampling=sampling, colour=colour, **kept)
    pairs = plan(inputs, None if settings["out"] is None else str(settings["out"]), policy.scale, settings["overwrite"])
    default = "the base that ships" if named == "compact" else "the newest OARS run under runs/"
    print(f"policy: {named}{'' if settings['policy'] else f', {default}'}; {sampling}", file=sys.stderr)
    failed = 0
    for number, (source, target) in enumerate(pairs, 1):
        try:
            upscale_file(policy, source, target, how, _progress(number, len(pairs), source))
        except ValueError as error:
            failed += 1
            print(f"srgym: skipped {error}", file=sys.stderr)
        else:
            print(target)
    if failed:
        print(f"srgym: {failed} of {len(pairs)} images were skipped", file=sys.stderr)
    return 2 if failed else 0


def _progress(number: int, count: int, source: Path) -> Any:
    if not sys.stderr.isatty():
        return None

    def show(share: float) -> None:
        end = "\n" if share >= 1 else ""
        print(f"\r{number}/{count} {source.name} {share:.0%}", end=end, file=sys.stderr, flush=True)

    return show
