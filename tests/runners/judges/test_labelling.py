"""Labels in stages: what is asked, what the answers come to, and that nobody is asked twice."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from srgym.errors import Refusal
from srgym.files import to_png
from srgym.rewards.compass.labels import bradley_terry, calibrate, calibrate_groups, ranks, tie_margins, win_rates
from srgym.runners.judges import labelling
from srgym.runners.judges.annotators import LR, Compact, Scored, Served, Statistics, View, make_annotator
from srgym.runners.judges.answers import AnswerLog, answer_key
from srgym.runners.judges.judge_set import JudgeSet, NewCandidate, NewInput
from srgym.runners.judges.labelling import LabelSettings, Unanswered, annotate, label
from srgym.runners.judges.review import apply_review, review_rows, write_review
from srgym.runners.judges.sheets import Sheet
from srgym.runners.judges.stages import label_set


class Ranked:
    """An annotator that sees how bright a candidate is: brighter is better. Counts what it was asked."""

    name, repeats = "ranked", True
    asks = {"anchor": "how bright?", "compare": "which is brighter?", "describe": "say"}  # noqa: RUF012

    def __init__(self, bias: float = 0.0):
        self.bias, self.asked, self.silent = bias, [], False

    def rate(self, view, places, sample):
        self.asked += [("rate", place, sample) for place in places]
        return [1 + 4 * float(view.image(place).mean()) for place in places]

    def compare(self, view, pairs):
        self.asked += [("compare", *pair) for pair in pairs]
        if self.silent:
            return [None for _ in pairs]
        gaps = [float(view.sr[a].mean() - view.sr[b].mean()) + self.bias for a, b in pairs]
        return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]

    def describe(self, view, places):
        return [{"text": "grey", "verdict": 3.0} for _ in places]


@pytest.fixture
def made(tmp_path):
    """Two inputs, one of them real, each with candidates of four brightnesses in no order."""
    own = JudgeSet.create(tmp_path / "set", {}, dict.fromkeys("abcd", "1"))
    g = torch.Generator().manual_seed(0)
    lr = [torch.rand(3, 8, 8, generator=g) for _ in range(2)]
    hr = torch.rand(3, 32, 32, generator=g)
    own.add_inputs("0", [
        NewInput("first", "train", "synthetic", to_png(lr[0]), to_png(hr)),
        NewInput("second", "train", "real", to_png(lr[1])),
    ])  # fmt: skip
    bright = {"a": 0.5, "b": 0.2, "c": 0.8, "d": 0.35}
    own.add_candidates("0", [
        NewCandidate(name, method, "1", 0, to_png(torch.full((3, 32, 32), bright[method] + 0.02 * i)))
        for i, name in enumerate(("first", "second")) for method in bright
    ])  # fmt: skip
    return own


@pytest.fixture
def ranked(monkeypatch):
    own = Ranked()
    monkeypatch.setattr(labelling, "make_annotator", lambda spec: own if spec == "ranked" else make_annotator(spec))
    return own


def settings(**options) -> LabelSettings:
    return LabelSettings(annotator=dict.fromkeys(("anchor", "compare", "describe"), "ranked"), **options)


def test_every_pair_is_asked_in_both_orders_and_every_image_as_often_as_said(made, ranked):
    annotate(made, "anchor", settings(samples=3))
    assert sorted(ranked.asked) == sorted(
        ("rate", place, k) for place in (LR, 0, 1, 2, 3) for k in range(3) for _ in "12"
    )
    ranked.asked.clear()
    annotate(made, "compare", settings())
    assert sorted(ranked.asked) == sorted(("compare", a, b) for a in range(4) for b in range(4) if a != b for _ in "12")


def test_labels_rank_as_the_comparisons_do_on_the_anchors_scale(made, ranked):
    label_set(made, settings(), ("anchor", "compare", "calibrate"))
    labels = pd.read_parquet(made.folder / "labels.parquet")
    one = labels[labels["group"] == "first"].set_index("method")
    assert one["rank"].to_dict() == pytest.approx({"b": 0.0, "d": 1 / 3, "a": 2 / 3, "c": 1.0})
    bits = {name: round(255 * value) / 255 for name, value in {"a": 0.5, "b": 0.2, "c": 0.8, "d": 0.35}.items()}
    anchor = {name: 1 + 4 * value for name, value in bits.items()}
    assert one["anchor"].to_dict() == pytest.approx(anchor, abs=1e-6)
    line = stats.linregress([0, 1 / 3, 2 / 3, 1], [anchor[name] for name in "bdac"])  # OARS, eq. 3
    assert one["alpha"].iloc[0] == pytest.approx(line.slope) and one["beta"].iloc[0] == pytest.approx(line.intercept)
    assert one["quality"]["c"] == pytest.approx(line.slope + line.intercept)
    second = labels[labels["group"] == "second"]
    assert one["fidelity"].between(0, 1).all() and second["fidelity"].isna().all()  # nobody knows it of a real input


def test_who_prefers_a_position_is_averaged_out_by_both_orders(made, ranked):
    ranked.bias = 10.0  # always the first
    label_set(made, settings(), ("anchor", "compare", "calibrate"))
    labels = pd.read_parquet(made.folder / "labels.parquet")
    assert set(labels["flag"]) == {"tied"}


def test_nobody_is_asked_twice_and_a_torn_line_is_asked_again(made, ranked):
    annotate(made, "compare", settings())
    path = made.folder / "answers" / "compare.ranked.jsonl"
    whole = path.read_bytes()
    ranked.asked.clear()
    annotate(made, "compare", settings())
    assert not ranked.asked
    path.write_bytes(whole[:-5])
    annotate(made, "compare", settings())
    assert len(ranked.asked) == 1 and path.read_bytes() == whole


def test_other_questions_are_other_answers():
    keys = {
        answer_key(["x", "y"], "p", "who"), answer_key(["y", "x"], "p", "who"), answer_key(["x", "y"], "q", "who"),
        answer_key(["x", "y"], "p", "other"), answer_key(["x", "y"], "p", "who", "order"),
        answer_key(["x", "y"], "p", "who", "", 1),
    }  # fmt: skip
    assert len(keys) == 6


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "1", "answer": 2}\n{"answer": 2}\n')
    with pytest.raises(Refusal, match=r"a\.jsonl, line 2: expected an answer"):
        AnswerLog(tmp_path / "a.jsonl")


def test_a_stage_before_its_time_says_what_is_missing(made, ranked):
    with pytest.raises(Unanswered, match="2 of 2 groups lack ratings: run the stage anchor"):
        label(made, settings())
    annotate(made, "anchor", settings())
    ranked.silent = True
    assert annotate(made, "compare", settings()) == (0, 24)
    with pytest.raises(Unanswered, match="2 of 2 groups have candidates that nobody compared"):
        label(made, settings())


def test_kinds_may_have_annotators_of_their_own(made):
    spec = {"synthetic": "gt", "real": "compact"}
    pytest.importorskip("ssimulacra2")
    annotate(made, "anchor", LabelSettings(annotator={"anchor": spec, "compare": spec, "describe": "statistics"}))
    names = sorted(path.name for path in (made.folder / "answers").iterdir())
    assert names == ["anchor.compact.jsonl", "anchor.gt.jsonl"]
    groups = {json.loads(line)["group"] for line in (made.folder / "answers" / "anchor.gt.jsonl").open()}
    assert groups == {"first"}
    only = {"synthetic": "gt"}
    with pytest.raises(Refusal, match="the set has real inputs, and annotator.anchor names nobody for them"):
        annotate(made, "anchor", LabelSettings(annotator={"anchor": only, "compare": only, "describe": "statistics"}))


# The mathematics


def test_bradley_terry_orders_incomplete_comparisons_and_bears_a_total_order():
    pytest.importorskip("choix")
    n = 6
    outcome = torch.full((n, n), torch.nan, dtype=torch.float64)
    for i in range(n - 1):  # each beats the next alone
        outcome[i, i + 1], outcome[i + 1, i] = 1.0, 0.0
    strength = bradley_terry(outcome)
    assert torch.equal(strength.argsort(descending=True), torch.arange(n)) and strength.isfinite().all()
    r = ranks(outcome.fill_diagonal_(0.5))
    assert float(r[0]) == 1.0 and float(r[-1]) == 0.0


def test_complete_comparisons_are_ranked_by_win_rates():
    g = torch.Generator().manual_seed(1)
    outcome = (torch.rand(5, 5, generator=g) > 0.5).double()
    rate = win_rates(outcome)
    expected = (rate - rate.min()) / (rate.max() - rate.min())
    assert torch.allclose(ranks(outcome), expected)


def test_one_candidate_and_all_tied_have_the_anchors_mean():
    alone = calibrate(torch.tensor([0.5]).double(), torch.tensor([3.2]).double())
    tied = calibrate(torch.full((3,), 0.5).double(), torch.tensor([2.0, 3.0, 4.0]).double())
    assert (
        alone.flag == tied.flag == "tied"
        and float(alone.score) == pytest.approx(3.2)
        and tied.score.tolist() == [3.0, 3.0, 3.0]
    )


def test_a_group_whose_ranking_the_anchor_contradicts_takes_the_median_slope_or_goes():
    r = torch.tensor([0.0, 0.5, 1.0]).double()
    good = [(r, torch.tensor([2.0, 3.0, 4.0]).double())] * 9
    bad = (r, torch.tensor([4.0, 3.0, 2.0]).double())
    fitted = calibrate_groups([*good, bad])
    assert fitted[-1].flag == "inverted" and fitted[-1].slope == 2.0 and fitted[-1].score.tolist() == [2.0, 3.0, 4.0]
    assert calibrate_groups([*good, bad], "drop")[-1] is None
    with pytest.raises(Refusal, match="in 2 of 11 groups the anchor rates worse"):
        calibrate_groups([*good, bad, bad])


def test_ranks_that_the_end_of_the_scale_merges_are_flagged():
    r, anchor = [0.0, 0.3, 0.5, 0.9, 1.0], [1.0, 5.0, 5.0, 5.0, 5.0]
    line = stats.linregress(r, anchor)
    assert line.slope * 0.9 + line.intercept > 5  # two of them lie above the scale
    made = calibrate(torch.tensor(r).double(), torch.tensor(anchor).double())
    assert made.flag == "clamped" and made.score[-1] == made.score[-2] == 5.0 > made.score[-3]


def test_ties_are_by_the_gaps_of_ones_like():
    """Samples of one policy lie a hundredth as far apart as methods do: both orders are kept, and near twins tie."""
    score = torch.tensor([0.0, 1.0, 2.0, 2.01, 2.02, 2.0201])
    families = torch.tensor([0, 1, 2, 2, 2, 2])
    margin = tie_margins(score, families, 0.1)
    tied = (score[:, None] - score[None, :]).abs() <= margin
    assert tied[4, 5] and not tied[2, 3] and not tied[3, 4] and not tied[0, 1]
    fixed = (score[:, None] - score[None, :]).abs() <= 0.1  # one margin: every pair of the policy's
    assert fixed[2:, 2:].all()


# Who answers


@pytest.fixture
def view():
    g = torch.Generator().manual_seed(0)
    hr = torch.rand(3, 64, 64, generator=g)
    lr = torch.nn.functional.avg_pool2d(hr[None], 4)[0]
    sr = torch.stack([hr, (hr + 0.2 * torch.rand(3, 64, 64, generator=g)).clamp(0, 1)])
    return View(lr, sr, hr, torch.tensor([0, 1]))


def _endless(sr):
    return sr.mean((1, 2, 3))


def test_a_reward_rates_on_the_anchors_scale_and_compares(view):
    judge = Scored("ssim_y", range=[0.0, 1.0])
    truth, noisy = judge.rate(view, [0, 1], 0)
    assert truth == pytest.approx(5.0) and 1 <= noisy < truth
    assert judge.compare(view, [(0, 1), (1, 0)]) == [1.0, 0.0]
    with pytest.raises(Refusal, match=r"annotator '_endless'.*say which scores are 1 and 5 with range="):
        Scored(_endless)


def test_the_compact_scorer_sees_no_truth_and_rates_the_input(view):
    judge = Compact()
    blind = View(view.lr, view.sr, None, view.families)
    assert judge.rate(blind, [LR, 0, 1], 0) == judge.rate(view, [LR, 0, 1], 0)
    assert all(1 <= value <= 5 for value in judge.rate(blind, [LR, 0, 1], 0))


def test_measurements_say_what_they_see(view):
    blurred, sharp = (
        view.large,
        (view.large + 3 * (view.large - torch.nn.functional.avg_pool2d(view.large[None], 5, 1, 2)[0])),
    )
    seen = View(view.lr, torch.stack([blurred, sharp.clamp(0, 1)]), None, view.families)
    same, sharper = Statistics().describe(seen, [0, 1])
    assert "about as sharp as" in same["text"] and same["verdict"] == 3.0
    assert "sharper than" in sharper["text"]


class Engine:
    """Answers as it is told."""

    def __init__(self, text):
        self.text, self.questions = text, []

    def ask(self, questions, read):
        from srgym.rewards.serving.question import BadAnswer, Reply

        self.questions += questions
        answers = []
        for _ in questions:
            try:
                answers.append(read(Reply(self.text)))
            except BadAnswer:
                answers.append(None)
        return answers


def test_a_served_model_is_read_strictly(view):
    assert Served(Engine('{"quality": 3.25}')).rate(view, [LR, 0], 0) == [3.25, 3.25]
    assert Served(Engine("about 3")).rate(view, [0], 0) == [None]
    assert Served(Engine("2")).compare(view, [(0, 1)]) == [0.0]
    assert Served(Engine("both")).compare(view, [(0, 1)]) == [None]
    said = '{"text": "Noise  is gone.", "verdict": 4}'
    assert Served(Engine(said)).describe(view, [0]) == [{"text": "Noise is gone.", "verdict": 4.0}]
    assert Served(Engine('{"text": "", "verdict": 4}')).describe(view, [0]) == [None]


def test_a_served_model_is_shown_the_input_and_both_in_order(view):
    engine = Engine("1")
    Served(engine).compare(view, [(0, 1), (1, 0)])
    one, other = engine.questions
    assert one.images[0] == other.images[0] == to_png(view.large, compress_level=1)
    assert one.images[1:] == other.images[:0:-1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody", "unknown annotator 'nobody': expected one of served, compact, gt"),
        ({"annotator": "served", "engin": "x"}, "annotator 'served'.*engin"),
        ("reward:ssim", "ssim"),
    ],
)
def test_a_wrong_annotator_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_annotator(spec)


# People


def fill(folder, answer):
    path = folder / "sheet.csv"
    rows = list(csv.reader(path.open()))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([row[0], answer(int(row[0]))] for row in rows[1:])])


def test_people_get_a_blind_sheet_and_their_answers_count_in_both_orders(made):
    spec = {"annotator": "human", "repeated": 0.5}
    own = LabelSettings(annotator={"anchor": spec, "compare": spec, "describe": "statistics"})
    assert annotate(made, "compare", own) == (0, 24)
    folder = made.folder / "sheets" / "compare"
    key = json.loads((folder / "key.json").read_text())["items"]
    assert len(key) == 12 + 6  # each pair of six once, half of them twice
    assert "abcd" not in "".join(path.name for path in folder.iterdir())

    def brighter(number):
        from PIL import Image

        first, second = (np.asarray(Image.open(folder / f"{number:05}_{i}.png")).mean() for i in (1, 2))
        return "1" if first > second else "2"

    fill(folder, brighter)
    assert annotate(made, "compare", own) == (24, 0)
    assert Sheet(folder).agreement() == (6, 6)
    answers = [json.loads(line) for line in (made.folder / "answers" / "compare.human.jsonl").open()]
    bright = {"a#0": 0.5, "b#0": 0.2, "c#0": 0.8, "d#0": 0.35}
    assert all(own["answer"] == float(bright[own["shown"][0]] > bright[own["shown"][1]]) for own in answers)


def test_an_answer_that_is_none_is_named(made):
    own = LabelSettings(annotator={"anchor": "human", "compare": "human", "describe": "statistics"})
    annotate(made, "anchor", own)
    fill(made.folder / "sheets" / "anchor", lambda number: "7" if number == 2 else "3")
    with pytest.raises(Refusal, match=r"item 00002: expected 1 \(bad\) to 5 \(excellent\), got '7'"):
        annotate(made, "anchor", own)


# Review


@pytest.fixture
def labels():
    count = 40
    return pd.DataFrame({
        "group": [f"g{i // 4}" for i in range(count)], "method": [f"m{i % 4}" for i in range(count)],
        "sample": 0, "quality": np.linspace(1, 5, count), "verdict": [math.nan] * (count - 1) + [1.0], "kept": True,
    })  # fmt: skip


def test_both_ends_and_conflicts_are_looked_at(labels):
    rows = review_rows(labels, 0.05, 1.5)
    assert list(rows.index) == [0, 1, 38, 39]
    assert rows["why"].tolist() == ["lowest scores"] * 2 + [
        "highest scores",
        "highest scores; the description says otherwise",
    ]


def test_decisions_survive_and_dropping_is_for_good(labels, tmp_path):
    path = tmp_path / "review.csv"
    write_review(path, review_rows(labels, 0.05, 1.5))
    text = path.read_text().splitlines()
    text[1] = text[1].rsplit(",", 2)[0] + ",drop,blurred"
    path.write_text("\n".join(text) + "\n")
    write_review(path, review_rows(labels, 0.05, 1.5))
    assert path.read_text().splitlines()[1].endswith(",drop,blurred")
    assert apply_review(path, labels)["kept"].tolist() == [False] + [True] * 39
    path.write_text(path.read_text().replace(",drop,", ",dorp,"))
    with pytest.raises(Refusal, match="line 2: expected keep, drop or nothing as a decision, got 'dorp'"):
        apply_review(path, labels)


def test_who_needs_the_truth_is_refused_for_real_inputs_before_anybody_is_asked(made):
    who = LabelSettings(annotator={"anchor": {"annotator": "reward:psnr_y", "range": [10, 40]}, "compare": "compact",
                                   "describe": "statistics"})  # fmt: skip
    with pytest.raises(
        Refusal, match="annotator.anchor: 'psnr_y' compares with the truth, which the set's real inputs"
    ):
        annotate(made, "anchor", who)
    assert not any((made.folder / "answers").glob("*.jsonl"))
