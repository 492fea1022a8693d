"""The campaign's table of trials and failures is printed, and kept in docs/reliability.md by `make campaign`."""

import os
import re
from pathlib import Path

import pytest
from campaign.tally import Tally

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_COUNTED = pytest.StashKey["Tally"]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash.setdefault(_COUNTED, Tally())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counted = config.stash.get(_COUNTED, None)
    if counted is None:
        return
    terminalreporter.section("campaign")
    terminalreporter.write_line(counted.table())
    if os.environ.get("SRGYM_CAMPAIGN_PAGE") == "1":
        text = re.sub(r"\| what is tried.*?(?=\n\n|\Z)", lambda _: counted.table(), PAGE.read_text(), flags=re.DOTALL)
        PAGE.write_text(text)
