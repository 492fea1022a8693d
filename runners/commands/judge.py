"""srgym judge VERB ...: make a judge of super-resolutions, from images to a measured model. Stopped, it goes on.

srgym judge pool     out=SET inputs=DIR methods=[bicubic,ncnn:span,policy:compact]   inputs, and what is made of them
srgym judge import   LAYOUT DIR out=SET                                              a public data set
srgym judge label    SET stages=[anchor,compare,calibrate,describe,review] annotator.anchor=served
srgym judge train    SET recipe=compass model=DIR out=RUN                            compass, compare or refreward
srgym judge evaluate RUN on=SET table=1                                              or reward=NAME on=SET
srgym judge distil   RUN SET out=DIR                                                 to the compact scorer
srgym judge status   SET

config=NAME takes the verb's settings from a file: mini (in minutes, here), compass_8b, refreward_8b, or one of your own
by its path. srgym judge VERB --help tells what a verb's settings mean; docs/judges.md tells the whole story.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

from srgym.errors import MissingFile, Refusal

__all__ = ["positions", "read_settings", "run", "usage"]

_KINDS = {
    "pool": "pool:PoolSettings", "label": "labelling:LabelSettings", "train": "trainer:TrainSettings",
    "evaluate": "evaluate:EvaluateSettings", "distil": "distil:DistilSettings",
}  # fmt: skip
_VERBS = ("pool", "import", "label", "train", "evaluate", "distil", "status")


def run(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb not in _VERBS:
        near = get_close_matches(verb, _VERBS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Refusal(f"srgym judge expects one of {', '.join(_VERBS)}, got '{verb}'{hint}")
    return _RUN[verb](rest)


def usage(arguments: list[str]) -> str:
    """What `--help` prints: of a verb, what its settings mean."""
    verb = next((word for word in arguments if word in _KINDS), None)
    if verb is None:
        return __doc__ or ""
    module, name = _KINDS[verb].split(":")
    kind = getattr(import_module(f"srgym.runners.judges.{module}"), name)
    told = [f"srgym judge {verb}\n", cleandoc(kind.__doc__)]
    for own in fields(kind):
        part = None if own.default_factory is MISSING else own.default_factory()
        if is_dataclass(part):
            told.append(f"\n{own.name}.KEY=VALUE: {cleandoc(type(part).__doc__ or '')}")
    return "\n".join(told)


# Settings


def read_settings(
    kind: type, arguments: list[str], section: str, others: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A verb's settings, from its defaults, a config's section and the command line; and the values of `others`."""
    from srgym.runners.run.overrides import merge_known, take_values

    config = _config(arguments)
    known = {**_defaults(kind), **others}
    base = merge_known(known, config.get(section, {}), f"the {section} section of the config")
    values, _ = take_values(arguments, base, kinds=dict.fromkeys(known, Any))
    beside = {key: values.pop(key) for key in others}
    return _built(kind, values), beside


def _defaults(kind: type) -> dict[str, Any]:
    """What a settings class has where nobody says anything; None for what has to be said."""
    made: dict[str, Any] = {}
    for own in fields(kind):
        value = None if own.default is MISSING else own.default
        if own.default_factory is not MISSING:
            value = own.default_factory()
        made[own.name] = _defaults(type(value)) if is_dataclass(value) else value
    return made


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    made = {}
    for own in fields(kind):
        value = values[own.name]
        if own.default is MISSING and own.default_factory is MISSING and value is None:
            raise Refusal(f"expected {own.name}=..., got none")
        part = own.default_factory() if own.default_factory is not MISSING else None
        made[own.name] = _built(type(part), value) if is_dataclass(part) else value
    return kind(**made)


def _config(arguments: list[str]) -> dict[str, Any]:
    from importlib import resources

    import yaml

    from srgym.runners.commands.arguments import take_setting

    name = take_setting(arguments, "config")
    if name is None:
        return {}
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise MissingFile(f"config={name}: expected a file, found none")
        text = Path(name).read_text(encoding="utf-8")
    else:
        folder = resources.files("srgym.configs").joinpath("judge")
        there = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
        if name not in there:
            near = get_close_matches(name, there, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f": expected one of {', '.join(there)}, or a file's path"
            raise Refusal(f"config={name}: unknown{hint}")
        text = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    strange = [key for key in loaded if key not in _VERBS] if isinstance(loaded, dict) else ["no mapping"]
    if strange:
        raise Refusal(f"config={name}: expected sections of {', '.join(_VERBS)}, got {strange[0]}")
    return dict(loaded)


def positions(arguments: list[str], names: tuple[str, ...], verb: str) -> list[str]:
    """What stands first, without an '='."""
    found = [argument for argument in arguments if "=" not in argument]
    arguments[:] = [argument for argument in arguments if "=" in argument]
    if len(found) != len(names):
        raise Refusal(f"srgym judge {verb} expects {' and '.join(names)}, got {', '.join(found) or 'nothing'}")
    return found


def _tell(what: str, share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {share:4.0%}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


# Verbs


def _pool(arguments: list[str]) -> int:
    from srgym.runners.judges.pool import PoolSettings, build_pool
    from srgym.runners.judges.status import status

    positions(arguments, (), "pool")
    settings, own = read_settings(PoolSettings, arguments, "pool", {"out": None})
    if own["out"] is None:
        raise Refusal("srgym judge pool expects out=SET: where the set goes")
    print("\n".join(status(build_pool(own["out"], settings, _tell))))
    return 0


def _import(arguments: list[str]) -> int:
    from srgym.runners.judges.importing import LAYOUTS
    from srgym.runners.judges.public import import_set
    from srgym.runners.judges.status import status

    layout, folder = positions(arguments, ("LAYOUT", "DIR"), "import")
    if layout not in LAYOUTS:
        near = get_close_matches(layout, LAYOUTS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise Refusal(f"srgym judge import expects a layout of {', '.join(LAYOUTS)}, got '{layout}'{hint}")
    from srgym.runners.run.overrides import take_values

    own, _ = take_values(arguments, {"out": None}, kinds={"out": str | None})
    if own["out"] is None:
        raise Refusal("srgym judge import expects out=SET: where the set goes")
    print("\n".join(status(import_set(layout, folder, own["out"], _tell))))
    print(f"{layout}: for non-commercial use, under its own terms, which hold for this copy too")
    return 0


def _label(arguments: list[str]) -> int:
    from srgym.runners.judges.judge_set import JudgeSet
    from srgym.runners.judges.labelling import STAGES, LabelSettings
    from srgym.runners.judges.stages import check_stages, label_set

    (folder,) = positions(arguments, ("SET",), "label")
    settings, own = read_settings(LabelSettings, arguments, "label", {"stages": list(STAGES)})
    stages = [own["stages"]] if isinstance(own["stages"], str) else list(own["stages"])
    check_stages(stages)
    made = JudgeSet(folder)
    done = label_set(made, settings, stages, _tell)
    for stage, (there, missing) in done.items():
        sheet = made.folder / "sheets" / stage / "sheet.csv"
        what = f"fill in {sheet} and run it again" if sheet.is_file() else "the same command asks again"
        print(f"{stage}: {there} there{f', {missing} without a usable answer: {what}' if missing else ''}")
    if "review" in done:
        print(f"look at {folder}/review.csv, write keep or drop, and run the stage review again")
    return 0


def _status(arguments: list[str]) -> int:
    from srgym.runners.judges.judge_set import JudgeSet
    from srgym.runners.judges.status import status

    (folder,) = positions(arguments, ("SET",), "status")
    if arguments:
        raise Refusal(f"srgym judge status takes no settings, got '{arguments[0]}'")
    print("\n".join(status(JudgeSet(folder))))
    return 0


def _made(verb: str) -> Callable[[list[str]], int]:
    """A verb that makes or measures models."""

    def run(arguments: list[str]) -> int:
        from srgym.runners.commands import judging

        return int(getattr(judging, verb)(arguments))

    return run


_RUN: Mapping[str, Callable[[list[str]], int]] = {
    "pool": _pool, "import": _import, "label": _label, "status": _status,
    **{verb: _made(verb) for verb in ("train", "evaluate", "distil")},
}  # fmt: skip
