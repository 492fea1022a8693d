"""Measuring judges: answers are asked once, rewards stand in for judges, and the ablation is of the same answers."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from srgym.rewards import make, register_reward
from srgym.rewards.compass.formula import compass
from srgym.rewards.serving.question import Reply
from srgym.runners.judges.benchmark import original_best
from srgym.runners.judges.evaluate import evaluate
from srgym.runners.judges.rating import rate, rater_of, reward_rater, truths
from srgym.runners.judges.report import accuracy_table, write_evaluation
from srgym.runners.judges.sft import from_png


class Engine:
    """Answers each question as a function of it says, and counts."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    def ask(self, questions, read):
        self.asked += len(questions)
        return [read(self.answer(question)) for question in questions]


@pytest.fixture
def perfect(make_material):
    """A material, and a judge that knows its labels."""
    material = make_material(3, 4)
    known = {}
    for i, group in enumerate(material.groups):
        for j in range(4):
            known[from_png(material.pair(i, j)[1]).sum().item()] = (group.fidelity[j], group.q_lr, group.quality[j])

    def answer(question):
        f, q_lr, q_sr = known[from_png(question.images[1]).sum().item()]
        return Reply(f'{{"fidelity":{f},"q_lr":{q_lr},"q_sr":{q_sr}}}')

    return material, Engine(answer)


def test_a_judge_that_knows_the_labels_is_always_right(perfect, tmp_path):
    material, engine = perfect
    result = evaluate("judge", {"judge": rater_of("compass", engine)}, material, tmp_path, ablation=True)
    everything = result["accuracy"]["judge"]["All"]
    assert everything["accuracy"][0] == pytest.approx(1.0)
    assert everything["pairs"] == 3 * 6
    assert json.loads((tmp_path / "evaluation.json").read_text())["judge"] == "judge"
    # The labels' own COMPASS is the truth, and the ablation takes it apart on the same answers.
    rows = result["ablation"]
    assert rows["gamma 7"]["accuracy"]["All"]["accuracy"][0] == pytest.approx(1.0)
    right = []
    for group in material.groups:
        for a, b in itertools.combinations(range(4), 2):
            r = [float(compass(*map(torch.tensor, (group.fidelity[i], group.q_lr, group.quality[i])))) for i in (a, b)]
            right.append((r[0] > r[1]) == (group.quality[a] > group.quality[b]))
    assert rows["without fidelity"]["accuracy"]["All"]["accuracy"][0] == pytest.approx(sum(right) / 18)


def test_a_description_that_speaks_of_another_quality_than_the_score_is_counted(perfect, tmp_path):
    material, engine = perfect
    told = [
        replace(g, verdicts=(g.quality[0], g.quality[1] + 2, float("nan"), g.quality[3] - 0.5)) for g in material.groups
    ]
    said = type(material)(told, material.images, material.about)
    judge = {"judge": rater_of("compass", engine)}
    assert evaluate("judge", judge, said, tmp_path)["conflict"] == pytest.approx(1 / 3)
    assert evaluate("judge", judge, material, tmp_path)["conflict"] is None


def test_no_candidate_is_asked_about_twice_and_a_torn_line_is_dropped(perfect, tmp_path):
    material, engine = perfect
    path = tmp_path / "ratings.jsonl"
    whole = rate(rater_of("compass", engine), material, path)
    assert engine.asked == 12
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])
    again = rate(rater_of("compass", engine), material, path)
    assert engine.asked == 12 + 8
    assert again == whole
    assert path.read_text() == "".join(lines)
    fewer = type(material)(material.groups[:1], material.images, material.about)
    path.write_text(lines[0].replace('"total": [', '"total": [1.0, '))
    with pytest.raises(ValueError, match="rates 5 candidates of 'input 0', and the set has 4: the set has changed"):
        rate(rater_of("compass", engine), fewer, path)


def test_any_reward_stands_in_for_a_judge_and_is_compared_on_the_same_pairs(make_material, tmp_path):
    @register_reward("brightness_of_this_test", range=(0.0, 1.0))
    def brightness(sr):
        return sr.mean((1, 2, 3))

    material = make_material(3, 4, real=True)
    raters = {name: reward_rater(make(name)) for name in ("brightness_of_this_test", "random")}
    result = evaluate("brightness_of_this_test", raters, material, tmp_path)
    assert set(result["accuracy"]) == {*raters, "mean of the method", "mean of the method on the other scenes"}
    value, low, high = result["difference"]["random"]["All"]
    one, other = (result["accuracy"][name]["All"]["accuracy"][0] for name in raters)
    assert value == pytest.approx(one - other)
    assert low <= value <= high
    assert set(result["by_kind"]) == {"synthetic", "real"}
    # Only a judge of COMPASS knows F and Q apart.
    with pytest.raises(ValueError, match="table=3 takes fidelity and the qualities apart"):
        evaluate("random", {"random": raters["random"]}, material, tmp_path, ablation=True)
    with pytest.raises(ValueError, match="'psnr_y' needs 'hr', which this call doesn't give"):
        evaluate("psnr_y", {"psnr_y": reward_rater(make("psnr_y"))}, material, tmp_path)


def test_on_sriqa_benchs_methods_its_subsets_baselines_and_published_rows_are_printed(make_material, tmp_path):
    methods = ("SwinIR", "RealESRNet", "Original", "A", "B", "C", "D", "E", "F", "G", "H")
    plain = make_material(4, 11, side=32)
    groups = [replace(group, methods=methods, kind="real", fidelity=None) for group in plain.groups]
    material = type(plain)(groups, plain.images, plain.about)
    rater = {"random": reward_rater(make("random"))}
    result = evaluate("random", rater, material, tmp_path, learnt=["swinir", "real-esrnet-x4", "span"])
    assert result["subsets"] == ["Reg", "Gen", "All"]
    assert result["shared"] == ["swinir", "real-esrnet-x4"]
    pairs = {subset: own["pairs"] for subset, own in result["accuracy"]["random"].items()}
    assert pairs == {"Reg": 4 * 3, "Gen": 4 * 36, "All": 4 * 55}
    table = accuracy_table(result)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["COMPASS (published)"][:3] == ["85.0", "78.3", "83.1"]
    assert rows["A-FINE (published)"][2] == "82.4"
    best = 100 * original_best(truths(groups))[0]
    assert float(rows["the original best, else a coin"][2]) == pytest.approx(best, abs=0.05)
    assert "mean of the method" in rows
    assert "OARS, table 1" in table.caption
    page = write_evaluation(result, tmp_path, ["srgym"]).read_text()
    assert "95% over scenes, resampled whole" in page
    assert "Leaving each method out" in page
    assert "the judge learnt from 2 methods of the 10 here (swinir, real-esrnet-x4)" in page


def test_a_pairwise_judge_is_asked_in_both_orders_and_its_flips_are_told(make_material, tmp_path):
    material = make_material(2, 3)
    first = Engine(lambda question: Reply("1"))  # always the first that it is shown
    result = evaluate("compare", {"compare": rater_of("compare", first)}, material, tmp_path / "first")
    assert first.asked == 2 * 6
    assert result["flips"] == 1.0
    assert result["accuracy"]["compare"]["All"]["ties"] == 1.0  # both orders together leave nothing of it
    never = Engine(lambda question: Reply("0"))
    assert evaluate("compare", {"compare": rater_of("compare", never)}, material, tmp_path / "never")["flips"] == 0.0


def test_the_truth_is_compass_of_the_labels_and_quality_alone_of_real_inputs(make_material):
    material = make_material(2, 2, real=True)
    synthetic, real = material.groups
    made = truths(material.groups)
    assert list(made["input 1"].values()) == pytest.approx(list(real.quality))
    f, q = synthetic.fidelity[0], synthetic.quality[0]
    by_hand = f * synthetic.q_lr + f ** (synthetic.q_lr / 7) * (q - synthetic.q_lr)
    assert made["input 0"]["method 0"] == pytest.approx(by_hand)
