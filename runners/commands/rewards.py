"""srgym rewards [NAME ...]: list the rewards, or what is known of some.

srgym rewards                 the table; below a reward that has weights, where they come from
srgym rewards compass dists   everything about two of them
srgym rewards --json          the table as JSON
srgym rewards check NAME [reward.key=value ...] [size=192]
                              run the checks that a reward must pass (shapes, order, batch size, range, gradient);
                              NAME is a registered name, a file of configs/reward, or module:object; the exit code is
                              1 if one fails
"""

import json
from importlib import resources
from typing import Any

from srgym.errors import Refusal
from srgym.rewards.registry import REWARDS, listing
from srgym.runners.commands.arguments import take_flag
from srgym.runners.run.overrides import take_values

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    if arguments and arguments[0] == "check":
        return _check(arguments[1:])
    as_json = take_flag(arguments, "--json")
    rows = listing()
    if arguments:
        for name in arguments:
            REWARDS.check_name(name)
        rows = [row for name in arguments for row in rows if row["name"] == name]
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
    elif arguments:
        for row in rows:
            facts = [f"  {key}: {_plain(value)}" for key, value in row.items() if key != "name"]
            print("\n".join([row["name"], *facts]))
    else:
        _table(rows)
    return 0


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(rows: list[dict[str, Any]]) -> None:
    head = ("name", "needs", "gradient", "range", "better", "licence", "origin", "what it is")
    table = [head]
    for row in rows:
        low, high = row["range"]
        gradient = "yes" if row["differentiable"] else "no"
        needs = ",".join(row["needs"]) or "-"
        span = f"{low:.3g}..{high:.3g}"
        facts = [row[key] for key in ("direction", "licence", "origin", "doc")]
        table.append((row["name"], needs, gradient, span, *facts))
    widths = [max(len(str(line[i])) for line in table) for i in range(len(head) - 1)]
    for line, weights in zip(table, ["none", *(row["weights"] for row in rows)], strict=True):
        print("  ".join([*(f"{cell!s:<{width}}" for cell, width in zip(line, widths, strict=False)), str(line[-1])]))
        if weights != "none":
            print(f"{'':<{widths[0]}}  weights: {weights}")


def _check(arguments: list[str]) -> int:
    names = [argument for argument in arguments if "=" not in argument]
    if len(names) != 1:
        raise Refusal(f"srgym rewards check expects one reward, got {len(names)}: srgym rewards check NAME")
    name = names[0]
    section = _section(name)
    if section is None:
        REWARDS.check_name(name)  # a misspelt name is refused before torch loads
    known = {"reward": section or {}, "size": 192}
    taken = take_values([argument for argument in arguments if "=" in argument], known)[0]
    options = taken["reward"]
    from srgym.rewards.check import check
    from srgym.rewards.registry import make
    from srgym.rewards.serving.readiness import ensure_ready

    reward = make(name, **options) if section is None else make(options)
    ensure_ready(reward)
    report = check(reward, size=int(taken["size"]))
    print(report.table())
    return 0 if report.ok else 1


def _section(name: str) -> dict[str, Any] | None:
    """The file of a reward among the configs, or None."""
    import yaml

    file = resources.files("srgym.configs").joinpath("reward", f"{name}.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8")) if name.isidentifier() and file.is_file() else None
