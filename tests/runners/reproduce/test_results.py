"""What contrasts come to, from synthetic cells: equal distance, wobble, costs, and what is said of what didn't run."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from srgym.runners.report.markdown import to_markdown
from srgym.runners.reproduce.agreement import advantages
from srgym.runners.reproduce.claims import Claim, Contrast
from srgym.runners.reproduce.page import page
from srgym.runners.reproduce.plan import DOSES, Plan
from srgym.runners.reproduce.results import Results, can_tell, conclude, wobble
from srgym.runners.run.overrides import defaults

PHOTOGRAPHS, SEEDS = 8, 4


def test_advantages_agree_as_numpy_says():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(5, 16))
    b = 0.7 * a + generator.normal(size=(5, 16))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    found = advantages(torch.tensor(a), torch.tensor(b))
    assert np.allclose(found, expected, atol=1e-12)
    # What training sees of a score isn't its scale nor its place.
    assert torch.allclose(advantages(torch.tensor(a), 3 * torch.tensor(a) - 5), torch.ones(5, dtype=torch.float64))
    flat = torch.zeros(1, 16)
    assert advantages(flat, torch.tensor(b[:1])).isnan().all()


def test_a_straight_rise_has_no_wobble_and_a_zigzag_has():
    assert wobble(np.linspace(0, 3, 9)) == pytest.approx(0, abs=1e-15)
    # Inner points of 0, 2, 1, 3 lie 1.5 off the line between their neighbours, each; the gain is 3.
    assert wobble(np.array([0.0, 2.0, 1.0, 3.0])) == pytest.approx(0.5)
    assert np.isnan(wobble(np.array([1.0, 2.0])))
    assert np.isnan(wobble(np.array([1.0, 2.0, 1.0])))


def rows(arm: str, metric: str, value, seeds: int = SEEDS, **more) -> pd.DataFrame:
    """Rows of an arm; value(seed, photograph)."""
    made = [
        {"method": arm, "run": s, "photograph": f"p{i}", "crop": "0", "metric": metric, "value": value(s, i),
         "valid": True, "seed": 0, **more}
        for s in range(seeds) for i in range(PHOTOGRAPHS)
    ]  # fmt: skip
    return pd.DataFrame(made)


def noise(s: int, i: int) -> float:
    return 0.01 * float(np.random.default_rng(100 * s + i).normal())


def results(**parts) -> Results:
    empty = pd.DataFrame(columns=["method", "run", "dose", "photograph", "crop", "metric", "value", "valid"])
    frame = parts.get("frame", empty)
    return Results(frame, parts.get("doses", empty), parts.get("curves", empty), {}, parts.get("agreements", {}))


def planned(*contrasts: Contrast, **claim) -> Plan:
    settings = defaults("reproduce") | {"seeds": SEEDS, "many": SEEDS, "effort": 1.0, "limit": PHOTOGRAPHS}
    stated = Claim("tiny", "OARS", "a test", "It does", "It does.", contrasts, **claim)
    return Plan((), Path("out"), settings, (), [stated])


def only(plan: Plan, found: Results):
    verdict, (finding,) = conclude(plan, found)["tiny"]
    return verdict, finding


def test_at_equal_distance_a_longer_way_counts_no_more():
    """Both lose 1 dB a grey level; one goes 2 levels by the end of its training, the other 4. At equal steps one seems
    2 dB better; at equal distance neither is."""
    plan = planned(
        Contrast("near", "far", "psnr_y", "up", "near over far"),
        Contrast("near", "far", "psnr_y", "up", "near over far", at="distance", primary=False),
    )
    doses = pd.concat([
        own for arm, reach in (("near", 2.0), ("far", 4.0)) for weight in DOSES for own in (
            rows(arm, "distance", lambda s, i, x=reach * weight: x, dose=weight),
            rows(arm, "psnr_y", lambda s, i, x=reach * weight: 30 + i - x + noise(s, i), dose=weight),
        )
    ])  # fmt: skip
    frame = doses[(doses["dose"] == 1.0) & (doses["metric"] == "psnr_y")].drop(columns="dose")
    verdict, (steps, distance) = conclude(plan, results(frame=frame, doses=doses))["tiny"]
    assert verdict == "reproduced"
    assert steps.interval.value == pytest.approx(2, abs=0.02)
    assert distance.interval.value == pytest.approx(0, abs=0.02)
    assert distance.verdict.conclusion == "no effect of that size"
    assert distance.why == "at 2.00 grey levels; at the end they were at 2.00, 4.00"


def curve(arm: str, slope: float, seeds: int = SEEDS) -> pd.DataFrame:
    """A reward that rises by `slope` an iteration of 10 images."""
    return pd.concat([
        rows(arm, "compass", lambda s, i, n=n: slope * (1 + 0.01 * s) * n, seeds, iteration=n, images=10.0 * n,
             seconds=1.0 * n, flops=1.0 * n)
        for n in range(9)
    ])  # fmt: skip


def test_the_ratio_of_costs_stands_against_the_claimed_one():
    contrast = Contrast("slow", "fast", "compass", "up", "slow over fast", margin=0.0, at="cost", line=5.0, to=0.1)
    plan = planned(contrast)
    verdict, finding = only(plan, results(curves=pd.concat([curve("slow", 0.125), curve("fast", 1.0)])))
    assert verdict == "reproduced"
    assert finding.interval.value == pytest.approx(8, rel=0.02)
    verdict, finding = only(plan, results(curves=pd.concat([curve("slow", 0.5), curve("fast", 1.0)])))
    assert verdict == "contradicted"
    verdict, finding = only(plan, results(curves=pd.concat([curve("slow", 0.01), curve("fast", 1.0)])))
    assert verdict == "inconclusive"
    assert finding.why == "no ratio; seeds that reached it: slow 0 of 4, fast 4 of 4"


def test_what_did_not_run_is_named_and_never_judged():
    plan = planned(Contrast("there", "gone", "psnr_y", "up", "there over gone"))
    verdict, finding = only(plan, results(frame=rows("there", "psnr_y", noise)))
    assert (verdict, finding.missing) == ("not run", ("gone",))
    assert finding.verdict.conclusion == "inconclusive"


def test_an_arm_of_which_a_seed_is_still_to_come_is_not_judged():
    plan = replace(planned(Contrast("a", "b", "psnr_y", "up", "a over b")), arms={"a": {0: "x", 1: "y", 2: "z"}})
    both = pd.concat([rows("a", "psnr_y", lambda s, i: 31 + noise(s, i), 1), rows("b", "psnr_y", noise)])
    verdict, finding = only(plan, results(frame=both))
    assert (verdict, finding.missing) == ("not run", ("a",))


def test_an_inconclusive_contrast_says_what_would_tell():
    generator = np.random.default_rng(1)
    loud = pd.concat([rows("loud", "psnr_y", lambda s, i: generator.normal()), rows("still", "psnr_y", noise)])
    verdict, finding = only(planned(Contrast("loud", "still", "psnr_y", "up", "loud over still")), results(frame=loud))
    assert verdict == "inconclusive"
    told = re.fullmatch(r"(\d+) photographs and (\d+) seeds would tell the margin", finding.why)
    photographs, seeds = map(int, told.groups())
    assert photographs in (2 * seeds - 1, 2 * seeds)  # as many of each as there are now, times the same
    # All that varies is drawn anew for each pair of them. If that were known, an error of the margin over 2.8 would do:
    # so many pairs at least; that spread is known from few doesn't take many times as many.
    assert (2.8 / 0.2) ** 2 < photographs * seeds < 4 * (2.8 / 0.2) ** 2


def test_rewards_whose_advantages_agree_are_not_testable():
    plan = planned(testable={"a": "psnr_y", "b": "psnr_y"})
    found = results(agreements={"tiny": {("b", "a"): 0.9998}})
    assert conclude(plan, found)["tiny"][0] == "not testable here"
    assert can_tell(plan, found, plan.claims[0]) is False
    assert can_tell(plan, results(agreements={"tiny": {("b", "a"): 0.95}}), plan.claims[0]) is True


def test_a_contrast_that_training_cannot_tell_is_left_out_of_the_verdict():
    plan = planned(Contrast("a", "b", "psnr_y", "up", "a over b"), Contrast("a", "c", "psnr_y", "up", "a over c"))
    frame = pd.concat([rows("a", "psnr_y", lambda s, i: 31 + noise(s, i)), rows("b", "psnr_y", noise),
                       rows("c", "psnr_y", noise)])  # fmt: skip
    found = results(frame=frame, agreements={"tiny": {("b", "a"): 0.9998, ("c", "a"): 0.5}})
    verdict, (first, second) = conclude(plan, found)["tiny"]
    assert verdict == "reproduced"
    assert (first.ran, first.alike, second.ran, second.alike) == (False, 0.9998, True, None)
    text, _ = to_markdown(page(plan, found, {}), "files")
    assert "| not testable here | the advantages of their rewards correlate by 0.9998 |" in text
    both = results(frame=frame, agreements={"tiny": {("b", "a"): 0.9998, ("a", "c"): 0.991}})
    assert conclude(plan, both)["tiny"][0] == "not testable here"


def test_the_page_has_a_row_for_every_claim_and_what_it_cannot_say():
    plan = planned(Contrast("up", "down", "psnr_y", "up", says="it rises"), note="Of toys alone.")
    frame = pd.concat([rows("up", "psnr_y", lambda s, i: 31 + noise(s, i)), rows("down", "psnr_y", noise)])
    text, pictures = to_markdown(page(plan, results(frame=frame), {}), "files")
    (row,) = [line for line in text.splitlines() if line.startswith("| OARS, a test |")]
    assert "| **reproduced** |" in row and "it rises (psnr_y) +31.0" in row and "`srgym reproduce claim=tiny`" in row
    assert "Of toys alone." in text and "What a miniature can't say" in text
    assert "files/all_primary_contrasts.png" in pictures
