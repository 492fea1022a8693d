"""The parser of scores: strict, and never surprised."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srgym.rewards.serving.parsing import find_object, parse_scores, score_pattern, score_reply
from srgym.rewards.serving.question import BadAnswer, Reply

FIELDS = {"fidelity": (0.0, 1.0), "q_lr": (1.0, 5.0), "q_sr": (1.0, 5.0)}
GOOD = '{"fidelity": 0.83, "q_lr": 2.10, "q_sr": 3.75, "description": "sharper {but} \\"ringing\\""}'
SCORES = {"fidelity": 0.83, "q_lr": 2.1, "q_sr": 3.75}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Let me think {{well}}... no: <answer>{GOOD}</answer>",
        f'<answer>{{"fidelity": 0.1, "q_lr": 1, "q_sr": 1}}</answer> I take that back. <ANSWER>\n{GOOD}\n</ANSWER>',
        f"```json\n{GOOD}\n```",
        f'He said "so": {GOOD} and then {{nothing}}',
        f"{{ unclosed, then {GOOD}",
    ],
)
def test_scores_are_found_in_the_last_answer_else_the_first_balanced_braces(text: str) -> None:

    assert parse_scores(text, FIELDS) == SCORES


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected a JSON object"),
        ("3.75", "expected a JSON object"),
        ("{fidelity: 1}", "expected JSON"),
        ('{"fidelity": 0.5, "q_lr": 2}', "expected a score 'q_sr'"),
        ('{"fidelity": 0.5, "q_lr": 2, "q_sr": 5.01}', "expected 'q_sr' in"),
        ('{"fidelity": -0.001, "q_lr": 2, "q_sr": 5}', "expected 'fidelity' in"),
        ('{"fidelity": NaN, "q_lr": 2, "q_sr": 5}', "expected finite numbers"),
        ('{"fidelity": 0.5, "q_lr": 2, "q_sr": 1e999}', "expected 'q_sr' in"),
        ('{"fidelity": 0.5, "q_lr": 2, "q_sr": Infinity}', "expected finite numbers"),
        ('{"fidelity": true, "q_lr": 2, "q_sr": 3}', "expected a number as 'fidelity'"),
        ('{"fidelity": "0.5", "q_lr": 2, "q_sr": 3}', "expected a number as 'fidelity'"),
        ('{"fidelity": 0.5, "q_lr": 2, "q_sr": 3, "q_sr": 4}', "expected every key once"),
        ('{"fidelity": 0.5, "q_lr": 2, "q_sr": ' + "9" * 5000 + "}", "expected JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "expected"),
        (f"{GOOD} <answer>no idea</answer>", "expected a JSON object"),
    ],
)
def test_anything_else_is_a_bad_answer(text: str, complaint: str) -> None:
    with pytest.raises(BadAnswer, match=complaint):
        parse_scores(text, FIELDS)


def test_an_answer_stopped_behind_its_scores_is_whole_but_a_truncated_one_is_not() -> None:
    cut = '{"fidelity":0.83,"q_lr":2.10,"q_sr":3.75,'
    assert score_reply(Reply(cut, stopped=True), FIELDS) == SCORES
    with pytest.raises(BadAnswer):
        score_reply(Reply(cut, stopped=False), FIELDS)


def test_the_pattern_admits_exactly_what_the_parser_does() -> None:
    import re

    pattern = re.compile(score_pattern(FIELDS))
    for text in ('{"fidelity":0.83,"q_lr":2.10,"q_sr":5.00}', '{"fidelity":1.00,"q_lr":1.00,"q_sr":4.99}'):
        assert pattern.fullmatch(text)
        assert parse_scores(text, FIELDS) == json.loads(text)
    for text in ('{"fidelity":1.01,"q_lr":2.10,"q_sr":5.00}', '{"fidelity":0.83,"q_lr":0.99,"q_sr":5.00}'):
        assert not pattern.fullmatch(text)
    with pytest.raises(ValueError, match="whole digits"):
        score_pattern({"x": (0.0, 0.5)})


_VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1, 6),
    st.integers(-(10**30), 10**30),
    st.integers(0, 6),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.lists(st.integers(0, 5), max_size=2),
)
_OBJECTS = st.dictionaries(st.sampled_from([*FIELDS, "description", "Q_SR"]), _VALUES, max_size=5).map(json.dumps)
_PIECES = st.one_of(
    _OBJECTS,
    st.sampled_from([GOOD, "<answer>", "</answer>", "{", "}", '"', "\\", "NaN", "```", '{"q_sr":', ",", "\ud800"]),
    st.text(max_size=12),
)


# Fragments that make answers, almost answers and nonsense when put side by side; cheaper to draw than free text.
_NUMBERS = ("0.5", "1", "5.00", "-1", "5.01", "1e400", "NaN", '"2"', "[3]")
_FRAGMENTS = [
    *(f'"{name}":{value}' for name in FIELDS for value in _NUMBERS),
    *("{", "}", ",", '"', "\\", " ", "<answer>", "</answer>", "null", '"description":"x"', '"a":{', "\ud800", "é"),
    *(GOOD, GOOD[:40], GOOD[40:], "{" + '"fidelity":1,"q_lr":2,"q_sr":', '{"fidelity":.5,"q_lr":2,"q_sr":3}'),
]
_QUICK = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=8_500, **_QUICK)
@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=8).map("".join))
def test_no_fragments_give_another_error_or_a_value_out_of_range(text: str) -> None:
    _only_scores_or_a_bad_answer(text)


@settings(max_examples=1_500, **_QUICK)
@given(st.lists(_PIECES, max_size=4).map("".join))
def test_no_text_gives_another_error_or_a_value_out_of_range(text: str) -> None:
    _only_scores_or_a_bad_answer(text)


def _only_scores_or_a_bad_answer(text: str) -> None:
    try:
        scores = parse_scores(text, FIELDS)
    except BadAnswer:
        return
    assert set(scores) == set(FIELDS)
    for name, (low, high) in FIELDS.items():
        assert math.isfinite(scores[name])
        assert low <= scores[name] <= high
        # Nothing is made up or clipped: the number stands in the text.
        assert scores[name] in _numbers(text)


def _numbers(text: str) -> set[float]:
    import re

    return {float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", text)}


@given(st.text(alphabet='{}"\\a', max_size=40))
@settings(max_examples=300, deadline=None, database=None)
def test_a_found_object_is_balanced(text: str) -> None:
    try:
        found = find_object(text)
    except BadAnswer:
        return
    assert found[0] == "{"
    assert found[-1] == "}"
    assert found in text
