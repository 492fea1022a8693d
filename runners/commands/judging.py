"""The verbs of `srgym judge` that make and measure models: train, evaluate, distil."""

import json
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from srgym.errors import Refusal
from srgym.files import check_folder, write_json
from srgym.runners.commands.arguments import take_flag, take_setting
from srgym.runners.commands.judge import positions, read_settings
from srgym.runners.run.overrides import defaults

__all__ = ["distil", "evaluate", "train"]

# Rows that the papers' sets have, for a plan without a set: COMPASS-20K's pairs, all in both orders, RefSR-18K's.
_PAPERS = {"compass": 28_800, "compare": 2_400 * 12 * 11, "refreward": 18_000}


def train(arguments: list[str]) -> int:
    """srgym judge train SET model=DIR out=RUN; --dry-run gpus=8 says what it will need."""
    from srgym.runners.judges.report import report
    from srgym.runners.judges.set_material import read_material
    from srgym.runners.judges.train import train as run
    from srgym.runners.judges.trainer import TrainSettings

    command, dry = _command("train", arguments), take_flag(arguments, "--dry-run")
    gpus = take_setting(arguments, "gpus", "1") if dry else None
    named = [argument for argument in arguments if "=" not in argument]
    folder = None if dry and not named else positions(arguments, ("SET",), "train")[0]
    settings, own = read_settings(TrainSettings, arguments, "train", {"out": None, "limit": None})
    if dry:
        print(_plan(settings, folder, gpus or ""))
        return 0
    if own["out"] is None or folder is None:
        raise Refusal("srgym judge train expects out=RUN: where the judge goes")
    out = Path(own["out"])
    check_folder(out)
    material = read_material(folder, settings.split, own["limit"])
    record = run(settings, material, out, command, Path(folder))
    page = report(out)
    print(f"{out}: a judge of recipe {record['recipe']} in {record['seconds']:.0f} s; see {page}")
    return 0


def _plan(settings: Any, folder: str | None, gpus: str) -> str:
    from srgym.runners.judges.planning import plan
    from srgym.runners.judges.set_material import read_material
    from srgym.runners.judges.train import TINY

    if not gpus.isdecimal() or int(gpus) < 1:
        raise Refusal(f"expected a whole number of GPUs, got gpus={gpus}")
    if settings.model == TINY:
        raise Refusal("--dry-run plans a training that takes GPUs; model=tiny trains on a processor in minutes")
    rows = _PAPERS[settings.recipe]
    if folder is not None:
        material = read_material(folder, settings.split)
        compared = settings.recipe == "compare"
        rows = len(material.examples("compare")) if compared else int(material.described()["rows"])
    model = Path(settings.model)
    here = (model / "config.json").is_file()
    told = plan(settings, model if here else None, rows, int(gpus))
    return (
        told if here else f"{told}\nmissing here: expected a model's folder with a config.json at '{model}', found none"
    )


def evaluate(arguments: list[str]) -> int:
    """srgym judge evaluate RUN on=SET, or reward=NAME on=SET out=FOLDER."""
    from srgym.runners.judges.evaluate import EvaluateSettings
    from srgym.runners.judges.evaluate import evaluate as measure
    from srgym.runners.judges.exported import read_judge, write_scores
    from srgym.runners.judges.rating import Rater, rater_of, reward_rater
    from srgym.runners.judges.report import report, write_evaluation
    from srgym.runners.judges.set_material import methods_of, read_material

    command = _command("evaluate", arguments)
    instead = any(argument.startswith("reward=") for argument in arguments)
    run = None if instead else Path(positions(arguments, ("RUN",), "evaluate")[0])
    if instead:
        positions(arguments, (), "evaluate reward=NAME")
    settings, own = read_settings(EvaluateSettings, arguments, "evaluate", {"on": None, "reward": None, "out": None})
    if own["on"] is None:
        raise Refusal("srgym judge evaluate expects on=SET: what to measure on")
    if run is None and own["out"] is None:
        raise Refusal("srgym judge evaluate reward=NAME expects out=FOLDER: where what it finds goes")
    material = read_material(own["on"], settings.split, settings.limit)
    raters: dict[str, Rater] = {}
    learnt: list[str] = []
    if run is None:
        name = _named(own["reward"])
        raters[name] = reward_rater(_reward(own["reward"]))
    else:
        record = read_judge(run)
        recipe, learnt = record["recipe"], methods_of(record["data"])
        name = f"{recipe} ({run.name})"
        raters[name] = rater_of(recipe, _engine(settings.engine, run))
    raters |= {_named(other): reward_rater(_reward(other)) for other in settings.against}
    plain = None
    if settings.uncalibrated is not None:
        other = Path(settings.uncalibrated)
        if read_judge(other)["settings"]["labels"] != "anchor":
            raise Refusal(f"uncalibrated={other}: expected a judge trained with labels=anchor, got one of other labels")
        plain = f"without calibration ({other.name})"
        raters[plain] = rater_of("compass", _engine(settings.engine, other))
    folder = Path(own["out"]) if run is None or own["out"] else run / "evaluation" / material.about["name"]
    result = measure(name, raters, material, folder, ablation=settings.table == 3, uncalibrated=plain, learnt=learnt)
    page = write_evaluation(result, folder, command)
    _print(result)
    if run is not None:
        scores = {s: 100 * result["accuracy"][name][s]["accuracy"][0] for s in result["subsets"]}
        write_scores(run, f"{material.about['name']}, {settings.split} split, accuracy in %", scores)
        report(run)
    print(f"see {page}")
    return 0


def _print(result: Mapping[str, Any]) -> None:
    from srgym.runners.judges.report import accuracy_table

    table = accuracy_table(result)
    rows = [list(table.columns), *map(list, table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *cells]))
    print(table.caption)


def distil(arguments: list[str]) -> int:
    """srgym judge distil RUN SET out=DIR; audit=[key=value, ...] audits the student, with these settings of it."""
    from srgym.runners.commands import rewards
    from srgym.runners.judges.distil import DistilSettings
    from srgym.runners.judges.distil import distil as teach
    from srgym.runners.judges.exported import read_judge
    from srgym.runners.judges.report import report
    from srgym.runners.judges.set_material import read_material
    from srgym.runners.run.build import build_policy

    command = _command("distil", arguments)
    run, data = positions(arguments, ("RUN", "SET"), "distil")
    settings, own = read_settings(DistilSettings, arguments, "distil", {"out": None, "limit": None, "audit": None})
    if own["out"] is None:
        raise Refusal("srgym judge distil expects out=DIR: where the student goes")
    out = Path(own["out"])
    check_folder(out)
    if (recipe := read_judge(run)["recipe"]) != "compass":
        raise Refusal(f"srgym judge distil teaches fidelity and qualities, and {run} is a judge of recipe {recipe}")
    train_on, held_out = (read_material(data, split, own["limit"]) for split in (settings.split, settings.validation))
    policy = build_policy(settings.policy or {"name": "compact"}, {"scale": 4}).eval()
    result = teach(_engine(settings.engine, Path(run)), train_on, held_out, policy, settings, out)
    for name, found in result["agreement"].items():
        print(f"{name}: Spearman {found['spearman']}, SE {found['error']} over {found['photographs']} photographs")
    audited, beside = None, Path(run) / "distilled"  # not in the student's folder, which is sealed
    if own["audit"] is not None:
        scorer = f"reward.scorer={{name: compact, weights: '{out}'}}"
        place = beside / f"{out.name}_audit"
        rewards.run(["audit", "compass", scorer, f"out={place}", *own["audit"]])
        audited = json.loads((place / "audit.json").read_text())["lines"]
    write_json(beside / f"{out.name}.json", {**result, "command": " ".join(command), "audit": audited})
    print(f"see {report(Path(run))}; in use: reward=compass reward.scorer={{name: compact, weights: {out}}}")
    return 0


# What the three have in common


def _command(verb: str, arguments: list[str]) -> list[str]:
    return ["srgym", "judge", verb, *arguments]


def _engine(options: Mapping[str, Any], run: Path) -> Any:
    from srgym.rewards.serving.engines import make_engine

    engine = {"engine": "transformers", **options}
    if engine["engine"] != "served":
        engine["path"] = str(run)
    print(f"asking {run} through {engine['engine']}", file=sys.stderr, flush=True)
    return make_engine(engine, model="compass")


def _named(reward: Any) -> str:
    return reward if isinstance(reward, str) else str(reward.get("name", json.dumps(reward)))


def _reward(reward: Any) -> Any:
    """A reward by its file among the configs, its registered name, or a mapping."""
    from srgym.runners.run.build import build_reward

    if isinstance(reward, str) and reward.isidentifier():
        file = resources.files("srgym.configs").joinpath("reward", f"{reward}.yaml")
        reward = defaults(f"reward/{reward}") if file.is_file() else reward
    return build_reward(reward)
