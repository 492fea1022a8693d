"""The site's pages of reference: made of the registries, signatures, docstrings, configs/ and the commands' help.

python tools/reference.py FOLDER       writes them as Markdown
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from meanings import CONFIGS, comments, header, meaning, yaml_keys

from srgym.envs import sources
from srgym.rewards import registry as rewards
from srgym.runners.commands.cli import COMMANDS
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.run.groups import PARTS, options
from srgym.settings import parameters

# What others may build on: the packages' own names, and these modules'. See docs/versioning.md.
PUBLIC = {
    "srgym": (),
    "srgym.envs": ("srgym.envs.degradation", "srgym.envs.preferences", "srgym.envs.descriptions"),
    "srgym.rewards": ("srgym.rewards.compass.formula", "srgym.rewards.check", "srgym.rewards.kin"),
    "srgym.policies": ("srgym.policies.solvers", "srgym.policies.tokens", "srgym.policies.export"),
    "srgym.agents": ("srgym.agents.groups", "srgym.agents.timesteps"),
    "srgym.runners": ("srgym.runners.measure.statistics", "srgym.runners.measure.methods", "srgym.runners.preferences"),
}

_NOUNS = {"env": "Sources of contexts", "reward": "Rewards", "policy": "Policies", "agent": "Agents"}

# Settings of a section that its part's constructor doesn't take.
_BESIDE = {
    "env": {
        "prompts": "true: contexts carry the source's own prompts; a text: all carry this one; false: none.",
        "descriptions": "what is said of the images, for policies that write: `statistics`, or a file of JSON lines; "
        "null: nothing.",
    }
}


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(list(head)), *(list(map(str, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def code(value: Any) -> str:
    """A value as YAML writes it."""
    plain = {None: "null", True: "true", False: "false"}
    if value is inspect.Parameter.empty:
        return "must be said"
    return f"`{plain[value] if value is None or isinstance(value, bool) else value}`" if value != "" else '`""`'


def said(text: str) -> str:
    """Prose of a docstring or a comment for a table: nothing in it is markup but `code`."""
    text = text.strip().replace("\\", "\\\\")
    parts = text.split("`")
    for mark in "$*_<>[]":
        parts[::2] = [part.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}")) for part in parts[::2]]
    return "`".join(parts)


def settings_of(group: str, name: str) -> list[tuple[str, Any, str]]:
    """Every key of a part's section with its default and its meaning; those of its constructor, then the file's own."""
    maker, path = PARTS[group].find(name), CONFIGS / group / f"{name}.yaml"
    filed = dict(yaml_keys(path)) if path.is_file() else {}
    beside = comments(path) if path.is_file() else {}
    rows = []
    known = PARTS[group].options(maker)
    if known is None:  # it takes others, too, which nothing says
        known = {key: p.default for key, p in parameters(maker)[0].items() if key not in PARTS[group].supplied}
    for key, default in known.items():
        text = meaning(maker, key)
        if not text or text.lower().startswith("see "):
            text = beside.get(key, text)
        rows.append((key, filed.pop(key, default), text))
    for key, value in filed.items():  # keys of nested sections, and what the runner adds to a section
        if key != "name":
            rows.append((key, value, beside.get(key) or _BESIDE.get(group, {}).get(key, "") or _of(rows, key)))
    return rows


def _of(rows: Iterable[tuple[str, Any, str]], key: str) -> str:
    """What is said of the section that a nested key stands in."""
    return next((text for name, _, text in rows if key.startswith(f"{name}.")), "")


def _keys(rows: Iterable[tuple[str, Any, str]], prefix: str = "") -> str:
    return table(("key", "default", "meaning"), ((f"`{prefix}{k}`", code(v), said(text)) for k, v, text in rows))


def _paragraph(target: Callable[..., Any]) -> str:
    return said(" ".join((inspect.getdoc(target) or "").split("\n\n")[0].split()))


def parts_page(group: str) -> str:
    """All registered parts of a kind, each with what it is and its settings."""
    lines = [f"# {_NOUNS[group]}", "", f"Chosen by `{group}=NAME`, and set by `{group}.KEY=VALUE`.", ""]
    registry, facts = PARTS[group], {"reward": _reward_facts, "env": _source_facts}.get(group, dict)()
    short = {long: alias for alias, long in registry.aliases.items()}
    for name in [name for name in registry.names() if name not in registry.aliases]:
        maker = registry.find(name)
        also = f", for short `{short[name]}`" if name in short else ""
        lines += [f"## {name}", "", f"`{maker.__module__}.{maker.__qualname__}`{also}", "", _paragraph(maker), ""]
        if name in facts:
            lines += [facts[name], ""]
        rows = settings_of(group, name)
        lines += [_keys(rows, f"{group}.") if rows else "No settings.", ""]
    return "\n".join(lines)


def _reward_facts() -> dict[str, str]:
    rows = {}
    for row in rewards.listing():
        low, high = row["range"]
        facts = {
            "Needs": ", ".join(row["needs"]) or "nothing but SR",
            "gradient": "reaches SR" if row["differentiable"] else "none",
            "range": f"{low:.3g} to {high:.3g}",
            "better": row["direction"],
            "witness of": row["purpose"] or "neither fidelity nor looks",
            "licence": row["licence"],
            "weights": row["weights"],
            "kin": ", ".join(row["kin"]) or "none",
        }
        rows[row["name"]] = "; ".join(f"**{fact}**: {said(str(value))}" for fact, value in facts.items()) + "."
    return rows


def _source_facts() -> dict[str, str]:
    return {row["name"]: f"Gives {', '.join(f'`{name}`' for name in row['provides'])}." for row in sources.listing()}


def commands_page() -> str:
    """The help of every command, as it prints it."""
    lines = ["# Commands", "", "`srgym COMMAND --help` prints these.", ""]
    rows = ((f"[`{name}`](#{name})", said(text)) for name, text in COMMANDS.items())
    lines += [table(("command", "what it does"), rows), ""]
    for name in COMMANDS:
        text = import_module(f"srgym.runners.commands.{name}").__doc__ or ""
        lines += [f"## {name}", "", "```text", text.strip(), "```", ""]
    return "\n".join(lines)


def settings_page() -> str:
    """Every setting that isn't a part's: of a run, its runner, LoRA and stages, of a comparison, of an evaluation."""
    runner = CONFIGS / "runner" / "default.yaml"
    rows = [(key, value, meaning(RunnerSettings, key) or comments(runner)[key]) for key, value in yaml_keys(runner)]
    parts = (f"[`{group}`]({_FILES[group]})" for group in PARTS)
    lines = [
        "# Settings", "",
        f"`srgym train` takes `KEY=VALUE` of all of these, and those of {', '.join(parts)}. From weakest to strongest: "
        "a group's file, an experiment's `when` blocks, a stage's `when` blocks, the command line, a stage's own "
        "sections, the command line's `stages.NAME...`. `--print` shows what came of it.", "",
        "## A run", "", header(CONFIGS / "config.yaml"), "", _keys(_commented("config")),
        "## The runner", "", "Under `runner.`: how each stage is trained.", "", _keys(rows, "runner."),
        "## A stage", "", "Under `stages.NAME.`, beside sections of its own (`env`, `reward`, `policy`, `agent`, "
        "`runner`, `lora`).", "", _keys(STAGE),
        "## A comparison", "", header(CONFIGS / "compare.yaml"), "", _keys(_commented("compare")),
        "## An evaluation", "", header(CONFIGS / "evaluate.yaml"), "", _keys(_commented("evaluate")),
        "## Experiments", "", "`experiment=NAME` starts from one of these.", "",
        table(("experiment", "what it is"), ((f"`{name}`", said(header(CONFIGS / "experiment" / f"{name}.yaml")))
                                             for name in options("experiment"))),
    ]  # fmt: skip
    return "\n".join(lines)


# The keys of a stage, which `srgym.runners.run.config` reads.
STAGE = [
    ("kind", "train", "train; merge: add the LoRA of `lora_from` to the weights of `start_from`; scorer: train the "
     "compact COMPASS scorer on candidates of the policy."),
    ("start_from", "base", "base: the run's policy; previous; a stage's name; or the folder of a saved policy."),
    ("when", {}, "settings that hold where a part is in use, as the run's own `when`."),
    ("lora_from", inspect.Parameter.empty, "of a merge: the stage whose LoRA is added."),
    ("adapter", "ema", "of a merge: which of its adapters: ema, default or old."),
    ("weight", 1.0, "of a merge: what the LoRA is multiplied by."),
    ("scorer", {}, "of a scorer: its settings, as `experiment=compass_compact` and `finpercep_compact` show them."),
]  # fmt: skip


def _commented(name: str) -> list[tuple[str, Any, str]]:
    path = CONFIGS / f"{name}.yaml"
    said_of, rows = comments(path), []
    for key, value in yaml_keys(path):
        rows.append((key, value, said_of.get(key) or said_of.get(key.rpartition(".")[0], "")))
    return rows


def api_page(package: str) -> str:
    """The public names of a package, and of its modules that are public too, as directives of mkdocstrings."""
    lines = [f"# {package}", "", _about(package), ""]
    told: set[str] = set()
    for module in (package, *PUBLIC[package]):
        if module != package:
            lines += ["", f"## {module}", "", _about(module), ""]
        for name in public_names(module):
            path = _defined(module, name)
            if path is None or path not in told:
                lines.append(_entry(module, name, path, 2 if module == package else 3))
            told.add(path or "")
    return "\n".join(lines) + "\n"


def _about(module: str) -> str:
    return said((import_module(module).__doc__ or "").strip().split("\n\n")[0])


def public_names(module: str) -> list[str]:
    """What a module exports."""
    held = import_module(module)
    return sorted(getattr(held, "_EXPORTS", None) or held.__all__, key=str.lower)


def _defined(module: str, name: str) -> str | None:
    """Where a class or a function is defined; None for a constant, or a function under a name of its own."""
    found = getattr(import_module(module), name)
    own, qualified = getattr(found, "__module__", ""), getattr(found, "__qualname__", "")
    if not callable(found) or getattr(found, "__name__", name) != name:
        return None
    return f"{own}.{qualified}" if own.startswith("srgym.") and qualified.isidentifier() else f"{module}.{name}"


def _entry(module: str, name: str, path: str | None, level: int) -> str:
    found = getattr(import_module(module), name)
    head = f"{'#' * level} {name}\n\n`{module}.{name}"
    if module == "srgym":
        return f"{head}` is [`{path}`][{path}].\n"
    if path is not None:
        return f"::: {path}\n    options:\n      heading_level: {level}"
    if callable(found):
        return f"{head}{inspect.signature(found)}`\n\n{_paragraph(found)}\n"
    return f"{head}`, a constant: `{found!r}`\n"


_FILES = {"env": "sources.md", "reward": "rewards.md", "policy": "policies.md", "agent": "agents.md"}


def pages() -> Iterator[tuple[str, str]]:
    """Every page of reference: its path below docs/, and its Markdown."""
    yield "reference/commands.md", commands_page()
    yield "reference/settings.md", settings_page()
    for group, file in _FILES.items():
        yield f"reference/{file}", parts_page(group)
    for package in PUBLIC:
        yield f"reference/api/{package.replace('.', '_')}.md", api_page(package)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    for path, text in pages():
        target = Path(arguments[0], path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
