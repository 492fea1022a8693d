"""The campaign's count: trials and failures."""

from collections import Counter

__all__ = ["Tally"]


class Tally:
    """Trials by what was tried, in order, and the failures among them."""

    def __init__(self) -> None:
        self.trials: Counter[str] = Counter()
        self.failures: dict[str, list[str]] = {}

    def add(self, what: str, failure: str | None = None) -> None:
        """One trial, and what was wrong with it."""
        self.trials[what] += 1
        if failure is not None:
            self.failures.setdefault(what, []).append(failure)

    def settle(self, what: str) -> None:
        """Fail the test if any trial failed."""
        found = self.failures.get(what, [])
        assert self.trials[what], f"nothing was tried of: {what}"
        assert not found, f"{len(found)} of {self.trials[what]}: " + "\n".join(found[:40])

    def table(self) -> str:
        rows = [f"| {what} | {count} | {len(self.failures.get(what, []))} |" for what, count in self.trials.items()]
        return "\n".join(["| what is tried | trials | failures |", "| --- | ---: | ---: |", *rows])
