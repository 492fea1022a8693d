"""Studies on disk, and what each rater is shown."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from srgym.errors import MissingFile, Refusal
from srgym.runners.arena.schedule import schedule
from srgym.runners.arena.study import Design, open_study
from srgym.runners.arena.votes import Lines, read_lines
from srgym.sealed import Damaged


def test_a_study_holds_what_every_method_made_losslessly(make):
    study = open_study(make(photographs=3).folder)
    assert study.methods == ("ours", "theirs", "bicubic")
    assert study.contexts == ("photo0/0", "photo1/0", "photo2/0")
    hr = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = np.rint(hr.double().numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
    assert (np.asarray(Image.open(study.image("hr", 1))) == expected).all()
    assert Image.open(study.image("lr", 1)).size == (16, 16)
    files = {name: study.image(name, 1).read_bytes() for name in study.methods}
    assert len(set(files.values())) == 3


def test_a_study_whose_images_have_changed_is_refused(make):
    study = make()
    study.image("ours", 0).write_bytes(study.image("theirs", 0).read_bytes())
    with pytest.raises(Damaged, match="has changed since it was written"):
        open_study(study.folder)


def test_what_cannot_be_a_study_is_refused_in_a_sentence(make, tmp_path):
    with pytest.raises(MissingFile, match="expected a study in .*nowhere, found none"):
        open_study(tmp_path / "nowhere")
    with pytest.raises(Refusal, match="expected at least 4 methods, as many as are shown at once, got 3"):
        make(together=4)
    with pytest.raises(Refusal, match="at least 2; got 1"):
        Design(together=1)


def test_every_rater_sees_every_pair_once_in_an_order_and_on_sides_of_their_own(make):
    study = make(photographs=10, checks=3, repeats=4)
    trials = {rater: schedule(study, rater) for rater in ("anna", "ben")}
    assert trials["anna"] == schedule(open_study(study.folder), "anna")
    assert trials["anna"] != trials["ben"]
    for own in trials.values():
        votes = Counter((t.context, frozenset(t.shown)) for t in own if t.kind == "vote")
        assert len(votes) == 30 and set(votes.values()) == {1}
        assert Counter(t.kind for t in own) == {"vote": 30, "repeat": 4, "check": 3}
    sides = [t.shown[0] for i in range(200) for t in schedule(study, str(i)) if set(t.shown) == {"ours", "theirs"}]
    assert sides.count("ours") / len(sides) == pytest.approx(0.5, abs=0.05)  # 4 standard errors of 2,000 coins


def test_repeats_come_after_what_they_repeat_and_not_at_once(make):
    study = make(photographs=10, repeats=6)
    for rater in map(str, range(20)):
        own = schedule(study, rater)
        for at, trial in enumerate(own):
            if trial.kind == "repeat":
                first = next(
                    i for i, t in enumerate(own)
                    if t.kind == "vote" and t.context == trial.context and set(t.shown) == set(trial.shown)
                )  # fmt: skip
                assert first < at


def test_several_at_once_are_all_methods_once_a_context_and_checks_have_as_many_images(make):
    own = schedule(make(photographs=5, together=3, checks=2, repeats=0), "anna")
    assert Counter(t.kind for t in own) == {"vote": 5, "check": 2}
    assert all(len(t.shown) == 3 for t in own)
    assert all({"intact", "blocks_1", "blocks_2"} == set(t.shown) for t in own if t.kind == "check")


def test_attention_checks_are_of_images_that_blocks_change(make):
    """Of two photographs, one of a single grey: blocks of it are itself."""
    study = make(photographs=2, checks=1, plain=0)
    assert study.checks == (1,)
    intact, blocks = (np.asarray(Image.open(study.image(name, 1))).astype(int) for name in ("intact", "blocks_1"))
    assert (intact == np.asarray(Image.open(study.image("hr", 1)))).all()
    means = intact.reshape(16, 2, 16, 2, 3).mean((1, 3))  # sixteen blocks a side, each of the mean of its pixels
    assert np.abs(blocks[::2, ::2] - means).max() <= 0.75 and (blocks[::2, ::2] == blocks[1::2, 1::2]).all()


def test_fewer_trials_for_each_rater_where_that_is_asked_for(make):
    study = make(photographs=10, trials=12, repeats=2, checks=1)
    assert Counter(t.kind for t in schedule(study, "anna")) == {"vote": 12, "repeat": 2, "check": 1}


def test_a_line_that_was_cut_off_never_counted_and_is_written_over(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    assert read_lines(path) == [{"n": 1}]
    lines = Lines(path)
    lines.append({"n": 3})
    lines.close()
    assert read_lines(path) == [{"n": 1}, {"n": 3}]
    path.write_bytes(b'{"n": 1\n{"n": 2}\n')
    with pytest.raises(Damaged, match="line 1: expected a JSON object"):
        read_lines(path)


def test_a_full_disk_leaves_the_votes_as_they_were(tmp_path, monkeypatch):
    lines = Lines(tmp_path / "votes.jsonl")
    lines.append({"n": 1})
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        lines.append({"n": 2})
    assert [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()] == [{"n": 1}]
