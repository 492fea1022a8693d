"""What is said of images: by their pixels, by a file, by a served model; and where it goes."""

import json

import pytest
import torch

from srgym.document import TEXTS, section, write
from srgym.envs.describing import PROMPTS, describe_source, read_prompts
from srgym.envs.descriptions import Statistics, Written, make_descriptions
from srgym.envs.photographs import Photographs
from srgym.envs.sources import Sample, Source
from srgym.envs.task import SRTask
from srgym.rewards.base import Incompatible
from srgym.rewards.realsr_r1.degradation import describe
from srgym.rewards.realsr_r1.format import format_reward
from srgym.rewards.realsr_r1.understanding import understanding_reward
from srgym.rewards.serving.question import BadAnswer, Reply
from srgym.runners.commands.cli import main


def of(hr: torch.Tensor) -> list[str]:
    return Statistics()(Sample("a/0", hr[:, ::4, ::4], hr)).captions[2].replace(". ", ".|").split("|")


def ramp(down: bool = False) -> torch.Tensor:
    slope = torch.linspace(0.2, 0.9, 64)
    return (slope[:, None] if down else slope[None, :]).expand(64, 64).expand(3, 64, 64).clone()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((3, 64, 64), 0.1), ["Dark.", "Mostly grey.", "A smooth surface.", "Low contrast.", "Even light."]),
        (torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 64, 64), ["Mostly red."]),
        (torch.tensor([0.1, 0.2, 0.9])[:, None, None].expand(3, 64, 64), ["Mostly blue."]),
        (torch.tensor([0.2, 0.8, 0.2])[:, None, None].expand(3, 64, 64), ["Mostly green."]),
        (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), ["A rough surface.", "Many colours."]),
        (ramp(), ["Brighter on the right.", "Vertical lines.", "High contrast."]),
        (ramp().flip(2), ["Brighter on the left."]),
        (ramp(down=True), ["Brighter below.", "Horizontal lines."]),
        (ramp(down=True).flip(1), ["Brighter above."]),
        (torch.full((3, 64, 64), 0.95), ["Bright.", "Few colours."]),
    ],
)
def test_sentences_say_what_pixels_show(image, said):
    assert set(said) <= set(of(image)), of(image)
    assert len(of(image)) == 7


def test_rounds_build_on_each_other_and_tags_are_named_in_the_first():
    source = Photographs("train", "mixture", 4, 64, crops=3)
    for i in range(len(source)):
        description = Statistics()(source[i])
        rough, middle, final = description.captions
        assert middle.startswith(rough) and final.startswith(middle) and len(rough) < len(middle) < len(final)
        assert understanding_reward(rough, description.tags) == 1.0
        assert len(description.tags) == 3


def test_no_word_is_rare():
    """Each answer of a third is given to a tenth of the crops at least, on photographs that it wasn't made from."""
    source = Photographs("test", "mixture", 4, 64, crops=24)
    said = [" ".join(Statistics()(source[i]).captions[0].split()) for i in range(len(source))]
    for words in (("Dark", "Dim", "Bright"), ("smooth", "grained", "rough")):
        counts = [sum(word in text for text in said) for word in words]
        assert sum(counts) == len(said) and min(counts) > len(said) / 25, counts


def test_a_document_is_read_back():
    texts = {name: f"about {name}" for name in TEXTS}
    text = write(texts)
    assert format_reward(text) == 1.0 and {name: section(text, name) for name in TEXTS} == texts


def test_contexts_carry_texts_and_tags():
    task = SRTask(Photographs("train", "mixture", 4, 64, crops=3), descriptions="statistics")
    assert {"tags", "texts"} <= task.provides
    context = task.context([0, 7])
    for i, texts in enumerate(context.texts):
        assert tuple(texts) == TEXTS and texts["degradation"] == describe(context.degradation[i])
        assert len(context.tags[i]) == 3
    plain = SRTask(Photographs("train", "mixture", 4, 64, crops=3)).context([0])
    assert plain.texts is None and plain.tags is None


class Bare(Source):
    scale, size, provides, name = 4, (4, 4), frozenset({"lr"}), "bare"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Sample(f"a/{index}", torch.zeros(3, 4, 4))


def test_statistics_need_ground_truth():
    with pytest.raises(Incompatible, match="descriptions=statistics needs 'hr', and the source 'bare' gives 'lr'"):
        SRTask(Bare(), descriptions="statistics")


def line(name="a/0", captions=("one", "two", "three"), tags=("cat",)):
    return json.dumps({"id": name, "captions": list(captions), "tags": list(tags)})


def test_a_file_of_descriptions(tmp_path):
    file = tmp_path / "said.jsonl"
    file.write_text(f"{line()}\n\n{line('b/1', tags=[])}\n")
    said = Written(file)
    assert said(Sample("a/0", torch.zeros(3, 4, 4))).captions == ("one", "two", "three")
    assert said(Sample("b/1", torch.zeros(3, 4, 4))).tags == ()
    with pytest.raises(ValueError, match="expected a description of 'c/0' in .*said.jsonl, which has 2 others"):
        said(Sample("c/0", torch.zeros(3, 4, 4)))
    assert make_descriptions(None) is None
    with pytest.raises(FileNotFoundError, match="expected 'statistics', or a file of JSON lines"):
        make_descriptions("statistiks")


@pytest.mark.parametrize("wrong", ["{", "[]", line(captions=["a", "b"]), line(tags=[1]), '{"id": 3}', "null"])
def test_a_line_that_isnt_one_is_named(tmp_path, wrong):
    file = tmp_path / "said.jsonl"
    file.write_text(f"{line()}\n{wrong}\n")
    with pytest.raises(ValueError, match=r"said.jsonl, line 2: expected (a JSON object|an object of 'id')"):
        Written(file)


# By a served model


class Model:
    """Answers with the beginning of the question; hears what is asked."""

    def __init__(self, fails=()):
        self.asked, self.fails = [], fails

    def ask(self, questions, read):
        self.asked += [question.text for question in questions]
        answers = []
        for question in questions:
            text = "Cats, a <dog>, cats." if question.text == PROMPTS["tags"] else f"<{len(question.text)}> words"
            try:
                answers.append(None if len(self.asked) in self.fails else read(Reply(text)))
            except BadAnswer:
                answers.append(None)
        return answers


def source():
    return Photographs("validation", "mixture", 4, 64, crops=3)


def test_three_rounds_quote_each_other(tmp_path):
    model = Model()
    assert describe_source(source(), model, tmp_path / "said.jsonl", batch=4) == (6, 0)
    said = Written(tmp_path / "said.jsonl")
    description = said(source()[0])
    assert description.captions[0] == f"{len(PROMPTS['rough'])} words" and description.tags == ("cats", "a dog")
    assert model.asked[4] == PROMPTS["middle"].format(rough=description.captions[0])
    assert model.asked[8] == PROMPTS["final"].format(rough=description.captions[0], middle=description.captions[1])
    assert len(model.asked) == 6 * 4
    task = SRTask(source(), descriptions=str(tmp_path / "said.jsonl"))
    assert task.context([3]).texts[0]["final_understand"] == said(source()[3]).captions[2]


def test_what_is_there_isnt_asked_again_and_a_torn_line_is(tmp_path):
    file = tmp_path / "said.jsonl"
    describe_source(source(), Model(), file)
    whole = file.read_text()
    file.write_text(whole[: len(whole) - 20])
    model = Model()
    assert describe_source(source(), model, file) == (1, 0)
    assert file.read_text() == whole and len(model.asked) == 4
    assert describe_source(source(), model, file) == (0, 0) and len(model.asked) == 4


def test_an_image_without_an_answer_is_left_out_and_asked_next_time(tmp_path):
    file = tmp_path / "said.jsonl"
    assert describe_source(source(), Model(fails={1}), file, batch=1) == (5, 1)
    assert describe_source(source(), Model(), file) == (1, 0)
    assert len(file.read_text().splitlines()) == 6
    with pytest.raises(ValueError, match="descriptions are of ground truth"):
        describe_source(Bare(), Model(), file)


def test_questions_of_ones_own(tmp_path):
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"middle": "After {rough}: more."}))
    assert read_prompts(file) == {**PROMPTS, "middle": "After {rough}: more."}
    file.write_text(json.dumps({"rough": "{final}?"}))
    with pytest.raises(ValueError, match="'rough' may quote nothing, got 'final'"):
        read_prompts(file)
    file.write_text(json.dumps({"rogh": "?"}))
    with pytest.raises(ValueError, match="expected texts by rough, middle, final, tags, got 'rogh'"):
        read_prompts(file)


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    model = Model()
    monkeypatch.setattr("srgym.rewards.serving.engines.make_engine", lambda spec, model: model_of(spec))

    def model_of(spec):
        assert spec == "http://127.0.0.1:9"
        return model

    words = ["describe", "env=photographs", "env.split=validation", "env.size=64", "limit=2"]
    assert main([*words, "engine=http://127.0.0.1:9", f"out={tmp_path / 'said.jsonl'}"]) == 0
    assert "2 descriptions written" in capsys.readouterr().out and len(model.asked) == 8
    assert main(words) == 2
    assert "expected out=FILE" in capsys.readouterr().err
