"""A comparison's folder, read for its report: scores, curves, costs and pictures of all its cells."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from srgym.errors import MissingFile
from srgym.runners.measure.evaluation import faulty, read_evaluation, write_frame
from srgym.sealed import read_object

__all__ = ["START", "Comparison", "join_pictures", "read_comparison", "read_pictures", "save_tables"]

START = "start"
_KEYS = ["iteration", "metric", "photograph", "crop"]


@dataclass(frozen=True)
class Comparison:
    """What the cells of a comparison left behind.

    Attributes:
        folder: of it. plan: `compare.json`.
        frame: final scores: method, run (the training seed), role, photograph, crop, metric, value, valid, seed.
        curves: evaluations during the runs: method, run, role, iteration, images, seconds, flops, metric, photograph,
            crop, value.
        costs: by cell. record: what the numbers mean. failed: cells that didn't end well, with their last words.
    """

    folder: Path
    plan: Mapping[str, Any]
    frame: pd.DataFrame
    curves: pd.DataFrame
    costs: Mapping[str, Mapping[str, float]]
    record: Mapping[str, Any]
    failed: Mapping[str, str]

    @property
    def agents(self) -> list[str]:
        """The labels that are compared, as far as a run of theirs ended well."""
        there = set(self.frame[self.frame["role"] == "agent"]["method"])
        return [label for label in self.plan["entries"] if label in there]

    @property
    def baselines(self) -> list[str]:
        return list(dict.fromkeys(self.frame[self.frame["role"] == "baseline"]["method"]))

    def start(self, label: str) -> str:
        """The starting policy of a label."""
        return str(self.plan["entries"][label].get("start", START))

    def control(self, label: str) -> str | None:
        """The random-reward control of a label, if one ended well."""
        name = self.plan["entries"][label].get("control", f"{label}, random reward")
        return name if name is not None and (self.frame["method"] == name).any() else None

    def reward(self, label: str) -> str:
        """The metric that a label is trained on."""
        return str(self.plan["entries"][label]["reward"])

    @property
    def rewards(self) -> list[str]:
        return list(dict.fromkeys(self.reward(label) for label in self.agents))


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        FileNotFoundError: if it holds none.
    """
    if not (folder / "compare.json").is_file():
        raise MissingFile(f"expected a comparison with compare.json at {folder}, found none")
    plan = read_object(folder / "compare.json", {"cells": dict})
    frames, curves, costs, record = [], [], dict[str, Any](), dict[str, Any]()
    for name, cell in plan["cells"].items():
        place = folder / "cells" / name
        if not (place / "done.json").is_file():
            continue
        frame, own = read_evaluation(place)
        frames.append(_labelled(frame, cell))
        record = own if cell["role"] == START else record or own
        done = read_object(place / "done.json", {"cost": dict, "seconds": (int, float)})
        costs[name] = {**done["cost"], "whole": done["seconds"]}
        if cell["role"] != START and (place / "evaluations.csv").is_file():
            rows = pd.read_csv(place / "evaluations.csv", dtype={"photograph": str, "crop": str})
            rows = rows.drop_duplicates(_KEYS, keep="last")
            curves.append(rows.assign(method=cell["label"], run=cell["seed"], role=cell["role"]))
    joined = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()
    return Comparison(folder, plan, pd.concat(frames, ignore_index=True), joined, costs, record, plan.get("failed", {}))


def _labelled(frame: pd.DataFrame, cell: Mapping[str, Any]) -> pd.DataFrame:
    """A cell's rows under its label; what else the start's cell scored is a baseline."""
    own = frame["method"] == "policy"
    return frame.assign(
        role=np.where(own, cell["role"], "baseline"),
        run=cell["seed"],
        method=np.where(own, cell["label"], frame["method"]),
    )


def save_tables(comparison: Comparison) -> None:
    """Write `results` and `curves` as CSV and Parquet."""
    for name, frame in (("results", comparison.frame), ("curves", comparison.curves)):
        write_frame(frame, comparison.folder, name)


def read_pictures(comparison: Comparison) -> list[dict[str, Any]]:
    """LR, the start, every agent and HR of the contexts that are shown, as `evaluation.draw` gives them."""
    places: dict[str, Path] = {}
    for name, cell in comparison.plan["cells"].items():
        place = comparison.folder / "cells" / name / "pictures"
        if (place / "pictures.json").is_file():
            places.setdefault(str(cell["label"]), place)
    return join_pictures(places)


def join_pictures(places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """LR, every label and HR of the contexts that are shown, from the folders of cells' pictures by label."""
    rows: dict[str, dict[str, Any]] = {}
    truths: dict[str, Any] = {}
    for label, place in places.items():
        for picture in json.loads((place / "pictures.json").read_text()):
            files = picture["files"]
            row = rows.setdefault(picture["id"], {"id": picture["id"]})
            if "LR" in files:
                row.setdefault("LR", _image(place / files["LR"]))
            row.setdefault(label, _image(place / files["policy"]))
            if faulty("policy") in files:
                row.setdefault(faulty(label), _image(place / files[faulty("policy")]))
            if "HR" in files and picture["id"] not in truths:
                truths[picture["id"]] = _image(place / files["HR"])
    return [{**row, **({"HR": truths[key]} if key in truths else {})} for key, row in rows.items()]


def _image(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
