"""Win rates, strengths and agreement against closed forms, a likelihood, and studies whose truth is known."""

import hashlib
import itertools
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from srgym.envs.preferences import Preferences
from srgym.errors import Refusal
from srgym.files import to_png
from srgym.runners.arena import judges
from srgym.runners.arena.analysis import Ballots, bradley_terry, read_ballots
from srgym.runners.arena.export import export_annotations, export_pairs
from srgym.runners.arena.plan import plan_text, spreads, vote_components
from srgym.runners.arena.report import write_arena_report
from srgym.runners.measure.statistics import detection_power


def ballots(votes, raters, photographs, methods=("a", "b"), crops=None):
    names = [f"p{i}" for i in range(photographs)]
    crops = crops or dict.fromkeys(names, 1)
    return Ballots(methods, names, raters, votes, {}, {}, names, crops)


def vote(rater, photograph, choice, shown=("a", "b"), kind="vote"):
    return {"rater": rater, "id": f"p{photograph}/0", "kind": kind, "shown": list(shown), "choice": choice}


def test_strengths_are_the_likelihoods_maximum():
    """The likelihood as it is printed (Hunter 2004, eq. 2), with half a win each way, climbed by scipy."""
    wins = np.array([[0, 7, 3, 9], [2, 0, 4, 5], [6, 1, 0, 8], [0, 0, 1, 0]], dtype=np.float64)
    padded = wins + 0.5 * (1 - np.eye(4))

    def loss(x):
        pairs = itertools.permutations(range(4), 2)
        return -sum(padded[i, j] * (x[i] - np.logaddexp(x[i], x[j])) for i, j in pairs)

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    assert bradley_terry(wins[None])[0] == pytest.approx(best - best.mean(), abs=1e-5)


def test_two_methods_strengths_are_their_log_odds_and_who_never_lost_has_one():
    assert np.diff(bradley_terry(np.array([[[0, 12.0], [4, 0]]]))[0])[0] == pytest.approx(-np.log(12.5 / 4.5))
    assert np.isfinite(bradley_terry(np.array([[[0, 12.0], [0, 0]]]))).all()


def test_win_rates_strengths_and_shares_of_a_study_that_can_be_counted():
    votes = [vote("r", 0, "a"), vote("r", 1, "b"), vote("s", 0, "a", ("b", "a")), vote("s", 1, None)]
    own = ballots(votes, ["r", "s"], 2)
    assert own.win_rates()["a", "b"].value == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert own.chosen()["b"].value == pytest.approx(0.375)
    assert own.strengths()["a"].value == pytest.approx(np.log((2.5 + 0.5) / (1.5 + 0.5)) / 2, abs=1e-6)
    assert own.first_place().value == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    # Photograph 0: the same; photograph 1: b and a tie, of which a coin makes the same in half of the cases.
    assert own.among_raters().value == pytest.approx(0.75)
    assert np.isnan(own.win_rates()["a", "b"].low)  # two raters


def test_the_best_of_three_beats_both_others_and_a_tie_is_shared_out():
    three = ("a", "b", "c")
    own = ballots([vote("r", 0, "a", three), vote("r", 1, None, three)], ["r"], 2, three)
    assert own.wins[0, 0] == pytest.approx(np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]]))
    assert own.wins[0, 1] == pytest.approx((1 - np.eye(3)) / 3)
    assert own.chosen()["a"].value == pytest.approx((1 + 1 / 3) / 2)


def test_a_photograph_with_more_crops_counts_no_more():
    votes = [vote("r", 0, "a"), {**vote("r", 0, "a"), "id": "p0/1"}, vote("r", 1, "b")]
    assert ballots(votes, ["r"], 2, crops={"p0": 2, "p1": 1}).win_rates()["a", "b"].value == pytest.approx(0.5)


def test_raters_with_themselves():
    votes = [
        vote("r", 0, "a"),
        vote("r", 1, "a"),
        vote("r", 0, "a", ("b", "a"), "repeat"),
        vote("r", 1, "b", kind="repeat"),
    ]
    assert ballots(votes, ["r"], 2).with_themselves().value == pytest.approx(0.5)
    assert np.isnan(ballots(votes[:2], ["r"], 2).with_themselves().value)


def test_judges_agree_as_often_as_they_choose_what_raters_chose():
    votes = [vote("r", 0, "a"), vote("r", 1, "b"), vote("s", 0, "a"), vote("s", 1, None)]
    scores = {"all a": {f"p{i}/0": {"a": 1.0, "b": 0.0} for i in range(2)},
              "even": {f"p{i}/0": {"a": 1.0, "b": 1.0} for i in range(2)},
              "first alone": {"p0/0": {"a": 1.0, "b": 0.0}, "p1/0": {"a": np.nan, "b": 0.0}}}  # fmt: skip
    agreed = ballots(votes, ["r", "s"], 2).with_judges(scores)
    assert [agreed[name].value for name in scores] == pytest.approx([2.5 / 4, 0.5, 1.0])


def _study(chance, photographs, raters, photograph_sd, rater_sd):
    """Votes [raters, photographs] between two methods that are equally good."""
    logit = chance.normal(0, photograph_sd, photographs) + chance.normal(0, rater_sd, (raters, 1))
    return (chance.random((raters, photographs)) < 1 / (1 + np.exp(-logit))).astype(np.float64)


def test_intervals_over_raters_and_photographs_hold_where_the_binomial_calls_equal_methods_different():
    """12 photographs, 27 raters as in OARS's user study; photographs differ (0.8 in log-odds), and raters (0.5)."""
    chance, own = np.random.default_rng(0), ballots([], [f"r{i}" for i in range(27)], 12)
    ours, binomial = [], []
    for _ in range(150):
        won = _study(chance, 12, 27, 0.8, 0.5)
        (rate,) = own.ratios(won[:, :, None], np.ones((27, 12, 1)), 0.5)
        ours.append(rate.low > 0.5 or rate.high < 0.5)
        binomial.append(abs(won.mean() - 0.5) > 1.96 * np.sqrt(won.mean() * (1 - won.mean()) / won.size))
    assert np.mean(ours) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)
    assert np.mean(binomial) > 0.25


def test_strengths_cover_their_truth():
    """Log-strengths (.5, 0, -.5), photographs and raters with tastes of their own, 10 photographs and 8 raters."""
    chance, truth, methods = np.random.default_rng(1), np.array([0.4, 0.0, -0.4]), ("a", "b", "c")
    inside = []
    for _ in range(40):
        taste = truth + chance.normal(0, 0.3, (1, 10, 3)) + chance.normal(0, 0.2, (8, 1, 3))
        votes = []
        for r, p, (i, j) in itertools.product(range(8), range(10), itertools.combinations(range(3), 2)):
            first = chance.random() < 1 / (1 + np.exp(taste[r, p, j] - taste[r, p, i]))
            votes.append(vote(f"r{r}", p, methods[i if first else j], (methods[i], methods[j])))
        found = ballots(votes, [f"r{r}" for r in range(8)], 10, methods).strengths()
        inside += [found[name].low <= value <= found[name].high for name, value in zip(methods, truth, strict=True)]
    assert np.mean(inside) > 0.9


def test_a_plans_power_is_what_simulated_studies_have():
    """Components of logit-normal tastes by 400,000 draws; 200 studies of 12 photographs and 10 raters."""
    chance, own = np.random.default_rng(2), ballots([], [f"r{i}" for i in range(10)], 12)

    def shares(size, photograph, rater):
        return 1 / (1 + np.exp(-(0.9 + photograph * 0.5 + rater * 0.3)))

    p, r = chance.normal(size=(2, 2000, 1)), chance.normal(size=(2, 1, 2000))
    grid = shares(None, p[0], r[0])
    components = vote_components(grid.mean(), grid.mean(1).std(), grid.mean(0).std())
    shown = []
    for _ in range(200):
        won = chance.random((10, 12)) < shares(None, chance.normal(size=12), chance.normal(size=(10, 1)))
        (rate,) = own.ratios(won[:, :, None].astype(float), np.ones((10, 12, 1)), 0.5)
        shown.append(rate.low > 0.5)
    # 3 standard errors of 200 studies, and the noncentral t is an approximation.
    assert detection_power(grid.mean() - 0.5, components, 10, 12) == pytest.approx(np.mean(shown), abs=0.12)


def test_a_pilots_spreads_are_recovered():
    chance = np.random.default_rng(3)
    share = 0.6 + chance.normal(0, 0.15, 200) + chance.normal(0, 0.08, (60, 1))
    won = (chance.random((60, 200)) < share).astype(float)
    votes = [vote(f"r{r}", p, "a" if won[r, p] else "b") for r in range(60) for p in range(200)]
    photograph, rater = spreads(ballots(votes, [f"r{r}" for r in range(60)], 200))
    assert photograph == pytest.approx(0.15, abs=0.03) and rater == pytest.approx(0.08, abs=0.02)


def test_the_plan_says_what_cannot_be_shown():
    text = plan_text(0.6, [2, 3, 30], [1, 12, 48], 0.17, 0.1, 0.8, None)
    assert "3 raters: more than 1000 photographs" in text and "2 raters:" not in text
    assert "30 raters: 47 photographs" in text
    with pytest.raises(Refusal, match="share=0.5 is no difference"):
        plan_text(0.5, [3], [12], 0.17, 0.1, 0.8, None)
    with pytest.raises(Refusal, match="less than share"):
        plan_text(0.9, [3], [12], 0.3, 0.1, 0.8, None)


# From a study's files


@pytest.fixture
def voted(make):
    """Two photographs, three raters who prefer "ours", and one who fails the checks and prefers "bicubic"."""
    study = make(photographs=2, methods=2, repeats=0, checks=2)
    rows = []
    for rater, choice, check in (
        ("r", "ours", "intact"),
        ("s", "ours", "intact"),
        ("t", "theirs", "intact"),
        ("u", "theirs", "blocks_1"),
    ):
        rows += [{**vote(rater, 0, check, ("intact", "blocks_1"), "check"), "id": name} for name in study.contexts]
        rows += [{**vote(rater, 0, choice, ("ours", "theirs")), "id": name, "seconds": 2.0} for name in study.contexts]
    (study.folder / "votes.jsonl").write_text("".join(json.dumps({"seconds": 1.0, **row}) + "\n" for row in rows))
    return study


def test_who_fails_the_checks_is_left_out(voted):
    own = read_ballots(voted)
    assert own.raters == ["r", "s", "t"] and own.passed == {"r": 1.0, "s": 1.0, "t": 1.0, "u": 0.0}
    assert own.win_rates()["ours", "theirs"].value == pytest.approx(2 / 3)
    assert read_ballots(voted, everyone=True).win_rates()["ours", "theirs"].value == pytest.approx(1 / 2)


def test_pairs_are_what_most_prefer_and_are_read_back_as_preferences(voted, tmp_path):
    assert "2 pairs" in export_pairs(voted, tmp_path / "pairs")
    found = Preferences(tmp_path / "pairs")
    assert len(found) == 2 and found.scale == 2
    pair = found.pair(1)
    assert pair.id == "photo1/0" and pair.gap == pytest.approx((2 - 1) / 3)
    for image, name in ((pair.lr, "lr"), (pair.win, "ours"), (pair.lose, "theirs")):
        assert to_png(image) == voted.image(name, 1).read_bytes()
    with pytest.raises(Refusal, match=r"one leads by 0\.5 or more, got none"):
        export_pairs(voted, tmp_path / "more", margin=0.5)
    assert not (tmp_path / "more").exists()


def test_annotations_name_images_by_their_hashes_and_leave_out_who_is_not_counted(voted, tmp_path):
    export_annotations(voted, tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["rater"] for row in rows] == ["r", "r", "s", "s", "t", "t"]
    expected = hashlib.sha256(voted.image("theirs", 1).read_bytes()).hexdigest()
    assert rows[1]["images"]["theirs"] == expected and list(rows[1]["images"]) == ["ours", "theirs"]


def test_the_report_says_who_is_preferred_which_judges_agree_and_where_they_do_not(voted):
    page = write_arena_report(voted, ["psnr_y", {"name": "random", "label": "dice"}])
    text = page.with_suffix(".md").read_text()
    assert "1 of 4 raters answered fewer than 75% of their attention checks rightly" in text
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["win_rates"][0]["value"] == pytest.approx(2 / 3)
    assert numbers["judges"]["psnr_y"]["value"] == pytest.approx(2 / 3)  # which scores "ours" highest everywhere
    assert numbers["checks"]["u"] == 0 and "u" not in numbers["raters"]
    assert "| ours over theirs | 0.7 [0.0, 1.0] |" in text  # three raters say little


def test_the_report_tells_why_a_judge_is_missing_and_shows_where_people_are_alone(voted, monkeypatch):
    known = [row for row in judges.listing() if row["name"] in ("psnr_y", "ssim_y", "ms_ssim", "random")]
    monkeypatch.setattr(judges, "listing", lambda: known)
    rows = [json.loads(line) for line in (voted.folder / "votes.jsonl").read_text().splitlines()]
    turned = [{**row, "choice": "theirs"} if row["choice"] == "ours" else row for row in rows]
    (voted.folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    text = write_arena_report(voted).with_suffix(".md").read_text()
    assert "5 scales need images of at least 176 pixels a side" in text and "random" not in text
    assert "| photo0/0: theirs or ours | 100% prefer theirs |" in text
    assert (voted.folder / "report_files" / "panel_photo0_0_theirs_or_ours.png").is_file()


def test_a_study_without_votes_has_no_report(make):
    with pytest.raises(Refusal, match="nobody has voted yet"):
        read_ballots(make())
