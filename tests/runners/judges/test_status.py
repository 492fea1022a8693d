"""What `srgym judge status` says is done and left, which it reads without touching anything."""

import hashlib
import json

import pytest
import torch

from srgym.errors import Refusal
from srgym.files import to_png
from srgym.runners.commands.cli import main
from srgym.runners.judges.annotators import Scored
from srgym.runners.judges.answers import AnswerLog, read_answers
from srgym.runners.judges.judge_set import JudgeSet, NewCandidate, NewInput
from srgym.runners.judges.labelling import LabelSettings, annotate
from srgym.runners.judges.stages import label_set
from srgym.runners.judges.status import status

WHO = LabelSettings(annotator={"anchor": "compact", "compare": "compact", "describe": "statistics"}, most_inverted=1.0)


def picture(seed, side):
    return to_png(torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def made(tmp_path):
    """Two of three inputs are there, and three methods have seen one of these."""
    pool = {"train": 2, "validation": 0, "test": 1}
    own = JudgeSet.create(tmp_path / "set", pool, dict.fromkeys("abc", "1"))
    own.add_inputs("0", [NewInput(n, "train", "real", picture(i, 8)) for i, n in enumerate(("first", "second"))])
    own.add_candidates("0", [NewCandidate("first", m, "1", 0, picture(9 + i, 32)) for i, m in enumerate("abc")])
    return own


def test_a_set_that_is_begun_says_what_is_left(made):
    lines = list(status(made))
    assert lines[:2] == ["inputs: 2 real in train; 1 left", "candidates of a (1): 1; 2 inputs left"]
    # Of three candidates: 3 + the input rated, 3 * 2 ordered pairs, 3 descriptions.
    assert "anchor: 0 of 4 images are rated; 4 left" in lines
    assert "compare: 0 of 6 ordered pairs are compared; 6 left" in lines
    assert "describe: 0 of 3 are described; 3 left" in lines
    assert lines[-2:] == ["labels: none yet; 3 candidates left", "review: not written yet"]


def test_a_set_that_is_labelled_has_nothing_left_but_the_review(made):
    label_set(made, WHO)
    lines = list(status(made))
    assert "anchor: 4 of 4 images are rated (4 answers by compact)" in lines
    assert "compare: 6 of 6 ordered pairs are compared (6 answers by compact)" in lines
    assert "describe: 3 of 3 are described (3 answers by statistics)" in lines
    assert "labels: 3 candidates of 1 inputs" in lines
    table = made.folder / "review.csv"
    rows = table.read_text().splitlines()
    assert lines[-1] == f"review: 0 of {len(rows) - 1} candidates decided; {len(rows) - 1} left"
    rows[1] = ",".join([*rows[1].split(",")[:6], "drop", "too dark"])
    table.write_text("\n".join(rows) + "\n")
    assert list(status(made))[-1].startswith("review: 1 of ")


def test_a_half_written_answer_is_left_alone_by_who_only_reads(made):
    annotate(made, "anchor", WHO)
    path = made.folder / "answers" / "anchor.compact.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "12')  # another process is writing it
    assert "anchor: 4 of 4 images are rated (4 answers by compact)" in list(status(made))
    assert path.read_bytes() == whole + b'{"key": "12' and len(read_answers(path)) == 4
    assert len(AnswerLog(path)) == 4 and path.read_bytes() == whole  # who labels cuts it off


def test_a_text_with_any_sign_in_it_stays_one_line(tmp_path):
    log = AnswerLog(tmp_path / "describe.x.jsonl")
    text = "edges\u2028grain\x85\u2029blocks\n"
    log.add({"k": {"text": text}}, {"k": {"group": "a", "shown": ["b#0"]}})
    assert AnswerLog(log.path)["k"]["text"] == text
    with pytest.raises(Refusal, match="line 2: expected an answer, got 'nothing'"):
        log.path.write_bytes(log.path.read_bytes() + b"nothing\n")
        read_answers(log.path)


def test_what_is_asked_is_known_by_its_hash(made):
    annotate(made, "compare", WHO)
    noted = json.loads((made.folder / "set.json").read_text())["prompts"]
    assert noted == {"compare.compact": hashlib.sha256(b"ties within 0.1").hexdigest()}
    again = JudgeSet.create(made.folder, made.about["settings"], made.about["methods"])
    assert again.about["prompts"] == noted


def test_other_ends_of_the_scale_are_other_questions():
    one, other = Scored("psnr_y", range=(20, 40)), Scored("psnr_y", range=(10, 40))
    assert one.name == other.name and one.asks["anchor"] != other.asks["anchor"]


def test_inputs_of_one_hr_have_answers_of_their_own(tmp_path):
    made = JudgeSet.create(tmp_path / "set", {"train": 2, "validation": 0, "test": 0}, {"a": "1"})
    hr = picture(5, 32)
    made.add_inputs("0", [NewInput(n, "train", "synthetic", picture(i, 8), hr) for i, n in enumerate(("one", "two"))])
    made.add_candidates("0", [NewCandidate(n, "a", "1", 0, picture(i + 7, 32)) for i, n in enumerate(("one", "two"))])
    annotate(made, "anchor", WHO)
    rated = {row["group"]: row["answer"] for row in read_answers(made.folder / "answers" / "anchor.compact.jsonl")
             if row["shown"] == ["lr"]}  # fmt: skip
    assert set(rated) == {"one", "two"}


def test_the_command_says_it(made, capsys):
    assert main(["judge", "status", str(made.folder)]) == 0
    assert "compare: 0 of 6 ordered pairs are compared; 6 left" in capsys.readouterr().out
