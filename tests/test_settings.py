"""Whether a value is what takes it asks for: types, ranges, and the sentence that says what was expected."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from srgym import agents, rewards
from srgym.errors import Refusal
from srgym.settings import Count, Natural, Positive, Share, check_arguments, check_plain, check_value, fill, leaves


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 3), (int, np.int64(3)), (float, 3), (float, np.float32(0.5)), (Count | None, None), (Natural, 0),
        (Share, 1), (Sequence[float], (0.5, 1)), (Sequence[str] | None, ["a"]), (tuple[float, float], [0.9, 1]),
        (str | os.PathLike[str], Path("here")), (Mapping[str, float] | None, {"a": 1}), (str | float, 0.5),
        (Literal["on", "off"], "on"), (Any, object()), (float, float("inf")),
    ],
)  # fmt: skip
def test_what_fits_is_taken(annotation: Any, value: Any) -> None:
    check_value(annotation, value, "here")


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, "abc", "here: expected a whole number, got 'abc'"),
        (int, True, "a whole number, got True"),
        (int, 1.5, "a whole number, got 1.5"),
        (float, "1e-3", "a number, got '1e-3'"),
        (float, float("nan"), "a number, got nan"),
        (float, None, "a number, got None"),
        (bool, "banana", "true or false, got 'banana'"),
        (bool, 1, "true or false, got 1"),
        (str, 3, "a text, got 3"),
        (Count, 0, "at least 1, got 0"),
        (Positive, 0.0, "above 0, got 0.0"),
        (Share, 1.5, "at most 1, got 1.5"),
        (str | float, [1], r"a text or a number, got \[1\]"),
        (Sequence[float], [1, "a"], "a number at place 1"),
        (Sequence[str], "abc", "a list, got 'abc'"),
        (tuple[float, float], [1, 2, 3], "at most 2 values"),
        (Mapping[str, float], 3, "a mapping, got 3"),
        (Literal["on", "off"], "up", "'on' or 'off', got 'up'"),
    ],
)
def test_what_does_not_fit_is_named_in_words(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        check_value(annotation, value, "here")


class Base:
    def __init__(self, *, steps: int = 3) -> None:
        self.steps = steps


class Part(Base):
    def __init__(self, lr: float = 0.1, name: "str" = "", anything=None, **options: Any) -> None:
        super().__init__(**options)


def test_arguments_are_checked_against_the_whole_line_of_classes() -> None:
    check_arguments(Part, {"lr": 1, "steps": 4, "name": 5, "anything": 6, "other": 7}, "part.")
    with pytest.raises(Refusal, match=r"part\.lr: expected a number, got 'x'"):
        check_arguments(Part, {"lr": "x"}, "part.")
    with pytest.raises(Refusal, match=r"part\.steps: expected a whole number"):
        check_arguments(Part, {"steps": 0.5}, "part.")


def test_settings_are_filled_from_values_by_name() -> None:
    assert fill(Base, {"steps": 5}, "base.").steps == 5
    with pytest.raises(Refusal, match=r"unknown setting 'base\.step': did you mean 'steps'\?"):
        fill(Base, {"step": 5}, "base.")


def test_leaves_have_dotted_keys() -> None:
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": [2]})) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_parts_check_the_types_of_their_options(toy: Any) -> None:
    with pytest.raises(Refusal, match="agent 'dpo', beta: expected a number, got 'much'"):
        agents.make("dpo", toy.policy(), rewards.make("psnr_y"), beta="much")
    with pytest.raises(Refusal, match="reward 'compass', gamma: expected a number, got None"):
        rewards.make("compass", gamma=None)


@pytest.mark.parametrize(
    "secret",
    [
        {"reward": {"engine": {"token": "hf_abc"}}}, {"a": [{"API_KEY": "hf_abc"}]}, {"wandb.password": "hf_abc"},
        {"urls": ["http://me:hf_abc@host:80"]}, {"urls": "https://:hf_abc@host"},
    ],
)  # fmt: skip
def test_a_secret_among_settings_is_refused_and_not_repeated(secret: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="holds a secret") as refused:
        check_plain(secret)
    assert "hf_abc" not in str(refused.value)


def test_references_refer_to_settings_and_to_nothing_else() -> None:
    check_plain(
        {"out": "runs/${name}", "a": "${stages.${b}.lr}", "token": None, "tokens": "a", "url": "http://h:80/a@b"}
    )
    for text in ("${oc.env:HOME}", "x${ oc.env:HOME,y}", "${hydra:runtime.cwd}", "${${a}:b}", "}${${${a}}:b}"):
        with pytest.raises(Refusal, match=r"a.b='.*: expected \$\{another.setting\}"):
            check_plain({"a": {"b": [text]}})
