"""srgym train [experiment=NAME] [key=value ...]: train a policy, stage by stage.

  srgym train experiment=oars                        the main job
  srgym train experiment=oars agent=flow_grpo seed=3
  srgym train agent=diffusion_nft reward=psnr_y runner.iterations=20 out=runs/mine
  srgym train resume=runs/mine                       go on with a run that was stopped
  srgym train experiment=oars --print                show the complete settings and stop
  srgym train experiment=oars_qwen --dry-run         predict its memory and time; on a GPU, try its worst step
  srgym train experiment=hacking_demo                goes on as `srgym compare`, as all experiments made of entries do

  --config-dir DIR   a folder of your own configs, laid out as the package's configs/

A run whose folder (out=) holds one of the same settings goes on where it stopped; overwrite=true starts it afresh.
"""

import os
from pathlib import Path

from srgym.errors import MissingFile
from srgym.registry import named_by
from srgym.runners.commands.arguments import take_flag, take_option
from srgym.runners.run.config import RunConfig, compose, resolve
from srgym.runners.run.overrides import take_values
from srgym.sealed import read_object

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    if _is_comparison(arguments):
        from srgym.runners.commands import compare

        print("this experiment compares runs: going on as `srgym compare`")
        return compare.run(arguments)
    folders = [Path(folder) for folder in take_option(arguments, "--config-dir")]
    show = take_flag(arguments, "--print")
    dry = take_flag(arguments, "--dry-run")
    own, arguments = take_values(arguments, {"overwrite": False, "resume": None}, ("*",), {"resume": str | None})
    resume, overwrite = own["resume"], own["overwrite"]
    if resume:
        with named_by(Path(resume) / "config.json"):
            return _go(_resumed(Path(resume), arguments, folders), show, dry, overwrite)
    return _go(_resolve(arguments, folders), show, dry, overwrite)


def _go(config: RunConfig, show: bool, dry: bool, overwrite: bool) -> int:
    if show:
        import yaml

        stages = {stage.name: stage.as_json() for stage in config.stages}
        print(yaml.safe_dump({**config.tree, "stages": stages}, sort_keys=False))
        return 0
    if dry:
        from srgym.runners.run.dry_run import dry_run

        print(dry_run(config))
        return 0
    return _train(config, overwrite)


def _is_comparison(arguments: list[str]) -> bool:
    """Whether the experiment is made of entries, none of which is the run to train."""
    experiments = [argument for argument in arguments if argument.startswith("experiment=")]
    folders = [Path(folder) for folder in take_option(list(arguments), "--config-dir")]
    return bool(experiments and (compose(experiments[-1:], folders)[0].get("compare") or {}).get("entries"))


def _resolve(arguments: list[str], folders: list[Path]) -> RunConfig:
    return resolve(*compose(arguments, folders))


def _resumed(folder: Path, arguments: list[str], folders: list[Path]) -> RunConfig:
    """The settings that a run was started with, and what is given besides."""
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFile(f"resume={folder}: expected the folder of a run, with config.json, found none")
    before = read_object(path, {"overrides": list})
    folders = [*map(Path, before.get("config_dirs", ())), *folders]
    return resolve(*compose([*before["overrides"], f"out={folder}", *arguments], folders))


def _train(config: RunConfig, overwrite: bool) -> int:
    from srgym.runners.run.stages import Run, remove_run

    main = os.environ.get("RANK", "0") == "0"
    if overwrite and main:
        remove_run(config.out)
    run = Run(config)
    run.learn()
    if not main:
        return 0
    print(f"done: the policy is in {run.policy_folder}")
    page = run.report()
    if page is not None:
        print(f"the report is {page}")
    return 0
