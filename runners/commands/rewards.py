"""srgym rewards [NAME ...]: list the rewards, or what is known of some.

srgym rewards                 the table; below a reward that has weights, where they come from
srgym rewards compass dists   everything about two of them
srgym rewards --json          the table as JSON
srgym rewards check NAME [reward.key=value ...] [size=192]
                              run the checks that a reward must pass (shapes, order, batch size, range, gradient);
                              NAME is a registered name, a file of configs/reward, or module:object; the exit code is
                              1 if one fails
srgym rewards audit NAME [out=FOLDER] [contexts=16] [samples=8] [attacked=8] [key=value ...]
                              can it be trusted, and how far? Ranks among a policy's samples, faults, attacks on pixels,
                              over-optimisation along a short training's LoRA, and the checks above; writes report.html
                              and audit.json into the folder (runs/audit/NAME) and goes on where it stopped. reward.*,
                              policy.*, env.*, agent.*, runner.* and lora.* are set as in `srgym train`; env.split
                              is of what is audited (of the photographs: test);
                              learnt=FOLDER takes a policy that is trained already. The exit code is 1 if a line fails
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
    if arguments and arguments[0] == "audit":
        return _audit(arguments[1:])
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


def _one(arguments: list[str], command: str) -> tuple[str, dict[str, Any] | None]:
    """The reward that a command line names, and its file among the configs."""
    names = [argument for argument in arguments if "=" not in argument]
    if len(names) != 1:
        raise Refusal(f"srgym rewards {command} expects one reward, got {len(names)}: srgym rewards {command} NAME")
    section = _section(names[0])
    if section is None:
        REWARDS.check_name(names[0])  # a misspelt name is refused before torch loads
    return names[0], section


def _check(arguments: list[str]) -> int:
    name, section = _one(arguments, "check")
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


# What an audit measures by, where a command line says nothing else. SSIMULACRA 2 would take most of the time.
_JUDGES = ("psnr_y", "ssim_y", "structure_texture", "lite0_features", "lite0_statistics", "flip")
_AUDIT = {
    "out": None, "learnt": None, "judges": None, "seed": 0, "contexts": 16, "samples": 8, "attacked": 8, "steps": 6,
    "ascent": 12,
}  # fmt: skip
# The short training: REFL where there is a gradient, NFT where not.
_SHORT = {
    True: ("agent=refl", "runner.iterations=60", "runner.contexts=8", "runner.lr=1e-3"),
    False: ("agent=nft", "agent.group_size=8", "agent.epochs=4", "agent.old=0.3", "runner.iterations=16",
            "runner.contexts=4", "runner.lr=3e-3"),
}  # fmt: skip


def _audit(arguments: list[str]) -> int:
    name, _ = _one(arguments, "audit")
    overrides = [argument for argument in arguments if "=" in argument]
    taken, rest = take_values(overrides, _AUDIT, ("env", "reward", "policy", "agent", "runner", "lora"))
    from pathlib import Path

    from srgym.rewards.kin import JUDGES, installed_judges
    from srgym.runners.report.audit_report import write_audit
    from srgym.runners.reward_models.audit import Audit, AuditSettings
    from srgym.runners.run.build import build_reward
    from srgym.runners.run.config import compose, resolve
    from srgym.runners.run.stages import Run

    # Photographs are those of the test unless another split is asked for; the short training keeps to its own.
    split = next((o.partition("=")[2] for o in rest if o.startswith("env.split=")), None)
    rest = [override for override in rest if not override.startswith("env.split=")]
    folder = Path(taken.pop("out") or Path("runs/audit") / name.replace(":", "."))
    learnt, asked = taken.pop("learnt"), taken.pop("judges")
    judges = [judge for judge in asked or _JUDGES if asked or judge not in JUDGES or judge in installed_judges()]

    def resolved(*before: str) -> Any:
        named = {argument.partition("=")[0] for argument in rest}
        kept = [override for override in before if override.partition("=")[0] not in named]
        common = [f"reward={name}", f"seed={taken['seed']}", f"out={folder / 'training'}", "logger=csv"]
        return resolve(*compose([*common, *kept, *rest]))

    first = resolved("env.size=64").stages[-1].sections
    reward = build_reward(first["reward"])
    env = {**first["env"], "split": split or "test"} if split or first["env"]["name"] == "photographs" else first["env"]
    settings = AuditSettings(first["reward"], first["policy"], env, {judge: judge for judge in judges}, **taken)
    audit = Audit(settings, folder, reward)
    if learnt is None:
        run = resolved("env.size=64", *_SHORT[reward.differentiable])
        Run(run, quiet=True).learn()
        learnt = run.out / "stages" / run.stages[-1].name / "policy"
    page, passes = write_audit(audit, Path(learnt), ["srgym", "rewards", "audit", *arguments])
    print(f"{name}: {'no line fails' if passes else 'some lines fail'}, see {page}")
    return 0 if passes else 1


def _section(name: str) -> dict[str, Any] | None:
    """The file of a reward among the configs, or None."""
    import yaml

    file = resources.files("srgym.configs").joinpath("reward", f"{name}.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8")) if name.isidentifier() and file.is_file() else None
