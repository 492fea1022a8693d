"""Weights that ship with the package: copied from a run, measured on held-out photographs, provenance beside them.

python tools/shipping.py policy runs/compact_base policies/weights/compact_base COMMIT
python tools/shipping.py writer runs/compact_vlcot policies/weights/compact_vlcot COMMIT
python tools/shipping.py scorer runs/compass_compact rewards/weights/compass_compact COMMIT
python tools/shipping.py scorer runs/finpercep_compact rewards/weights/finpercep_compact COMMIT
python tools/shipping.py scorer runs/lucid_consistency rewards/weights/lucid_lite0 COMMIT
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from srgym.envs import sources
from srgym.envs.photographs import PHOTOGRAPHS
from srgym.sealed import read_tensors, seal, write_tensors

__all__ = ["held_out", "provenance", "ship"]

# What a trained reward model measured on the validation split: COMPASS, FinPercep.
_FIGURES = ("correlations.json", "held_out.json")

_METRICS = ("psnr_y", "psnr_chroma", "ssim_y", "structure_texture", "lite0_features")
_MORE = "env.more="


def held_out(folder: Path, split: str) -> dict[str, dict[str, float]]:
    """Means over a split's crops, x4 `mild`: bicubic, the policy's mean, and its samples of 1, 3 and 6 steps."""
    from srgym import policies
    from srgym.runners.measure.evaluation import evaluate
    from srgym.runners.measure.methods import Bicubic, Mean, Samples

    described = json.loads((folder / "policy.json").read_text())
    policy = policies.make(described["policy"], **{**described["config"], "scale": 4, "weights": str(folder)})
    methods: dict[str, Any] = {"bicubic": Bicubic(4), "mean": Mean(policy)}
    methods |= {f"{n} steps": Samples(policy, steps=n) for n in (1, 3, 6)}
    frame = evaluate(methods, sources.make("photographs", split=split), _METRICS)
    table = frame.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
    return {str(name): {str(k): round(float(v), 4) for k, v in row.items()} for name, row in table.iterrows()}


def written(folder: Path, split: str) -> dict[str, dict[str, float]]:
    """`held_out` of a policy that writes, x4 `mixture` at its own size: bicubic, the mean that is known without a
    token, the image of the truth's own tokens, and samples at three temperatures; rewards of the words beside them."""
    from srgym import policies
    from srgym.envs.task import SRTask
    from srgym.policies.tokens import TokenSampling
    from srgym.runners.measure.evaluation import Evaluation
    from srgym.runners.measure.methods import Bicubic, Mean, Samples

    policy: Any = policies.make("compact_vlcot", weights=str(folder))
    source = sources.make("photographs", split=split, preset="mixture", size=policy.side, crops=24)
    words = {"name": "realsr_r1", "generation": "structure_texture", "reference": False}
    methods: dict[str, Any] = {"bicubic": Bicubic(4), "mean": Mean(policy), "tokens of the truth": _Told(policy)}
    methods |= {f"T = {t:g}": Samples(policy, sampling=TokenSampling(t)) for t in (0.0, 0.7, 1.0)}
    # The reward takes what a policy gives; those without words have no score for them.
    task = SRTask(source, descriptions="statistics")
    frame = Evaluation(task, {**{name: name for name in _METRICS}, "words": words}).measure(methods)
    table = frame.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
    table = table[[name for name in table if not str(name).startswith("words.generation")]]
    rows = {str(name): {str(k): round(float(v), 4) for k, v in row.dropna().items()} for name, row in table.iterrows()}
    return {name: {k: v for k, v in row.items() if k != "words"} for name, row in rows.items()}


class _Told:
    """The image of the truth's own tokens: what a policy that makes no mistake would give."""

    random, gives, record = False, frozenset[str](), {"kind": "tokens of the truth"}

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, context: Any, seed: int) -> Any:
        from srgym.runners.measure.methods import Drawn

        known = self.policy.predict_mean(context.lr)
        return Drawn(self.policy.codec.decode(self.policy.codec.encode(context.hr, known, 2), known, 2))


def provenance(run: Path, commit: str) -> dict[str, Any]:
    """Where a run's result comes from: data, command, seed, date and commit.

    `further`: the photographs of `env.more` that it learnt from, as `tools/photographs.py` describes them.
    """
    record, config = json.loads((run / "run.json").read_text()), json.loads((run / "config.json").read_text())
    made = record["made_with"]
    train = [f"{p.name} ({p.library})" for p in PHOTOGRAPHS if p.split == "train"]
    said = [override for override in config["overrides"] if not override.startswith(("out=", "overwrite="))]
    more = next((override.removeprefix(_MORE) for override in said if override.startswith(_MORE)), None)
    further = [] if more is None else json.loads((Path(more) / "photographs.json").read_text())
    return {
        "data": "crops of the training photographs and of dead-leaves pictures: " + ", ".join(train),
        "further": [photograph for photograph in further if photograph["split"] == "train"],
        "command": " ".join(["srgym train", *(_without_places(o) for o in said)]),
        "seed": config["seed"],
        "date": made["date"][:10],
        "commit": commit,
        "versions": {name: made[name] for name in ("python", "torch")},
        "cost": record["stages"],
        "licence": "Apache-2.0",
    }


def _halve(source: Path, target: Path) -> None:
    """Weights in float16, which is half of what would have to be kept; they are float32 again when they are loaded."""
    tensors = {name: tensor.half() for name, tensor in read_tensors(source / "model.safetensors").items()}
    write_tensors(target / "model.safetensors", tensors)
    shutil.copyfile(source / "policy.json", target / "policy.json")


def _without_places(override: str) -> str:
    """A setting with FOLDER where it names one of this machine's."""
    key, _, value = override.partition("=")
    return f"{key}=FOLDER" if "/" in value else override


def ship(kind: str, run: Path, target: Path, commit: str) -> None:
    """Copy a run's policy, or the reward model of its scorer stage, to `target`, with provenance and held-out figures.

    Where the run went on from the weights that lie in `target`, their provenance is kept as `continues`.
    """
    target.mkdir(parents=True, exist_ok=True)
    described = provenance(run, commit)
    before = target / "provenance.json"
    if before.is_file() and "policy.weights=base" in described["command"]:
        described["continues"] = json.loads(before.read_text())
    if kind == "policy":
        source = run / json.loads((run / "run.json").read_text())["policy"]
        files: tuple[str, ...] = ("model.safetensors", "policy.json")
        figures: dict[str, Any] = {split: held_out(source, split) for split in ("validation", "test")}
    elif kind == "writer":
        source = run / json.loads((run / "run.json").read_text())["policy"]
        files = ("model.safetensors", "policy.json")
        _halve(source, target)
        source = target
        figures = {split: written(target, split) for split in ("validation", "test")}
    else:
        source = run / "stages" / "scorer" / "scorer"
        files = ("model.safetensors", "model.json")
        found = next(path for name in _FIGURES if (path := source / name).is_file())
        figures = {"validation": json.loads(found.read_text())}
    for file in files if source != target else ():
        shutil.copyfile(source / file, target / file)
    before.write_text(json.dumps({**described, "held_out": figures}, indent=2) + "\n")
    seal(target)


if __name__ == "__main__":
    _, what, given_run, given_target, given_commit = sys.argv
    ship(what, Path(given_run), Path(given_target), given_commit)
