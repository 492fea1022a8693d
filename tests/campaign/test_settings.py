"""Every setting of two experiments, each with values that it can't have: no traceback, and nothing of it trains."""

import math
from pathlib import Path
from typing import Any

import pytest
from campaign.tally import Tally

from srgym.errors import Refusal
from srgym.runners.commands import evaluate
from srgym.runners.compare.comparison import look_ahead
from srgym.runners.compare.plan import make_plan
from srgym.runners.loop.loggers import check_loggers
from srgym.runners.run.build import check_order, check_parts
from srgym.runners.run.config import RunConfig, compose, resolve
from srgym.runners.run.overrides import defaults, take_values
from srgym.settings import leaves

pytestmark = pytest.mark.campaign
WRONG = {"abc": "abc", "nan": math.nan, "-1": -1, "0": 0, "1.5": 1.5, "true": True, "null": None, "[a,b]": ["a", "b"],
         "{a: 1}": {"a": 1}}  # fmt: skip


# Not what the default is, and right all the same: whole images, a text for all, numbers that needn't be whole.
FITTING = {
    "env.size=null",
    "env.prompts=abc",
    "env.prompts=true",
    "runner.patience=1.5",
    "lora.alpha=1.5",
    "picture_size=null",
}


# Whose values may be mappings, of names to folders and of labels to metrics.
MAPPINGS = {"policy", "pred", "metrics"}


def keys(experiment: str) -> list[tuple[str, Any]]:
    tree, _ = compose([f"experiment={experiment}"])
    own = {key: value for key, value in tree.items() if key not in ("when", "report")}
    return [(key, value) for key, value in leaves(own) if ".when." not in key]


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_no_setting_of_a_command_ends_in_a_traceback(command: str, tmp_path: Path, tally: Tally) -> None:
    what = f"settings of srgym {command}: a value of another kind for each"
    for key, default in leaves(defaults(command)):
        for text, value in WRONG.items():
            failure, given = None, [f"out={tmp_path}", f"{key}={text}"]
            try:
                if command == "compare":
                    look_ahead(make_plan(["agent=nft", "reward=ssim_y", "metrics=[psnr_y]", *given]))
                else:
                    take_values(["policy=here", *given], defaults(command), ("env",), evaluate._KINDS)
                if nonsense(default, value) or (isinstance(value, dict) and not isinstance(default, dict)):
                    fits = key in MAPPINGS or f"{key}={text}" in FITTING
                    failure = None if fits else f"{key}={text} is taken in place of {default!r}"
            except Refusal:
                pass
            except Exception as error:
                failure = f"{key}={text}: {type(error).__name__}: {error}"
            tally.add(what, failure)
    tally.settle(what)


def checked(config: RunConfig) -> None:
    """What `srgym train --dry-run` looks at before it predicts."""
    check_order(config.stages)
    check_loggers(config.logger)
    seen: list[Any] = []
    for stage in config.stages:
        if stage.kind == "train" and stage.sections not in seen:
            seen.append(stage.sections)
            check_parts(stage.sections, config.tree["heldout"])


def nonsense(default: Any, value: Any) -> bool:
    """Whether a value is of a kind that the default says can't be: text, a list or a mapping for a number, ..."""
    if isinstance(default, bool):
        return not isinstance(value, bool)
    if isinstance(default, int):
        return not isinstance(value, int) or isinstance(value, bool)
    if isinstance(default, float):
        return not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value)
    if isinstance(default, str):
        return not isinstance(value, (str, float, int, type(None)))
    return False


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("experiment", ["smoke", "oars"])
def test_no_setting_ends_in_a_traceback_or_trains_nonsense(experiment: str, tmp_path: Path, tally: Tally) -> None:
    what = f"settings of experiment={experiment}: a value of another kind, or none, for each"
    for key, default in keys(experiment):
        for text, value in WRONG.items():
            failure = None
            try:
                checked(resolve(*compose([f"experiment={experiment}", f"out={tmp_path}", f"{key}={text}"])))
                if nonsense(default, value) and f"{key}={text}" not in FITTING:
                    failure = f"{key}={text} is taken in place of {default!r}"
            except Refusal:
                pass
            except Exception as error:
                failure = f"{key}={text}: {type(error).__name__}: {error}"
            tally.add(what, failure)
    tally.settle(what)
