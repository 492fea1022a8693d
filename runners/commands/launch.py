"""srgym launch slurm [key=value ...]: write the script of a SLURM job that trains.

  srgym launch slurm nodes=2 gpus=8 time=24:00:00 experiment=oars_qwen policy.path=/models/qwen \\
      reward.scorer.engine.urls=[http://node7:8000] out=/scratch/runs/oars_qwen
  sbatch /scratch/runs/oars_qwen/train.slurm

  nodes=1 gpus=1    machines, and GPUs of each (0: one process on its CPUs)
  time=12:00:00 partition=NAME account=NAME memory=64G cpus=N (for each GPU)
  lead=300          seconds before the end at which the run is told to save: above its longest iteration
  setup='LINE'      a line of shell that comes first (module load ..., source .../activate)
  sbatch='--qos=long --constraint=h100'
                    further options
  script=PATH       where the script goes; by default train.slurm in the run's folder
  submit=false      true hands it to sbatch
  replace=false     true writes over another script

Everything else is srgym train's, and is checked here. The job saves before its time is over, queues itself again, and
goes on in the same folder until the run is complete; out= must be a folder that all nodes see. Exit codes of a run: 0
when it is complete, 128 + n when signal n stopped it after saving (USR1: 138), 2 for what can be mended, 1 otherwise.
"""

from pathlib import Path
from typing import Any

from srgym.errors import Refusal
from srgym.runners.commands.arguments import take_option, take_setting
from srgym.runners.run.overrides import take_values

__all__ = ["run"]

_DEFAULTS: dict[str, Any] = {
    "nodes": 1, "gpus": 1, "cpus": None, "memory": None, "time": None, "partition": None, "account": None, "lead": 300,
    "sbatch": None, "setup": None, "script": None, "submit": False, "replace": False,
}  # fmt: skip


def run(arguments: list[str]) -> int:
    from srgym.runners.run.config import compose, resolve
    from srgym.runners.run.launch import local_servers, slurm_script, submit, write_script

    if arguments in ([], ["slurm"]):
        print(__doc__)
        return 2
    if arguments[0] != "slurm":
        raise Refusal(f"srgym launch knows slurm, got {arguments[0]}; see --help")
    overrides = arguments[1:]
    folders = [Path(folder) for folder in take_option(overrides, "--config-dir")]
    raw = {
        key: take_setting(overrides, key) for key in ("time", "setup", "sbatch")
    }  # as they stand: 12:00:00 isn't a number
    options, train = take_values(overrides, _DEFAULTS, others=("*",))
    options |= raw
    for refused in ("overwrite", "resume"):
        if any(text.partition("=")[0] == refused for text in train):
            raise Refusal(
                f"srgym launch can't take {refused}=: a job that is queued again must go on by itself in out="
            )
    config = resolve(*compose(train, folders))
    train += [f"--config-dir={folder.absolute()}" for folder in folders]
    place = Path(options["script"]) if options["script"] else config.out / "train.slurm"
    path = write_script(place, slurm_script(config, train, options), bool(options["replace"]))
    print(f"wrote {path}")
    for server in local_servers(config):
        print(f"beware: the reward server {server} will be looked for on each node itself; give its machine's address")
    print(submit(path) if options["submit"] else f"submit it with: sbatch {path}")
    return 0
