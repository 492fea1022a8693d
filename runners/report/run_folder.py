"""What a run left behind, read for a report: its stages, what they cost, their logs, and the parts they play."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from srgym.errors import MissingFile, Refusal
from srgym.rewards.toys import CONTROLS
from srgym.runners.run.overrides import words
from srgym.sealed import read_object

__all__ = ["Roles", "RunFolder", "StageRecord", "read_log", "read_run"]


@dataclass(frozen=True)
class StageRecord:
    """One stage as it was run.

    Attributes:
        settings: its sections (`env`, `reward`, `policy`, `agent`, `runner`, `lora`), `kind`, `start_from` and, of a
            merge, `lora_from`.
        cost: seconds, images, updates, forwards, flops, as far as they were recorded.
    """

    name: str
    settings: Mapping[str, Any]
    cost: Mapping[str, float]
    folder: Path

    @property
    def kind(self) -> str:
        return str(self.settings.get("kind", "train"))

    @property
    def parents(self) -> list[str]:
        """The stages whose weights this one takes."""
        return [str(self.settings[key]) for key in ("start_from", "lora_from") if self.settings.get(key)]

    @property
    def agent(self) -> str:
        return str((self.settings.get("agent") or {}).get("name", ""))

    @property
    def reward(self) -> dict[str, Any]:
        section = self.settings.get("reward") or {}
        return {"name": section} if isinstance(section, str) else dict(section)

    @property
    def imitates(self) -> bool:
        """Whether it learns from ground truth (cold start) and not from a reward."""
        return "cold" in self.agent.lower()


@dataclass(frozen=True)
class Roles:
    """Which stage plays which part in the report; None where there is none."""

    sft: str | None
    final: str
    control: str | None


@dataclass(frozen=True)
class RunFolder:
    """A run: its folder, settings (`tree`), stages in order, and the record of how it was run."""

    folder: Path
    tree: Mapping[str, Any]
    stages: list[StageRecord]
    record: Mapping[str, Any]
    seed: int

    def stage(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)

    def under_control(self) -> set[str]:
        """The stages that owe something to a random reward: trained on it, or made from one that was."""
        owing: set[str] = set()
        for stage in self.stages:
            random = stage.kind == "train" and not stage.imitates and stage.reward.get("name") in CONTROLS
            if random or owing & set(stage.parents):
                owing.add(stage.name)
        return owing

    def roles(self, named: Mapping[str, str | None] | None = None) -> Roles:
        """The parts, as `given` or found: SFT is the last cold start, control the last stage that owes something to a
        random reward, final the last one that doesn't.

        Raises:
            ValueError: if no stage can be the final one, or a name that is given is no stage.
        """
        names, control = [stage.name for stage in self.stages], self.under_control()
        defaults: dict[str, str | None] = {
            "sft": _last([stage.name for stage in self.stages if stage.imitates and stage.name not in control]),
            "final": _last([name for name in names if name not in control]),
            "control": _last([name for name in names if name in control]),
        }
        parts = {**defaults, **(named or {})}
        for part, name in parts.items():
            if name is not None and name not in names:
                raise Refusal(f"the report's {part} is '{name}', which is no stage: expected one of {', '.join(names)}")
        final = parts["final"]
        if final is None:
            raise Refusal(f"{self.folder}: expected a stage that isn't a random-reward control, got none")
        return Roles(parts["sft"], final, parts["control"])

    def rewards(self) -> dict[str, dict[str, Any]]:
        """The rewards that stages outside the control were trained on, under labels, the last stage's first."""
        control, specs = self.under_control(), dict[str, dict[str, Any]]()
        for stage in reversed(self.stages):
            if stage.kind != "train" or stage.imitates or stage.name in control:
                continue
            spec = stage.reward
            if spec in specs.values():
                continue
            label = str(spec.get("name", "reward"))
            if label in specs:
                label = f"{label} ({spec.get('mode', stage.name)})"
            specs[label] = spec
        return specs

    def trained_on(self) -> set[str]:
        """Every name inside those rewards: a metric among them isn't one that was never trained on."""
        return {word for spec in self.rewards().values() for word in words(spec)}


def _last(names: list[str]) -> str | None:
    return names[-1] if names else None


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        FileNotFoundError: if it holds no finished run.
    """
    for name in ("config.json", "run.json"):
        if not (folder / name).is_file():
            raise MissingFile(f"expected the folder of a run with {name} at {folder}, found none")
    config = read_object(folder / "config.json", {"stages": dict})
    record = read_object(folder / "run.json", {"stages": dict})
    stages = [
        StageRecord(name, settings, record["stages"].get(name, {}), folder / "stages" / name)
        for name, settings in config["stages"].items()
    ]
    return RunFolder(folder, config.get("tree", {}), stages, record, int(config.get("seed", 0)))


def read_log(folder: Path) -> pd.DataFrame:
    """A stage's `metrics.csv` by step, with the costs of each row filled in; empty where there is none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return pd.DataFrame({"step": []})
    frame = pd.read_csv(path).sort_values("step", kind="stable")
    costs = [column for column in frame.columns if column.startswith("cost/")]
    frame[costs] = frame[costs].ffill().fillna(0.0)
    return frame
