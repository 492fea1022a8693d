"""A SLURM job for a run: torchrun on every node, saved before its time is over, and queued again until it's done."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srgym.errors import MissingFile, Refusal
from srgym.runners.run.config import RunConfig
from srgym.runners.run.overrides import words

__all__ = ["local_servers", "slurm_script", "submit", "write_script"]

_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")
_GRACE = 30  # seconds before the end at which a job that hasn't saved is queued again as it is

_BODY = r"""
# SLURM sends this shell USR1 LEAD seconds before the time is over. It goes on to every process of the run; they save
# after the iteration they are in and end with exit code 138, and the job is queued again. In the same folder it goes on
# where it was. A run that fails by itself isn't queued again; a job that is preempted, or whose node fails, is.
cd -- DIRECTORY || exit 1
mkdir -p -- FOLDER
if [ -z "${MASTER_ADDR:-}" ]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))} SRGYM_PYTHON=PYTHON

# On each node: torchrun itself must not hear USR1; its processes do.
on_a_node='
(
    trap "" USR1
    exec "$SRGYM_PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node PROCESSES \
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" -m srgym train "$@"
) &
launcher=$!
trap "pkill -USR1 -P $launcher" USR1
while wait "$launcher"; kill -0 "$launcher" 2>/dev/null; do :; done
wait "$launcher"
'

srun --nodes="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c "$on_a_node" srgym ARGUMENTS &
step=$!

told=
tell() {
    told=yes
    echo "the time is nearly over: the run is told to save"
    kill -USR1 "$step" 2>/dev/null
    ( sleep PATIENCE && echo "not saved in time: queued again as it is" && scontrol requeue "$SLURM_JOB_ID" ) &
    timer=$!
}
trap tell USR1
while wait "$step"; kill -0 "$step" 2>/dev/null; do :; done
wait "$step"
code=$?
if [ -n "$told" ]; then
    pkill -P "$timer"
    if [ "$code" -ne 0 ]; then
        echo "queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
"""


def slurm_script(config: RunConfig, arguments: Sequence[str], options: Mapping[str, Any]) -> str:
    """The job's script.

    Args:
        config: the run, for its name and folder.
        arguments: what `srgym train` is given.
        options: `nodes`, `gpus` (a node's), `cpus` (a GPU's), `memory`, `time`, `partition`, `account`, `lead`
            (seconds), `sbatch` (further ones) and `setup` (a shell line that comes first).

    Raises:
        ValueError: for an option out of its range.
    """
    nodes, gpus, lead = options["nodes"], options["gpus"], options["lead"]
    if not all(isinstance(value, int) for value in (nodes, gpus, lead)) or nodes < 1 or gpus < 0 or lead <= _GRACE:
        raise Refusal(
            f"expected nodes of at least 1, gpus of at least 0 and lead above {_GRACE} seconds, got {nodes}, {gpus} "
            f"and {lead}"
        )
    if options["time"] is not None and not _TIME.fullmatch(str(options["time"])):
        raise Refusal(f"time is as SLURM writes it (12:00:00, 2-00:00:00 or minutes), got '{options['time']}'")
    out = config.out.absolute()
    lines = [
        f"--job-name={config.name}", f"--nodes={nodes}", "--ntasks-per-node=1",
        f"--gpus-per-node={gpus}" if gpus else None,
        f"--cpus-per-task={options['cpus'] * max(gpus, 1)}" if options["cpus"] else None,
        *(f"--{key}={options[name]}" for key, name in
          (("mem", "memory"), ("time", "time"), ("partition", "partition"), ("account", "account")) if options[name]),
        "--requeue", f"--signal=B:USR1@{lead}", "--open-mode=append", f"--output={out}/slurm-%j.log", "--export=ALL",
        *shlex.split(options["sbatch"] or ""),
    ]  # fmt: skip
    overrides = [argument for argument in arguments if not argument.startswith("out=")]
    filled = {
        "LEAD": str(lead), "DIRECTORY": shlex.quote(str(Path.cwd())), "FOLDER": shlex.quote(str(out)),
        "PYTHON": shlex.quote(sys.executable), "PROCESSES": str(max(gpus, 1)), "PATIENCE": str(lead - _GRACE),
        "ARGUMENTS": shlex.join([*overrides, f"out={out}"]),
    }  # fmt: skip
    body = re.sub(r"\b(" + "|".join(filled) + r")\b", lambda match: filled[match[0]], _BODY)
    setup = f"\n{options['setup']}\n" if options["setup"] else ""
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines if line)]) + "\n" + setup + body


def write_script(path: Path, script: str, overwrite: bool) -> Path:
    """Write the script, executable.

    Raises:
        ValueError: if another one is there and `overwrite` is off.
    """
    if path.exists() and not overwrite and path.read_text() != script:
        raise Refusal(f"{path} is there already and differs: replace=true writes it anew, script=PATH elsewhere")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    return path


def submit(path: Path) -> str:
    """Hand the script to `sbatch`, and return what it says.

    Raises:
        FileNotFoundError: where there is no SLURM.
        ValueError: if it refuses the job.
    """
    try:
        done = subprocess.run(["sbatch", os.fspath(path)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MissingFile(f"found no sbatch on this machine: submit {path} where there is one") from error
    if done.returncode:
        raise Refusal(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def local_servers(config: RunConfig) -> list[str]:
    """The addresses of reward servers that mean the machine they are asked from."""
    rewards = [config.tree.get("reward"), *(stage.sections.get("reward") for stage in config.stages)]
    here = {
        word
        for reward in rewards
        for word in words(reward)
        if re.match(r"https?://(localhost|127\.|\[::1\])", word)
    }  # fmt: skip
    return sorted(here)
