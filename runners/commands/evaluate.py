"""srgym evaluate [key=value ...]: score a policy, or a folder of images.

  srgym evaluate policy=runs/oars                       a run's (or a saved policy's) folder on the test photographs
  srgym evaluate policy=runs/oars env=paired_folders env.lr=LR env.hr=HR metrics=[psnr_y,lpips]
  srgym evaluate policy={sft: runs/a, oars: runs/b} baselines=true limit=24
  srgym evaluate pred=FOLDER hr=FOLDER metrics=[psnr_y,ssim_y] out=FOLDER
  srgym evaluate pred={OSEDiff: A, ours: B} hr=HR dataset=RealSR   with the papers' figures beside ours

Contexts come from env= and env.key=VALUE as in training, or from folders, matched by stem. Metrics are rewards by name
(srgym rewards). Settings and their defaults: configs/evaluate.yaml.

Writes results.csv and results.parquet (one row a number), results.json (what the numbers mean), report.html, report.md.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srgym.runners.run.config import ConfigError
from srgym.runners.run.overrides import METRICS, defaults, take_values
from srgym.settings import Count, Natural

if TYPE_CHECKING:
    from srgym.envs import SRTask
    from srgym.runners.measure.methods import Method

__all__ = ["chosen_env", "named_folders", "run"]

_FOLDERS = str | Sequence[str] | Mapping[str, str]
_KINDS = {
    "policy": _FOLDERS, "pred": _FOLDERS, "hr": str | None, "lr": str | None, "metrics": METRICS, "steps": Count,
    "seeds": Sequence[int], "limit": Count | None, "batch": Count, "threads": Count | None, "pictures": Natural,
    "adapter": str | None, "dataset": str | None, "colour_fix": str | None,
}  # fmt: skip


def run(arguments: list[str]) -> int:
    settings, rest = take_values(arguments, defaults("evaluate"), ("env",), _KINDS)
    if bool(settings["policy"]) == bool(settings["pred"]):
        raise ConfigError("expected either policy=FOLDER or pred=FOLDER, got both or none of them; see --help")
    if settings["pred"] and rest:
        raise ConfigError(f"pred= brings its own contexts by hr= and lr=, so '{rest[0]}' has no effect: leave it out")
    if settings["dataset"] is not None:
        from srgym.runners.measure.published import published_tables

        published_tables(settings["dataset"])  # an unknown data set is refused before anything is scored
    env = None if settings["pred"] else chosen_env(rest)
    from srgym.runners.run.build import use_threads

    use_threads(settings["threads"])
    page = _evaluate(settings, env)
    print(f"done: {page}")
    return 0


def chosen_env(arguments: list[str]) -> dict[str, Any]:
    """The env section; of the photographs the test split and of a folder all, unless another split is asked for."""
    from srgym.runners.run.config import compose, resolve

    env = dict(resolve(*compose(arguments)).stages[0].sections["env"])
    if "split" in env and not any(a.startswith("env.split=") for a in arguments):
        env["split"] = "test" if env["name"] == "photographs" else "all"
    return env


def _evaluate(settings: Mapping[str, Any], env: Mapping[str, Any] | None) -> Path:
    from srgym.runners.measure.evaluation import (
        Evaluation,
        draw,
        evaluation_record,
        mapping_reward,
        save_evaluation,
        spread_indices,
    )
    from srgym.runners.measure.metrics import make_metrics
    from srgym.runners.report import write_evaluation_report

    metrics = make_metrics(settings["metrics"])
    task, methods = _folders(settings) if env is None else _policies(settings, env)
    folder, seeds = Path(settings["out"]), settings["seeds"]
    evaluation = Evaluation(task, metrics, seeds=seeds, limit=settings["limit"], batch=settings["batch"])
    frame = evaluation.measure(methods, _progress)
    facts = {key: settings[key] for key in ("seeds", "limit", "dataset", "pred", "policy", "hr", "lr")}
    save_evaluation(frame, evaluation_record(methods, metrics, env=env, contexts=len(task), **facts), folder)
    if settings["save_images"]:
        _save_images(task, methods, evaluation.indices, folder / "images", seeds[0])
    shown = spread_indices(len(task), max(1, settings["pictures"])) if settings["pictures"] else []
    pictures = draw(task, methods, shown, seed=seeds[0], reward=mapping_reward(metrics))
    return write_evaluation_report(folder, pictures, dataset=settings["dataset"])


def _progress(share: float) -> None:
    if sys.stderr.isatty():
        print(f"\revaluating: {share:4.0%}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


def named_folders(spec: Any) -> dict[str, str]:
    """A folder, several, or a mapping of names to folders; a folder is named after itself."""
    if isinstance(spec, Mapping):
        return {str(name): str(folder) for name, folder in spec.items()}
    folders = [spec] if isinstance(spec, str) else [str(folder) for folder in spec]
    named = {Path(folder).name or folder: folder for folder in folders}
    if len(named) != len(folders):
        raise ConfigError("two folders share their name: give them others, as in pred={one: A/out, two: B/out}")
    return named


def _folders(settings: Mapping[str, Any]) -> "tuple[SRTask, dict[str, Method]]":
    from srgym.envs import SRTask
    from srgym.runners.measure.folders import match_folders

    colour_fix = settings["colour_fix"] or "unknown"
    contexts, images = match_folders(named_folders(settings["pred"]), settings["hr"], settings["lr"], colour_fix)
    return SRTask(contexts), dict(images)


def _policies(settings: Mapping[str, Any], env: Mapping[str, Any]) -> "tuple[SRTask, dict[str, Method]]":
    from srgym.runners.measure.methods import Samples, baselines
    from srgym.runners.run.build import build_task, pick_device
    from srgym.runners.run.upscaling import find_policy

    device, named = pick_device(settings["device"]), named_folders(settings["policy"])
    methods: dict[str, Method] = {}
    for name, folder in named.items():
        policy = find_policy(folder, env.get("scale")).to(device)
        if settings["baselines"]:
            for kind, method in baselines(policy, settings["steps"], adapter=settings["adapter"]).items():
                methods[kind if len(named) == 1 or kind == "bicubic" else f"{name}, {kind}"] = method
        methods[name] = Samples(
            policy, settings["steps"], settings["solver"], settings["adapter"], settings["colour_fix"] or "none"
        )
    return build_task(env), methods


def _save_images(
    task: "SRTask", methods: "Mapping[str, Method]", indices: Sequence[int], folder: Path, seed: int
) -> None:
    from srgym.files import to_png, write_whole
    from srgym.runners.measure.evaluation import draw

    for index in indices:
        (picture,) = draw(task, methods, [index], seed=seed)
        for name in methods:
            write_whole(folder / name / f"{picture['id']}.png", to_png(picture[name]))
