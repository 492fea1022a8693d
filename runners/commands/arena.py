"""srgym arena make|serve|report|export|plan: a preference study, blinded, in the browser.

  srgym arena plan share=0.6                         how many photographs and raters show that 60 % prefer a method
  srgym arena make out=STUDY 'methods={ours: runs/oars, base: compact, theirs: FOLDER, bicubic: bicubic}' limit=12
  srgym arena serve STUDY                            http://127.0.0.1:8020/; this machine only
  srgym arena serve STUDY host=0.0.0.0 port=8080     for others: at an address with a token, which is made and shown
  srgym arena report STUDY                           report.html, report.md and report.json in STUDY
  srgym arena export STUDY pairs out=FOLDER          for srgym train env=preferences env.path=FOLDER agent=dpo
  srgym arena export STUDY annotations out=FILE.jsonl      a line a vote, images by their SHA-256

make: a method is a run's or a saved policy's folder, a policy's name, a folder of images named after the contexts'
ids, or bicubic. Contexts come from env= and env.key=VALUE as in training; of photographs the test split. Settings and
their defaults: configs/arena.yaml. What raters read and agree to is STUDY/welcome.txt, which you may edit.

serve: a rater goes on where they stopped, after the server was stopped or killed, too. SRGYM_ARENA_TOKEN is a token of
your own, one that outlasts the server. What is sent isn't encrypted: on a network that you don't trust, put it behind a
tunnel or TLS.

report: metrics=[a,b] are the judges that are compared with people; all that can be computed by default.

export pairs: margin=0.2 leaves out pairs whose winner leads by less than that share of the votes.

plan: share=0.6 raters=[3,5,10,20,30] photographs=[6,12,24,48] photograph_sd=0.17 rater_sd=0.1 power=0.8; or
study=STUDY, which measures the two spreads in a pilot.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srgym.errors import MissingFile, Refusal
from srgym.runners.run.overrides import METRICS, defaults, take_values
from srgym.settings import Count, Natural, Positive, Share, nearest

if TYPE_CHECKING:
    from srgym.envs import SRTask
    from srgym.runners.measure.methods import Method

__all__ = ["run"]

_TOKEN = "SRGYM_ARENA_TOKEN"
_MAKE = {
    "out": str, "methods": str | Sequence[str] | Mapping[str, str], "limit": Count | None, "welcome": str | None,
    "together": Count, "lr": Literal["centred", "key"], "trials": Count | None, "repeats": Natural, "checks": Natural,
    "pass_checks": Share, "seed": Natural, "steps": Count, "adapter": str | None, "threads": Count | None,
}  # fmt: skip


def run(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb not in _VERBS:
        raise Refusal(f"{nearest(verb, _VERBS)}srgym arena expects one of {', '.join(_VERBS)}, got '{verb}'")
    return _VERBS[verb](rest)


def _take_study(arguments: Sequence[str], verb: str) -> tuple[str, list[str]]:
    """The study's folder, which comes first, and what follows it."""
    if not arguments or "=" in arguments[0]:
        raise Refusal(f"srgym arena {verb} expects the study's folder first: srgym arena {verb} STUDY")
    return arguments[0], list(arguments[1:])


# make


def _make(arguments: list[str]) -> int:
    from srgym.runners.commands.evaluate import chosen_env, named_folders
    from srgym.runners.run.build import build_task, use_threads

    settings, rest = take_values(arguments, defaults("arena"), ("env",), _MAKE)
    named = named_folders(settings["methods"])
    welcome = None if settings["welcome"] is None else _text(Path(settings["welcome"]))
    design = _design(settings, len(named))
    env = chosen_env(rest)
    use_threads(settings["threads"])

    from srgym.runners.arena.making import make_study
    from srgym.runners.measure.evaluation import evaluation_record, spread_indices

    task = build_task(env)
    indices = spread_indices(len(task), settings["limit"])
    methods = _methods(named, task, indices, settings)
    record = evaluation_record(methods, [], env=env)
    study = make_study(Path(settings["out"]), task, methods, design, indices, welcome=welcome, record=record)
    from srgym.runners.arena.schedule import schedule

    print(f"done: {study.folder}: {len(study.contexts)} contexts, {len(methods)} methods, "
          f"{len(schedule(study, 'anybody'))} trials for each rater")  # fmt: skip
    print(f"read and edit {study.folder / 'welcome.txt'}, then: srgym arena serve {study.folder}")
    return 0


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingFile(f"welcome={path}: expected a text file, found none")
    return path.read_text(encoding="utf-8")


def _design(settings: Mapping[str, Any], count: int) -> Any:
    """The study's design, refused before anything is drawn."""
    from dataclasses import fields

    from srgym.runners.arena.making import check_room
    from srgym.runners.arena.study import Design

    design = Design(**{field.name: settings[field.name] for field in fields(Design)})
    check_room(Path(settings["out"]), design, count)
    return design


def _methods(
    named: Mapping[str, str], task: "SRTask", indices: Sequence[int], settings: Mapping[str, Any]
) -> "dict[str, Method]":
    """A policy where there is one of that name or in that folder, else the folder's images."""
    from srgym import policies
    from srgym.runners.measure.folders import images_of
    from srgym.runners.measure.methods import Bicubic, Samples
    from srgym.runners.run.build import pick_device
    from srgym.runners.run.upscaling import find_policy

    device, scale = pick_device(settings["device"]), task.source.scale
    ids = [name for context in task.batches(indices, 1) for name in context.ids]
    methods: dict[str, Method] = {}
    for name, place in named.items():
        if place == "bicubic":
            methods[name] = Bicubic(scale)
        elif Path(place).is_dir() and not (policies.policy_folder(place) / "policy.json").is_file():
            methods[name] = images_of(place, ids)
        else:
            policy = find_policy(place, scale).to(device).eval()
            kept = (settings[key] for key in ("steps", "solver", "adapter", "colour_fix"))
            methods[name] = Samples(policy, *kept)
    return methods


# serve


def _serve(arguments: list[str]) -> int:
    folder, rest = _take_study(arguments, "serve")
    settings, _ = take_values(rest, {"host": "127.0.0.1", "port": 8020}, kinds={"port": Natural})
    from srgym.files import locked
    from srgym.runners.arena.server import LOOPBACK, ArenaServer
    from srgym.runners.arena.sittings import Sittings
    from srgym.runners.arena.study import open_study

    token = os.environ.get(_TOKEN)
    if token is None and settings["host"] not in LOOPBACK:
        token = secrets.token_urlsafe(18)
    if token is not None and not re.fullmatch(r"[\w-]{12,}", token, re.ASCII):
        raise Refusal(f"expected at least 12 letters, digits, '-' and '_' in {_TOKEN}, got something else")
    study = open_study(folder)
    study.welcome()
    with (
        locked(study.folder),
        Sittings(study) as sittings,
        ArenaServer(sittings, settings["host"], settings["port"], token) as server,
    ):
        print(f"raters open {server.url} (stop with ctrl-c)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raters, votes = sittings.counts
            print(f"\nstopped: {raters} raters, {votes} votes; srgym arena report {folder}")
    return 0


# report, export, plan


def _report(arguments: list[str]) -> int:
    folder, rest = _take_study(arguments, "report")
    known = {"metrics": None, "threads": None}
    settings, _ = take_values(rest, known, kinds={"metrics": METRICS | None, "threads": Count | None})
    from srgym.runners.arena.report import write_arena_report
    from srgym.runners.arena.study import open_study
    from srgym.runners.run.build import use_threads

    use_threads(settings["threads"])
    print(f"done: {write_arena_report(open_study(folder), settings['metrics'])}")
    return 0


def _export(arguments: list[str]) -> int:
    folder, rest = _take_study(arguments, "export")
    what = rest.pop(0) if rest and "=" not in rest[0] else ""
    if what not in ("pairs", "annotations"):
        raise Refusal(f"srgym arena export STUDY expects pairs or annotations next, got '{what}'")
    known = {"out": None, "margin": 0.0} if what == "pairs" else {"out": None}
    settings, _ = take_values(rest, known, kinds={"out": str, "margin": Share})
    from srgym.runners.arena.export import export_annotations, export_pairs
    from srgym.runners.arena.study import open_study

    study, out = open_study(folder), Path(settings["out"])
    done = export_pairs(study, out, settings["margin"]) if what == "pairs" else export_annotations(study, out)
    print(f"done: {done}")
    return 0


def _plan(arguments: list[str]) -> int:
    known = {
        "share": 0.6, "raters": [3, 5, 10, 20, 30], "photographs": [6, 12, 24, 48], "photograph_sd": 0.17,
        "rater_sd": 0.1, "power": 0.8, "study": None,
    }  # fmt: skip
    counts, sd = Sequence[Count], Positive
    kinds = {"share": Share, "raters": counts, "photographs": counts, "photograph_sd": sd, "rater_sd": sd,
             "power": Share, "study": str | None}  # fmt: skip
    settings, _ = take_values(arguments, known, kinds=kinds)
    from srgym.runners.arena.plan import plan_text

    print(plan_text(**settings))
    return 0


_VERBS: Mapping[str, Callable[[list[str]], int]] = {
    "make": _make, "serve": _serve, "report": _report, "export": _export, "plan": _plan,
}  # fmt: skip
