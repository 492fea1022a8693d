"""RealSR-R1's four rewards, each alone and together."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srgym.envs.degradation import degrade
from srgym.rewards import Incompatible, make
from srgym.rewards.realsr_r1.degradation import STEPS, degradation_reward, describe, labels, parse
from srgym.rewards.realsr_r1.format import SECTIONS, format_reward, section
from srgym.rewards.realsr_r1.generation import AXES, Judge, read_verdict, verdict_pattern
from srgym.rewards.realsr_r1.reward import RealSRR1
from srgym.rewards.realsr_r1.understanding import mentions, read_synonyms, singular, understanding_reward
from srgym.rewards.serving.question import BadAnswer, Question, Reply, encode_images


def png(image: torch.Tensor) -> bytes:
    """An image as a judge is shown it."""
    return encode_images(image[None])[0]


MADE = "srgym.rewards.realsr_r1.reward:RealSRR1"


def written(**parts: str) -> str:
    return "\n".join(f"<{name}>{parts.get(name, 'something')}</{name}>" for name in SECTIONS)


# Format


def test_the_seven_sections_in_order_and_nothing_else_are_the_form() -> None:
    assert format_reward(written()) == 1.0
    assert format_reward(f"  \n{written()}\n ") == 1.0
    assert format_reward(written(rough_understand="a < b, <b>bold</b>\n\nand lines")) == 1.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "Here: " + text,
        lambda text: text + " done",
        lambda text: text.replace("</rough_image>", ""),
        lambda text: text.replace("<middle_image>", "<image>"),
        lambda text: text.replace("</degradation>\n", "</degradation> and "),
        lambda text: "\n".join(reversed(text.split("\n"))),
        lambda text: text + "\n<final_image>again</final_image>",
        lambda text: text.replace("something", "<degradation>something", 1),
        lambda text: text.upper(),
        lambda _: "",
    ],
)
def test_anything_else_is_not(spoil: Callable[[str], str]) -> None:
    assert format_reward(spoil(written())) == 0.0


@given(
    st.lists(st.sampled_from([f"<{n}>" for n in SECTIONS] + [f"</{n}>" for n in SECTIONS] + ["x", " "]), max_size=20)
)
@settings(max_examples=300, deadline=None, database=None)
def test_only_the_form_has_the_form(pieces: list[str]) -> None:
    tags = [tag for name in SECTIONS for tag in (f"<{name}>", f"</{name}>")]
    text = "".join(pieces)
    in_order = [piece for piece in pieces if piece.startswith("<")] == tags
    assert not (format_reward(text) and not in_order)


def test_a_section_is_found_even_where_the_form_is_broken() -> None:
    text = "well <degradation>blurry</degradation> hm <rough_understand>a cat"
    assert section(text, "degradation") == "blurry"
    assert section(text, "rough_understand") is None


# Degradation


@pytest.mark.parametrize("preset", ["realesrgan", "stablesr", "mild", "mixture", "bicubic"])
def test_a_record_survives_being_put_into_words(preset: str) -> None:
    count = 1000 if preset == "realesrgan" else 50
    _, records = degrade(torch.rand(1, 3, 8, 8).expand(count, 3, 8, 8), preset, seed=3)
    seen: dict[str, set[str]] = {step: set() for step in STEPS}
    for record in records:
        text = describe(record)
        assert parse(text) == labels(record)
        assert degradation_reward(text, record) == 1.0
        for step, label in labels(record).items():
            seen[step].add(label)
    if preset == "realesrgan":
        assert seen["blur1"] == seen["jpeg1"] == seen["resize1"] == {"light", "medium", "heavy"}
        assert seen["blur2"] == {"none", "light", "medium", "heavy"}
        assert seen["noise1"] == {
            f"{level} {kind}" for level in ("light", "medium", "heavy") for kind in ("gaussian", "poisson")
        }
    if preset == "bicubic":
        assert [step for step, found in seen.items() if found != {"none"}] == ["resize1"]


RECORD = {
    "blur1": {"kernel": "iso", "sigma": 2.5},  # .2-3: heavy from 2.07
    "resize1": {"factor": 1.2, "mode": "area"},  # 1.5-.15: light down to 1.05
    "noise1": {"kind": "gaussian", "strength": 12.0},  # 1-30: medium from 10.7 to 20.3
    "jpeg1": {"quality": 50},  # 95-30: heavy below 51.7
    "blur2": None,
    "resize2": {"factor": 0.8, "mode": "area"},  # 1.2-.3: medium from .9 to .6
    "noise2": {"kind": "poisson", "strength": 0.2},  # .05-2.5: light to .87
    "jpeg2": {"quality": 90},
}
TRUTH = (
    "First blur: heavy. First resize: light. First noise: medium gaussian. First JPEG compression: heavy. "
    "Second blur: none. Second resize: medium. Second noise: light poisson. Second JPEG compression: light."
)


def test_each_third_of_a_range_has_its_word() -> None:
    assert describe(RECORD) == TRUTH
    sinc = {**RECORD, "blur1": {"kernel": "sinc", "sigma": None, "cutoff": 0.7}}
    assert labels(sinc)["blur1"] == "heavy"
    beyond = {**RECORD, "jpeg2": {"quality": 100}, "blur1": {"sigma": 0.1}}
    assert labels(beyond)["jpeg2"] == labels(beyond)["blur1"] == "light"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (TRUTH, 8),
        (TRUTH.upper(), 8),
        (TRUTH.replace("First blur: heavy", "First blur: light"), 7),
        (TRUTH.replace("medium gaussian", "medium poisson"), 7),
        (TRUTH.replace("medium gaussian", "medium"), 7),
        (TRUTH.replace("Second blur: none. ", ""), 7),
        ("I see: first blur : heavy; second jpeg: light", 2),
        (TRUTH + " First blur: light.", 7),  # said twice is not said
        ("blurry, noisy, compressed", 0),
        ("", 0),
    ],
)
def test_the_reward_is_the_share_of_right_steps(text: str, right: int) -> None:
    assert degradation_reward(text, RECORD) == right / 8


def test_a_record_of_another_kind_is_told() -> None:
    with pytest.raises(ValueError, match="expected noise1 of kind gaussian, poisson"):
        labels({**RECORD, "noise1": {"kind": "salt", "strength": 1.0}})
    with pytest.raises(ValueError, match="expected a number as jpeg1's quality"):
        labels({**RECORD, "jpeg1": {"quality": "high"}})


# Understanding


@pytest.mark.parametrize(
    ("text", "name", "word", "substring"),
    [
        ("A car on a road", "car", True, True),
        ("a carpet", "car", False, True),
        ("Two CARS.", "car", True, True),
        ("one car", "cars", True, False),
        ("berries and leaves", "berry", True, False),
        ("berries and leaves", "leaf", True, False),
        ("people on buses", "person", True, False),
        ("people on buses", "bus", True, True),
        ("the grass", "gras", False, True),
        ("a traffic light, red", "traffic lights", True, False),
        ("light traffic", "traffic light", False, False),
        ("the dog's bowl", "dog", True, True),
        ("", "car", False, False),
        ("anything", "", False, True),
    ],
)
def test_a_thing_is_mentioned_as_whole_words_or_as_letters(text: str, name: str, word: bool, substring: bool) -> None:
    assert mentions(text, name) == word
    assert mentions(text, name, "substring") == substring


def test_plurals_are_folded_and_other_words_are_left() -> None:
    plurals = {"cars": "car", "boxes": "box", "dishes": "dish", "ponies": "pony", "women": "woman", "wolves": "wolf"}
    assert {word: singular(word) for word in plurals} == plurals
    for word in ("glass", "bus", "iris", "tie", "gas", "knife"):
        assert singular(word) == word


def test_the_reward_is_the_share_of_named_things(tmp_path: Path) -> None:
    assert understanding_reward("a dog and a tree", ["dog", "tree", "car", "Dog"]) == pytest.approx(2 / 3)
    assert understanding_reward("a dog", []) is None
    assert understanding_reward("an automobile", ["car"]) == 0.0
    (tmp_path / "words.json").write_text(json.dumps({"Car": ["automobile", "motor vehicle"]}))
    synonyms = read_synonyms(tmp_path / "words.json")
    assert understanding_reward("an automobile", ["car"], synonyms=synonyms) == 1.0
    assert understanding_reward("motor vehicles", ["car"], synonyms=synonyms) == 1.0
    with pytest.raises(FileNotFoundError, match="expected a file of synonyms"):
        read_synonyms(tmp_path / "none.json")
    (tmp_path / "words.json").write_text('{"car": "automobile"}')
    with pytest.raises(ValueError, match="expected synonyms as"):
        read_synonyms(tmp_path / "words.json")
    with pytest.raises(ValueError, match="expected a match of word, substring"):
        understanding_reward("a", ["b"], match="regex")


# Generation


def brightness(file: bytes) -> float:
    import io

    import numpy as np
    from PIL import Image

    return round(float(np.asarray(Image.open(io.BytesIO(file)), dtype=np.float64).mean()) / 25.5, 2)


class Honest:
    """A judge that scores each image by its brightness; keeps what it was asked."""

    def __init__(self, spoil: Callable[[dict[str, Any]], str] = json.dumps) -> None:
        self.spoil, self.asked = spoil, list[Question]()

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], Any]) -> list[Any]:
        values: list[Any] = []
        for question in questions:
            self.asked.append(question)
            names = question.text.split("order shown: ")[1].split(".")[0].split(", ")
            scored = [brightness(file) for file in question.images[-len(names) :]]
            verdict = {
                n: {"quality": b, "realism": b / 2, "consistency": 5.0} for n, b in zip(names, scored, strict=True)
            }
            try:
                values.append(read(Reply(self.spoil(verdict))))
            except BadAnswer:
                values.append(None)
        return values


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """SR of different brightness, LR and group: three samples of context 4, two of context 2."""
    bright = torch.tensor([0.2, 0.9, 0.4, 0.7, 0.1])
    sr = bright[:, None, None, None].expand(5, 3, 16, 16).clone()
    return sr, torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 4, 4, 2, 2])


def test_scores_come_back_in_the_batchs_order(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    sr, lr, group = rows
    engine = Honest()
    output = Judge(engine, weights=(0.5, 0.3, 0.2))(sr, group, lr)
    shades = torch.tensor([brightness(png(image)) for image in sr])
    torch.testing.assert_close(output["quality"], shades / 10)
    torch.testing.assert_close(output["total"], 0.5 * shades / 10 + 0.3 * shades / 20 + 0.2 * 0.5)
    # One question a group, the LR image first.
    assert sorted(len(question.images) for question in engine.asked) == [3, 4]
    assert {question.images[0] for question in engine.asked} == {png(lr[0]), png(lr[3])}


def test_the_order_shown_is_shuffled_and_follows_from_the_images_and_the_seed(rows: Any) -> None:
    sr = torch.linspace(0, 1, 12)[:, None, None, None].expand(12, 3, 8, 8)
    group = torch.zeros(12, dtype=torch.long)

    def shown(images: Tensor, seed: int) -> list[float]:
        engine = Honest()
        Judge(engine, seed=seed)(images, group)
        return [brightness(file) for file in engine.asked[0].images]

    assert shown(sr, 0) != sorted(shown(sr, 0))
    assert shown(sr, 0) != shown(sr, 1)
    assert shown(sr.flip(0), 0) == shown(sr, 0)


def test_no_score_depends_on_the_order_in_the_batch_or_on_other_groups(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    sr, lr, group = rows
    order = torch.tensor([3, 0, 4, 2, 1])
    whole = Judge(Honest())(sr, group, lr)["total"]
    torch.testing.assert_close(Judge(Honest())(sr[order], group[order], lr[order])["total"], whole[order])
    torch.testing.assert_close(Judge(Honest())(sr[3:], group[3:], lr[3:])["total"], whole[3:])


def missing_one(verdict: dict[str, Any]) -> str:
    return json.dumps({name: scores for name, scores in verdict.items() if name != "C"})


@pytest.mark.parametrize(
    "spoil",
    [
        missing_one,
        lambda v: json.dumps(v)[:-1] + ', "A": ' + json.dumps(v["A"]) + "}" if "C" in v else json.dumps(v),
        lambda v: json.dumps({**v, "D": v["A"]} if "C" in v else v),
        lambda v: json.dumps({**v, "B": {"quality": 3, "realism": 11, "consistency": 3}} if "C" in v else v),
        lambda v: json.dumps({**v, "B": {"quality": 3, "realism": 4}} if "C" in v else v),
        lambda v: "They are all nice." if "C" in v else json.dumps(v),
    ],
    ids=["one missing", "one twice", "one too many", "out of range", "axis missing", "no answer"],
)
def test_a_group_whose_ids_are_not_each_there_once_is_invalid_and_no_other(
    spoil: Callable[[dict[str, Any]], str], rows: tuple[Tensor, Tensor, Tensor]
) -> None:
    sr, lr, group = rows
    output = make(MADE, generation=Judge(Honest(spoil)))(sr, lr=lr, group=group)
    assert output.valid.tolist() == [False, False, False, True, True]
    assert output.total[:3].isnan().all()
    assert output.components["generation"][:3].isnan().all()


def test_the_pattern_admits_verdicts_only() -> None:
    import re

    names = ["A", "B"]
    scores = ",".join(f'"{axis}":7.5' for axis in AXES)
    text = f'{{"A":{{{scores}}},"B":{{{scores.replace("7.5", "10.0")}}}}}'
    assert re.fullmatch(verdict_pattern(names), text)
    assert read_verdict(text, names)["B"]["realism"] == 10.0
    assert not re.fullmatch(verdict_pattern(names), text.replace("10.0", "10.5"))


def test_a_real_model_class_can_be_the_judge(tiny_qwen3vl: Path, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    sr, _, group = rows
    sr = torch.nn.functional.interpolate(sr, size=(32, 32))
    judge = {"name": "judge", "engine": {"engine": "transformers", "path": str(tiny_qwen3vl), "device": "cpu"}}
    reward = make(MADE, generation=judge, reference=False)
    assert reward.group
    assert not reward.needs
    output = reward(sr, group=group)
    assert output.valid.all()
    axes = torch.stack([output.components[f"generation/{axis}"] for axis in AXES])
    torch.testing.assert_close(output.total, axes.mean(0))


# All four


@pytest.fixture
def reward() -> Any:
    return make(MADE, generation=Judge(Honest()))


def test_without_a_text_the_text_components_are_absent_and_not_zero(reward: Any, rows: Any) -> None:
    sr, lr, group = rows
    output = reward(sr, lr=lr, group=group, degradation=[RECORD] * 5, tags=[["dog"]] * 5)
    for name in ("format", "degradation", "understanding"):
        assert output.components[name].isnan().all()
    assert output.valid.all()
    torch.testing.assert_close(output.total, output.components["generation"])


def test_with_everything_the_four_are_summed(reward: Any, rows: Any) -> None:
    sr, lr, group = rows
    good = written(degradation=TRUTH, rough_understand="a dog by a tree")
    text = [good, good.replace("dog", "cat"), "no form " + good, None, ""]
    output = reward(sr, lr=lr, group=group, text=text, degradation=[RECORD] * 5, tags=[["dog", "tree"]] * 5)
    parts = output.components
    nan = math.nan
    assert parts["format"].tolist() == pytest.approx([1, 1, 0, nan, 0], nan_ok=True)
    assert parts["degradation"].tolist() == pytest.approx([1, 1, 1, nan, 0], nan_ok=True)
    assert parts["understanding"].tolist() == pytest.approx([1, 0.5, 1, nan, 0], nan_ok=True)
    expected = torch.tensor([3, 2.5, 2, 0, 0]) + parts["generation"]
    torch.testing.assert_close(output.total, expected)
    assert output.valid.all()


def test_a_real_input_has_no_degradation_to_tell_and_an_empty_one_nothing_to_name(reward: Any, rows: Any) -> None:
    sr, lr, group = rows
    text = [written(degradation=TRUTH)] * 5
    output = reward(sr, lr=lr, group=group, text=text, degradation=[None] * 5, tags=[[]] * 5)
    assert output.components["degradation"].isnan().all()
    assert output.components["understanding"].isnan().all()
    torch.testing.assert_close(output.total, 1 + output.components["generation"])
    bare = reward(sr, lr=lr, group=group, text=text)
    torch.testing.assert_close(bare.total, output.total)


def test_weights_and_matching_are_options(rows: Any, tmp_path: Path) -> None:
    sr, lr, group = rows
    (tmp_path / "words.json").write_text('{"car": ["sedan"]}')
    text = [written(rough_understand="a carpet")] * 5
    weights = {"format": 0.0, "understanding": 2.0, "generation": 0.5}
    loose = RealSRR1(Judge(Honest()), weights=weights, match="substring", synonyms=tmp_path / "words.json")
    output = make(loose)(sr, lr=lr, group=group, text=text, tags=[["car"]] * 5)
    torch.testing.assert_close(output.total, 2 + 0.5 * output.components["generation"])
    with pytest.raises(ValueError, match="got one of 'form'"):
        RealSRR1(Judge(Honest()), weights={"form": 1.0})
    with pytest.raises(ValueError, match="0 or more"):
        RealSRR1(Judge(Honest()), weights={"format": -1.0})
    with pytest.raises(ValueError, match="expected a match"):
        RealSRR1(Judge(Honest()), match="regex")
    with pytest.raises(ValueError, match="sum to 1"):
        Judge(Honest(), weights=(1, 1, 1))


def test_metrics_may_take_the_judges_place(rows: Any) -> None:
    sr, _, _ = rows
    hr = sr * 0.9
    reward = make(MADE, generation={"sum": {"psnr_y": 0.01, "ssim_y": 0.5}})
    assert reward.needs == {"hr"}
    assert not reward.group
    output = reward(sr, hr=hr)
    expected = 0.01 * make("psnr_y")(sr, hr=hr).total + 0.5 * make("ssim_y")(sr, hr=hr).total
    torch.testing.assert_close(output.total, expected)
    assert reward.range == pytest.approx((-0.5, 1.5 + 3))
    with pytest.raises(Incompatible, match="'hr'"):
        reward(sr)


def test_intermediate_images_count_as_much_as_they_are_said_to(rows: Any) -> None:
    sr, lr, group = rows
    coarse, middle = sr * 0.5, sr * 0.25
    judge = Judge(Honest())
    reward = make(RealSRR1(judge, steps=0.5))
    output = reward(sr, lr=lr, group=group, intermediate=[coarse, middle])
    each = [judge(image, group, lr)["total"] for image in (sr, coarse, middle)]
    torch.testing.assert_close(output.total, (each[0] + 0.5 * (each[1] + each[2]) / 2) / 1.5)
    torch.testing.assert_close(make(RealSRR1(judge))(sr, lr=lr, group=group, intermediate=[coarse]).total, each[0])
    with pytest.raises(Incompatible, match="leave steps at 0"):
        RealSRR1({"sum": {"psnr_y": 1.0}}, steps=0.5)


def test_a_group_too_large_to_be_named_is_told(rows: Any) -> None:
    sr = torch.rand(27, 3, 8, 8)
    with pytest.raises(ValueError, match="26 at most, got 27"):
        Judge(Honest())(sr, torch.zeros(27, dtype=torch.long))
