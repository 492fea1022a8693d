"""The halves of `srgym judge` that make and measure models: train, evaluate, distil.

srgym judge train SET model=DIR out=RUN [recipe=compass|compare|refreward] [config=NAME] [key=value ...]
                       a judge of the set's labels: by SFT, or (refreward) by ranking; goes on where it was stopped.
                       RUN is what `srgym serve` and reward=compass_mllm take. model=tiny: a random one, to try the chain
    --dry-run gpus=8   what it will need, before anything is loaded
srgym judge evaluate RUN on=SET [table=1|3] [against=[NAME,...]] [uncalibrated=RUN] [config=NAME]
srgym judge evaluate reward=NAME on=SET out=FOLDER
                       how often it orders candidates as the labels do, with intervals over scenes, baselines, and the
                       published rows on SRIQA-Bench; table=3: the ablation. Any reward can stand in for a judge
srgym judge distil RUN SET out=DIR [audit=true] [config=NAME] [key=value ...]
                       a compact scorer that learns a judge's scores, never the ground truth:
                       reward.scorer={name: compact, weights: DIR}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

from srgym.errors import MissingFile, Refusal
from srgym.runners.commands.arguments import take_flag, take_setting
from srgym.runners.run.overrides import defaults, merge_known, take_values

__all__ = ["distil", "evaluate", "train"]

# Rows that the papers' sets have, for a plan without a set: COMPASS-20K's pairs, RefSR-18K's.
_PAPERS = {"compass": 28_800, "compare": 2_400 * 12 * 11, "refreward": 18_000}


def train(arguments: list[str]) -> int:
    command = ["srgym", "judge", "train", *arguments]
    dry = take_flag(arguments, "--dry-run")
    gpus = take_setting(arguments, "gpus", "1") or ""
    folder = _folder(arguments, "srgym judge train SET model=DIR out=RUN", optional=dry)
    section = _section(arguments, "train")
    from srgym.runners.judges.trainer import Lora, Ranking, TrainSettings

    known: dict[str, Any] = {"model": None, "out": None, "limit": None}
    known |= {f.name: f.default for f in fields(TrainSettings) if f.name not in ("model", "lora", "ranking")}
    known |= {"lora": asdict(Lora()), "ranking": asdict(Ranking())}
    recipes = section.pop("recipes", {})
    known = merge_known(known, section, "the config's train")
    recipe = next((a.partition("=")[2] for a in arguments if a.startswith("recipe=")), known["recipe"])
    known = merge_known(known, recipes.get(recipe, {}), f"the config's train.recipes.{recipe}")
    taken = take_values(arguments, known, kinds={"model": str | None, "out": str | None, "steps": int | None})[0]
    out, limit = taken.pop("out"), taken.pop("limit")
    if taken["model"] is None:
        raise Refusal("srgym judge train expects the model to start from: model=DIR, or model=tiny to try the chain")
    settings = TrainSettings(**{**taken, "lora": Lora(**taken["lora"]), "ranking": Ranking(**taken["ranking"])})
    if dry:
        return _plan(settings, folder, gpus)
    if out is None:
        raise Refusal("srgym judge train expects a folder for the judge: out=RUN")
    from srgym.files import check_folder
    from srgym.runners.judges.reading import read_material
    from srgym.runners.judges.train import train as run

    check_folder(Path(out))
    record = run(settings, read_material(folder, settings.split, limit), Path(out), command, folder)
    _report(Path(out))
    print(f"{out}: a judge of recipe {record['recipe']}, {record['seconds']:.0f} s; see {Path(out) / 'report.html'}")
    return 0


def _plan(settings: Any, folder: Path | None, gpus: str) -> int:
    from srgym.runners.judges.planning import plan
    from srgym.runners.judges.train import TINY

    if not gpus.isdecimal() or int(gpus) < 1:
        raise Refusal(f"expected a whole number of GPUs, got gpus={gpus}")
    model = Path(settings.model)
    if settings.model == TINY:
        raise Refusal("--dry-run plans a training that takes GPUs; model=tiny trains on a CPU in minutes")
    rows = _PAPERS[settings.recipe]
    if folder is not None:
        from srgym.runners.judges.reading import read_material

        material = read_material(folder, settings.split)
        rows = material.described()["rows"]
        if settings.recipe == "compare":
            rows = len(material.examples("compare"))
    here = (model / "config.json").is_file()
    print(plan(settings, model if here else None, rows, int(gpus)))
    if not here:
        print(f"missing here: expected a model's folder with a config.json at '{model}', found none")
    return 0


def evaluate(arguments: list[str]) -> int:
    command = ["srgym", "judge", "evaluate", *arguments]
    usage = "srgym judge evaluate RUN on=SET, or srgym judge evaluate reward=NAME on=SET out=FOLDER"
    named = any(argument.startswith("reward=") for argument in arguments)
    run = _folder(arguments, usage, optional=named)
    section = _section(arguments, "evaluate")
    from srgym.runners.judges.evaluate import EvaluateSettings
    from srgym.runners.judges.evaluate import evaluate as measure
    from srgym.runners.judges.exported import read_judge, write_scores
    from srgym.runners.judges.rating import Rater, rater_of, reward_rater
    from srgym.runners.judges.reading import read_material
    from srgym.runners.judges.report import write_evaluation

    known = merge_known({**asdict(EvaluateSettings()), "on": None, "reward": None, "out": None}, section, "evaluate")
    free = {"engine": Mapping[str, Any], "on": str | None, "reward": Any, "out": str | None, "against": Any}
    taken = take_values(arguments, {**known, "engine": {}}, kinds=free)[0]
    taken["engine"] = taken["engine"] or known["engine"]
    on, reward, out = taken.pop("on"), taken.pop("reward"), taken.pop("out")
    settings = EvaluateSettings(**taken)
    if on is None:
        raise Refusal(f"expected a set to measure on: {usage}")
    if (run is None) == (reward is None):
        raise Refusal(f"expected a judge's folder or a reward, and not both: {usage}")
    material = read_material(Path(on), settings.split, settings.limit)
    raters: dict[str, Rater] = {}
    if run is not None:
        name = f"{read_judge(run)['recipe']} ({run.name})"
        raters[name] = rater_of(read_judge(run)["recipe"], _engine(settings.engine, run))
    else:
        name, raters = _named(reward), {_named(reward): reward_rater(_reward(reward))}
    raters |= {_named(other): reward_rater(_reward(other)) for other in settings.against}
    plain = None
    if settings.uncalibrated is not None:
        other = Path(settings.uncalibrated)
        if read_judge(other)["settings"]["labels"] != "anchor":
            raise Refusal(f"uncalibrated={other}: expected a judge trained with labels=anchor, got one of calibrated labels")
        plain = f"without calibration ({other.name})"
        raters[plain] = rater_of("compass", _engine(settings.engine, other))
    folder = _out(run, out, Path(on))
    result = measure(name, raters, material, folder, ablation=settings.table == 3, uncalibrated=plain)
    page = write_evaluation(result, folder, command)
    _print(result)
    if run is not None:
        whole = result["accuracy"][name]
        scores = {subset: 100 * whole[subset]["accuracy"][0] for subset in result["subsets"]}
        write_scores(run, f"{material.about['name']}, {settings.split} split, accuracy in %", scores)
        _report(run)
    print(f"see {page}")
    return 0


def _out(run: Path | None, out: str | None, on: Path) -> Path:
    if out is not None:
        return Path(out)
    if run is None:
        raise Refusal("srgym judge evaluate reward=NAME expects a folder for what it finds: out=FOLDER")
    return run / "evaluation" / on.name


def _print(result: Mapping[str, Any]) -> None:
    from srgym.runners.judges.report import accuracy_table

    table = accuracy_table(result)
    rows = [list(table.columns), *map(list, table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        print("  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:]))]))
    print(table.caption)


def distil(arguments: list[str]) -> int:
    command = ["srgym", "judge", "distil", *arguments]
    usage = "srgym judge distil RUN SET out=DIR"
    run = _folder(arguments, usage)
    data = _folder(arguments, usage)
    audit = take_setting(arguments, "audit", "false")
    section = _section(arguments, "distil")
    from srgym.files import check_folder, write_json
    from srgym.runners.judges.distil import DistilSettings
    from srgym.runners.judges.distil import distil as teach
    from srgym.runners.judges.exported import read_judge
    from srgym.runners.judges.reading import read_material
    from srgym.runners.run.build import build_policy

    audited = section.pop("audit", [])
    known = merge_known({**asdict(DistilSettings()), "out": None, "limit": None}, section, "distil")
    own = dict(known["policy"])
    taken = take_values(arguments, {**known, "policy": {}, "engine": {}}, kinds={"out": str | None, "limit": int | None})[0]
    taken["policy"], taken["engine"] = taken["policy"] or own, taken["engine"] or known["engine"]
    out, limit = taken.pop("out"), taken.pop("limit")
    if out is None:
        raise Refusal(f"expected a folder for the student: {usage}")
    check_folder(Path(out))
    if (recipe := read_judge(run)["recipe"]) != "compass":
        raise Refusal(f"srgym judge distil teaches fidelity and qualities, and {run} is a judge of recipe {recipe}")
    settings = DistilSettings(**taken)
    train_on, held_out = (read_material(data, split, limit) for split in (settings.split, settings.validation))
    policy = build_policy(settings.policy, {"scale": 4}).eval()
    result = teach(_engine(settings.engine, run), train_on, held_out, policy, settings, Path(out))
    write_json(run / "distilled" / f"{Path(out).name}.json", {**result, "command": " ".join(command)})
    _report(run)
    for name, found in result["agreement"].items():
        print(f"{name}: Spearman {found['spearman']}, SE {found['error']} over {found['photographs']} photographs")
    if audit == "true":
        from srgym.runners.commands.rewards import run as rewards

        scorer = f"reward.scorer={{name: compact, weights: {out}}}"
        rewards(["audit", "compass", scorer, f"out={Path(out) / 'audit'}", *audited])
    return 0


# What the three have in common


def _folder(arguments: list[str], usage: str, optional: bool = False) -> Path:
    """The first argument that isn't a setting, taken away."""
    for i, argument in enumerate(arguments):
        if "=" not in argument and not argument.startswith("-"):
            del arguments[i]
            return Path(argument)
    if optional:
        return None  # type: ignore[return-value]
    raise Refusal(f"expected a folder: {usage}")


def _section(arguments: list[str], part: str) -> dict[str, Any]:
    """A part of the config that a command line names."""
    name = take_setting(arguments, "config")
    if name is None:
        return {}
    there = sorted(path.name.removesuffix(".yaml") for path in resources.files("srgym.configs").joinpath("judge").iterdir())
    if name not in there:
        from srgym.settings import nearest

        raise Refusal(f"unknown config '{name}': {nearest(name, there)}expected one of {', '.join(there)}")
    return dict(defaults(f"judge/{name}").get(part, {}))


def _engine(options: Mapping[str, Any], run: Path) -> Any:
    from srgym.rewards.serving.engines import make_engine

    engine = dict(options)
    if engine.get("engine") in ("transformers", "vllm"):
        engine["path"] = str(run)
    return make_engine(engine, model="compass")


def _named(reward: Any) -> str:
    return reward if isinstance(reward, str) else str(dict(reward).get("name", json.dumps(reward)))


def _reward(reward: Any) -> Any:
    """A reward by its file among the configs, its registered name, or a mapping."""
    from srgym.runners.run.build import build_reward

    if isinstance(reward, str) and reward.isidentifier():
        file = resources.files("srgym.configs").joinpath("reward", f"{reward}.yaml")
        if file.is_file():
            reward = defaults(f"reward/{reward}")
    return build_reward(reward)


def _report(run: Path) -> Path:
    """The report of all that there is of a judge, its set too where that is still there."""
    from srgym.runners.judges.exported import read_judge
    from srgym.runners.judges.reading import read_material, set_stages
    from srgym.runners.judges.report import write_report

    record = read_judge(run)
    data = Path(record["data"] or "")
    if not (data / "set.json").is_file():
        return write_report(run, None, [])
    return write_report(run, read_material(data, record["set"]["split"]), set_stages(data))
