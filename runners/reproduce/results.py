"""What the cells of a reproduction left behind, and what each contrast of a claim comes to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srgym.runners.compare.executor import read_done
from srgym.runners.measure.evaluation import read_evaluation
from srgym.runners.measure.resampling import LEVEL
from srgym.runners.measure.statistics import (
    Interval,
    cost_to_reach,
    crossed_difference,
    detection_power,
    ratio_interval,
    variance_components,
)
from srgym.runners.report.summary import difference, level, scores
from srgym.runners.reproduce.claims import Claim, Contrast
from srgym.runners.reproduce.plan import DOSES, Plan
from srgym.runners.reproduce.probes import dose
from srgym.runners.reproduce.verdict import Verdict, corrected, judge, summed

__all__ = [
    "WHOLE",
    "Finding",
    "Results",
    "alike",
    "can_tell",
    "conclude",
    "read_agreements",
    "read_results",
    "wanted",
    "wobble",
]

Floats = NDArray[np.float64]
_NOTHING = Interval(np.nan, np.nan, np.nan, 0)
_MOST, _POWER = 100, 0.8  # how far what would tell is looked for, and how often it would
WHOLE = "all"  # in a photograph's place, of what is measured of a run and not of an image


@dataclass(frozen=True)
class Results:
    """Everything that ended well.

    Attributes:
        frame: method (the arm), run (the training seed), photograph, crop, metric, value, valid.
        doses: the same of scaled LoRAs, and `dose`.
        curves: method, run, iteration, images, seconds, flops, metric, photograph, crop, value.
        seconds: of the processor by cell, those of its last session if it was stopped.
        agreements: see `read_agreements`.
    """

    frame: pd.DataFrame
    doses: pd.DataFrame
    curves: pd.DataFrame
    seconds: Mapping[str, float]
    agreements: "Agreements"


@dataclass(frozen=True)
class Finding:
    """A contrast, its interval and the verdict on it.

    Attributes:
        missing: what didn't run, and keeps it from one.
        alike: how far the advantages of its arms' rewards correlate, where that is too far to tell; else None.
        why: what else there is to say: what would tell, how far each had gone.
    """

    contrast: Contrast
    margin: float
    interval: Interval
    verdict: Verdict
    missing: tuple[str, ...] = ()
    why: str = ""
    alike: float | None = None

    @property
    def ran(self) -> bool:
        return not self.missing and self.alike is None


def read_results(plan: Plan) -> Results:
    """Read every finished cell."""
    frames, doses, curves = list[pd.DataFrame](), list[pd.DataFrame](), list[pd.DataFrame]()
    seconds: dict[str, float] = {}
    for name, planned in plan.cells.items():
        done = read_done(planned.cell)
        if done is not None:
            seconds[name] = float(done.get("cpu") or done["seconds"])
    for arm, cells in plan.arms.items():
        for seed, name in cells.items():
            place = plan.cells[name].cell.folder
            if name not in seconds or not (place / "results.parquet").is_file():
                continue
            frame, _ = read_evaluation(place)
            own = frame[frame["method"] == "policy"].assign(method=arm, run=seed)
            frames.append(own)
            if (place / "evaluations.csv").is_file():
                curve = pd.read_csv(place / "evaluations.csv", dtype={"photograph": str, "crop": str})
                curves.append(curve.assign(method=arm, run=seed))
                climbs = plan.described[arm].climbs
                if climbs is not None:
                    frames.append(_wobbling(curve, climbs, arm, seed))
    for arm, cells in plan.doses.items():
        for seed, name in cells.items():
            if name in seconds:
                frame, _ = read_evaluation(plan.cells[name].cell.folder)
                doses.append(frame.assign(dose=frame["method"].map(_weight), method=arm, run=seed))
    return Results(_joined(frames), _joined(doses), _joined(curves), seconds, read_agreements(plan))


Agreements = Mapping[str, Mapping[tuple[str, str], float]]


def read_agreements(plan: Plan) -> Agreements:
    """Mean correlation of advantages by claim and pair of its `testable`, of the cells that have ended."""
    return {
        claim: {pair: _agreement(plan, name) for pair, name in pairs.items() if read_done(plan.cells[name].cell)}
        for claim, pairs in plan.checks.items()
    }


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = ["method", "run", "dose", "photograph", "crop", "metric", "value", "valid"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _weight(method: str) -> float:
    return 1.0 if method == "policy" else float(method.removeprefix(dose(0.0)[:-1]))


def _agreement(plan: Plan, name: str) -> float:
    frame, _ = read_evaluation(plan.cells[name].cell.folder)
    return float(frame["value"].mean())


def _wobbling(curve: pd.DataFrame, metric: str, arm: str, seed: int) -> pd.DataFrame:
    means = curve[curve["metric"] == metric].groupby("iteration")["value"].mean().to_numpy()
    row = {
        "method": arm,
        "run": seed,
        "photograph": WHOLE,
        "crop": "0",
        "metric": "wobble",
        "value": wobble(means),
        "valid": True,
        "seed": 0,
    }
    return pd.DataFrame([row])


def wobble(curve: Floats) -> float:
    """How far a curve's inner points lie from the line between their neighbours, on average, over its whole gain.

    Args:
        curve: [N], evenly spaced; NaN comes of fewer than three points, or of no gain.
    """
    gain = abs(float(curve[-1] - curve[0])) if len(curve) > 2 else 0.0
    if gain == 0:
        return float("nan")
    return float(np.abs(curve[1:-1] - (curve[:-2] + curve[2:]) / 2).mean() / gain)


def can_tell(plan: Plan, results: Results, claim: Claim) -> bool | None:
    """Whether training could tell the claim's rewards apart; None: nobody asked, or the answer isn't there yet."""
    found = results.agreements.get(claim.name)
    if not found:
        return None
    limit = float(plan.settings["precheck"]["limit"])
    return any(value <= limit for value in found.values())


def alike(plan: Plan, agreements: Agreements, claim: Claim, contrast: Contrast) -> float | None:
    """How far the advantages of the rewards of a contrast's arms correlate, where training can't tell them apart."""
    found = agreements.get(claim.name) or {}
    of, over = contrast.of, str(contrast.over)
    value = found.get((of, over), found.get((over, of)))
    return None if value is None or value <= float(plan.settings["precheck"]["limit"]) else value


def wanted(plan: Plan, agreements: Agreements) -> set[str]:
    """The cells that ask, and those that some contrast rests on whose arms training can tell apart."""
    return plan.checking | {
        name for claim in plan.claims
        for name in plan.cells_of([c for c in claim.contrasts if alike(plan, agreements, claim, c) is None])
    }  # fmt: skip


def conclude(plan: Plan, results: Results) -> dict[str, tuple[str, list[Finding]]]:
    """Every claim's verdict and findings, Holm's correction over all primary contrasts that ran."""
    findings = {claim.name: [_find(plan, results, claim, contrast) for contrast in claim.contrasts]
                for claim in plan.claims}  # fmt: skip
    primary = [(name, i) for name, own in findings.items() for i, f in enumerate(own) if f.contrast.primary and f.ran]
    fixed = corrected([findings[name][i].verdict for name, i in primary])
    for (name, i), verdict in zip(primary, fixed, strict=True):
        findings[name][i] = replace(findings[name][i], verdict=verdict)
    strict = 1 - (1 - LEVEL) / max(1, len(primary))
    for own in findings.values():
        for i, found in enumerate(own):
            level = strict if found.contrast.primary else LEVEL
            own[i] = replace(found, why=found.why or _would_tell(results, found, level))
    return {claim.name: (_verdict(plan, results, claim, findings[claim.name]), findings[claim.name])
            for claim in plan.claims}  # fmt: skip


def _verdict(plan: Plan, results: Results, claim: Claim, findings: Sequence[Finding]) -> str:
    if can_tell(plan, results, claim) is False and not claim.contrasts:
        return "not testable here"
    primary = [finding for finding in findings if finding.contrast.primary and finding.alike is None]
    if findings and not primary:
        return "not testable here"
    if not primary:
        return "left to another command" if claim.command and can_tell(plan, results, claim) is None else "testable"
    ran = [finding for finding in primary if finding.ran]
    said = summed([finding.verdict.conclusion for finding in ran])
    return f"{said}; {len(primary) - len(ran)} of {len(primary)} parts not run" if 0 < len(ran) < len(primary) else said


def _find(plan: Plan, results: Results, claim: Claim, contrast: Contrast) -> Finding:
    correlation = alike(plan, results.agreements, claim, contrast)
    if correlation is not None:
        why = f"the advantages of their rewards correlate by {correlation:.4f}"
        return Finding(contrast, _margin(plan, contrast), _NOTHING, Verdict("inconclusive"), (), why, correlation)
    margin, missing = _margin(plan, contrast), _missing(plan, results, contrast)
    if missing:
        return Finding(contrast, margin, _NOTHING, Verdict("inconclusive"), missing)
    if contrast.at == "cost":
        return _cost(results, contrast, margin)
    if contrast.at == "distance":
        interval, why = _at_distance(results, contrast)
    elif contrast.over is None:
        interval, why = level(results.frame, contrast.of, contrast.metric), ""
    else:
        interval, why = difference(results.frame, contrast.of, contrast.over, contrast.metric), ""
    return Finding(contrast, margin, interval, judge(interval, contrast.expect, margin, contrast.line), why=why)


def _missing(plan: Plan, results: Results, contrast: Contrast) -> tuple[str, ...]:
    """The arms that left nothing of what the contrast looks at, or not yet of all their seeds: a single seed of several
    would be taken for an arm that has none."""
    frame = {"steps": results.frame, "distance": results.doses, "cost": results.curves}[contrast.at]
    seeds = frame[frame["metric"] == contrast.metric].groupby("method")["run"].nunique()
    return tuple(dict.fromkeys(arm for arm in contrast.arms if seeds.get(arm, 0) < max(1, len(plan.arms.get(arm, ())))))


def _margin(plan: Plan, contrast: Contrast) -> float:
    return float(plan.settings["margins"][contrast.metric] if contrast.margin is None else contrast.margin)


def _would_tell(results: Results, finding: Finding, level: float) -> str:
    """How many photographs and seeds, grown alike, would show a difference of the margin at this level in four of five
    repetitions, of a contrast that is inconclusive."""
    contrast, interval = finding.contrast, finding.interval
    if not finding.ran or finding.verdict.conclusion != "inconclusive" or contrast.over is None:
        return ""
    if interval.seeds == 2:
        return "two seeds show a direction, and no interval"
    own, contexts = scores(results.frame, contrast.of, contrast.metric)
    other, others = scores(results.frame, contrast.over, contrast.metric)
    both = contexts.intersection(others)
    gap = own[:, contexts.get_indexer(both)] - other[:, others.get_indexer(both)].mean(0)
    names = [str(name) for name in both.get_level_values(0)]
    if interval.units < 2 or not np.isfinite(gap).any() or not finding.margin > 0:
        return ""
    components = variance_components(gap, names)
    for times in np.geomspace(1, _MOST, 100):
        seeds = math.ceil(times * len(own)) if len(own) > 1 else 1
        photographs = math.ceil(times * interval.units)
        if detection_power(finding.margin, components, seeds, photographs, level=level) >= _POWER:
            break
    else:
        return f"{_MOST} times as many photographs{' and seeds' if len(own) > 1 else ''} wouldn't tell the margin"
    if times == 1:
        return "there are enough to see a difference of the margin; what was found lies near it"
    return f"{photographs} photographs{f' and {seeds} seeds' if seeds > 1 else ''} would tell the margin"


# Equal distance from the start


def _at_distance(results: Results, contrast: Contrast) -> tuple[Interval, str]:
    """The difference where both have gone as far from the start, each along the weight of its LoRA.

    As far: on each context what the one that went less far at weight 1 went, on average over its seeds.
    """
    far, value, names = _along(results.doses, contrast.of, contrast.metric)
    its_far, its_value, _ = _along(results.doses, str(contrast.over), contrast.metric)
    at = [table[:, :, DOSES.index(1.0)].mean(0) for table in (far, its_far)]
    target = at[0] if at[0].mean() <= at[1].mean() else at[1]
    target = np.minimum(target, np.minimum(far.max(2).min(0), its_far.max(2).min(0)))
    x, y = (_interpolated(f, v, target) for f, v in ((far, value), (its_far, its_value)))
    gone = ", ".join(f"{a.mean():.2f}" for a in at)
    return crossed_difference(x, y, names), f"at {target.mean():.2f} grey levels; at the end they were at {gone}"


def _along(doses: pd.DataFrame, arm: str, metric: str) -> tuple[Floats, Floats, list[str]]:
    """(distance, metric), each [seeds, contexts, doses], and the contexts' photographs."""
    tables = []
    for wanted in ("distance", metric):
        rows = doses[(doses["method"] == arm) & (doses["metric"] == wanted)]
        tables.append(rows.pivot_table(index="run", columns=["photograph", "crop", "dose"], values="value", sort=True))
    names = list(dict.fromkeys(column[:2] for column in tables[0].columns))
    shaped = [table.to_numpy(float).reshape(len(table), len(names), len(DOSES)) for table in tables]
    return shaped[0], shaped[1], [str(photograph) for photograph, _ in names]


def _interpolated(distance: Floats, value: Floats, target: Floats) -> Floats:
    """The value [seeds, contexts] where a path [seeds, contexts, doses] is as far as `target` [contexts]."""
    found = np.empty(distance.shape[:2])
    for seed, row in enumerate(distance):
        for i, path in enumerate(row):
            rising = np.maximum.accumulate(path)  # interpolation wants them in order
            found[seed, i] = np.interp(target[i], rising, value[seed, i])
    return found


# What it costs to reach a level


def _cost(results: Results, contrast: Contrast, margin: float) -> Finding:
    """The ratio of what both spend until the held-out metric has risen by a share of the gain of `over`."""
    curves = {arm: _curves(results.curves, arm, contrast.metric, contrast.unit) for arm in contrast.arms}
    slow, fast = contrast.arms
    starts, ends = zip(*((y[0], y[-1]) for _, y in curves[fast]), strict=True)
    wanted = float(np.mean(starts) + contrast.to * (np.mean(ends) - np.mean(starts)))
    spent = {arm: np.array([cost_to_reach(x, y, wanted) for x, y in own]) for arm, own in curves.items()}
    reached = ", ".join(f"{arm} {int(np.isfinite(c).sum())} of {len(c)}" for arm, c in spent.items())
    why = f"seeds that reached it: {reached}"
    if np.mean(ends) <= np.mean(starts) or not all(
        np.isfinite(costs).all() and (costs > 0).all() for costs in spent.values()
    ):
        return Finding(contrast, margin, _NOTHING, Verdict("inconclusive"), why=f"no ratio; {why}")
    ratio = ratio_interval(spent[slow], spent[fast])
    logarithm = replace(ratio, value=float(np.log(ratio.value)))
    verdict = judge(logarithm, contrast.expect, margin, float(np.log(contrast.line)))
    return Finding(contrast, margin, ratio, verdict, why=why)


def _curves(frame: pd.DataFrame, arm: str, metric: str, unit: str) -> list[tuple[Floats, Floats]]:
    rows = frame[(frame["method"] == arm) & (frame["metric"] == metric)] if len(frame) else frame
    found = []
    for _, own in rows.groupby("run"):
        points = own.groupby("iteration").agg({unit: "first", "value": "mean"}).dropna()
        if len(points) > 1:
            found.append((points[unit].to_numpy(float), points["value"].to_numpy(float)))
    return found
