"""A run: its stages one after the other, each leaving a policy for the next.

The folder of a run:

    config.json               the settings, complete
    run.json                  which stages are done, what they cost, where the final policy is
    stages/NAME/policy/       the stage's policy
    stages/NAME/metrics.csv   its log; tensorboard/ and checkpoints/ beside it
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from pandas import DataFrame

from srgym import policies
from srgym.errors import Refusal
from srgym.files import locked, write_json
from srgym.notebook import table
from srgym.policies.base import Policy
from srgym.policies.merging import merge_policies
from srgym.runners.loop.distributed import World, shard, unshard
from srgym.runners.loop.interrupt import Interrupted
from srgym.runners.loop.loggers import check_loggers, make_loggers
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings, same_config
from srgym.runners.report import check_report, write_report
from srgym.runners.reward_models.stage import train_scorer
from srgym.runners.run import build
from srgym.runners.run.config import RunConfig, StageConfig, compose, is_folder, resolve
from srgym.runners.run.made_with import made_with
from srgym.sealed import read_object, write_folder

__all__ = ["Run", "make_runner", "remove_run"]


class Run:
    """Every stage of a run, in order; what is done already is not done again.

    Args:
        config: the resolved settings.
        quiet: show no progress.
        metrics: what is measured during the run, labels to specifications; None: the stage's reward, and PSNR where
            there is ground truth. reward: the label of the one that is trained on.
        on_evaluation: is told of every evaluation: its rows, what all stages have cost so far, and its seconds.
        on_progress: is told after every iteration what share of the training is done, each stage counting alike.
    """

    def __init__(
        self,
        config: RunConfig,
        quiet: bool = False,
        *,
        metrics: Mapping[str, Any] | None = None,
        reward: str = "reward",
        on_evaluation: Callable[[DataFrame, Mapping[str, float], float], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.config, self.folder, self._quiet = config, config.out, quiet
        self._metrics, self._reward = metrics, reward
        self._on_evaluation, self._on_progress = on_evaluation, on_progress
        self._world = World()

    def __repr__(self) -> str:
        stages = self.config.stages
        done = sum(self._done(stage.name) is not None for stage in stages)
        return f"Run({self.config.name!r} in {self.folder}: {done} of {len(stages)} stages done)"

    def _repr_html_(self) -> str:
        rows = []
        for stage in self.config.stages:
            cost = self._done(stage.name)
            seconds = f"{cost['seconds']:.0f} s" if cost and "seconds" in cost else "not yet"
            rows.append([stage.name, stage.kind, stage.start_from, seconds])
        return table(["stage", "kind", "starts from", "done in"], rows, repr(self))

    def learn(self) -> dict[str, dict[str, float]]:
        """Run all stages and return each one's cost.

        Raises:
            Interrupted: after SIGINT, SIGTERM, SIGHUP or SIGUSR1, once everything is saved.
            LostProcess: if another of the run's processes ended.
            ValueError: if the folder holds a run of other settings, or another process works in it.
        """
        self._world = self._join()
        try:
            costs = self._learn()
        except Interrupted:
            self._world.close()
            raise
        except RuntimeError as error:
            lost = self._world.lost(error)
            if lost is None:
                raise
            raise lost from error
        self._world.close()  # not after an error: the others may be waiting in the midst of something
        return costs

    def _learn(self) -> dict[str, dict[str, float]]:
        with locked(self.folder) if self._world.main else nullcontext():
            return self._run_stages()

    def _run_stages(self) -> dict[str, dict[str, float]]:
        if self._world.main:
            self._claim()
        self._world.barrier()
        self._look_ahead()
        costs: dict[str, dict[str, float]] = {}
        for stage in self.config.stages:
            done = self._world.gather(self._done(stage.name))[0]
            if done is None and (stage.kind == "train" or self._world.main):
                done = {"train": self._train, "merge": self._merge, "scorer": self._scorer}[stage.kind](stage)
                if self._world.main:
                    self._record(stage.name, done)
            self._world.wait()
            costs[stage.name] = done or {}
        return costs

    def _look_ahead(self) -> None:
        """Check the stages that come after the next, which checks itself, and what the report will need."""
        if self.config.tree.get("report") and self._world.main:
            check_report(self.config.tree["report"], self.config.stages[-1].sections["env"])
        build.check_order(self.config.stages)
        check_loggers(self.config.logger)
        seen: list[Any] = []
        for stage in [s for s in self.config.stages if s.kind == "train" and not self._done(s.name)]:
            if seen and stage.sections not in seen:
                build.check_parts(stage.sections, self.config.tree["heldout"])
            seen.append(stage.sections)

    def _join(self) -> World:
        section = self.config.stages[0].sections["runner"]
        return World.start(build.pick_device(section["device"]), section["patience"])

    @property
    def policy_folder(self) -> Path:
        """The last stage's policy."""
        return self._stage_folder(self.config.stages[-1].name) / "policy"

    def report(self) -> Path | None:
        """Write the report that the settings ask for, and return its path; None if they ask for none."""
        section = self.config.tree.get("report")
        if not section or not self._world.main:
            return None
        return write_report(self.folder, section)

    def _stage_folder(self, name: str) -> Path:
        return self.folder / "stages" / name

    # The record

    def _claim(self) -> None:
        """Write the settings into the folder, or check that those it holds are these."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        now = json.loads(json.dumps(self.as_json()))
        if path.is_file():
            before = read_object(path, {"stages": dict, "seed": int})
            begun = [name for name in before["stages"] if self._begun(name)]
            if begun:
                same_config({"seed": before["seed"]}, {"seed": now["seed"]}, self.folder)
            for name in begun:
                if name in now["stages"]:
                    same_config(before["stages"][name], now["stages"][name], self.folder, f"stages.{name}.")
        write_json(path, now)

    def _begun(self, name: str) -> bool:
        """Whether a stage has left anything that other settings would contradict."""
        return any((self._stage_folder(name) / made).is_dir() for made in ("checkpoints", "policy", "scorer"))

    def as_json(self) -> dict[str, Any]:
        """The complete settings, as JSON values."""
        config = self.config
        return {
            "name": config.name, "seed": config.seed, "overrides": config.overrides,
            "config_dirs": [str(folder) for folder in config.config_dirs],
            "stages": {stage.name: stage.as_json() for stage in config.stages}, "tree": config.tree,
        }  # fmt: skip

    def _read_record(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return read_object(path, {"stages": dict}) if path.is_file() else {"stages": {}}

    def _done(self, name: str) -> dict[str, float] | None:
        cost: dict[str, float] | None = self._read_record()["stages"].get(name)
        folder = self._stage_folder(name)
        made = (folder / "policy" / "policy.json", folder / "scorer" / "model.json")
        return cost if any(path.is_file() for path in made) else None

    def _record(self, name: str, cost: Mapping[str, float]) -> None:
        record = self._read_record()
        record["stages"][name] = dict(cost)
        record["complete"] = all(stage.name in record["stages"] for stage in self.config.stages)
        record["policy"] = str(self.policy_folder.relative_to(self.folder))
        record["made_with"] = made_with()
        record["command"] = self.config.command
        write_json(self.folder / "run.json", record)

    # Stages

    def _train(self, stage: StageConfig) -> dict[str, float]:
        folder = self._stage_folder(stage.name)
        runner, agent, loggers = self._build(stage, folder)
        try:
            cost = runner.learn()
        except Interrupted as stopped:
            raise Interrupted(stopped.signal, self.folder) from None
        finally:
            for logger in loggers:
                logger.close()
        policy = runner.policy
        if runner.world.sharded:
            unshard(policy, runner.world.main)
        else:
            policy.cpu()
        if runner.world.main:
            with agent.averaged():
                write_folder(folder / "policy", policy.save)
        return cost

    def _build(self, stage: StageConfig, folder: Path) -> tuple[Runner, Any, list[Any]]:
        sections, seed = stage.sections, self.config.seed
        settings = RunnerSettings(**sections["runner"])
        build.use_threads(settings.threads)
        reward = build.build_reward(sections["reward"])
        device = build.pick_device(settings.device)
        world = replace(self._world, sharded=settings.parallel == "fsdp" and not self._world.alone)
        policy = self._start(stage)
        task = build.build_task(sections["env"], reward, policy_gives=policy.gives)
        if world.sharded:
            shard(policy, device, settings.microbatch)
        policy.to(device)
        agent = build.build_agent(sections["agent"], policy, task)
        metrics = self._metrics or {"reward": reward, **({"psnr_y": "psnr_y"} if "hr" in task.provides else {})}
        evaluation = build.build_evaluation(
            settings, sections["env"], self.config.tree.get("heldout"), metrics, self._reward, seed
        )
        earlier = self._cost_before(stage.name)
        loggers: list[Any] = []

        def on_evaluation(frame: DataFrame, cost: Mapping[str, float], seconds: float) -> None:
            if self._on_evaluation is not None and world.main:
                total = {key: value + earlier.get(key, 0.0) for key, value in cost.items()}
                self._on_evaluation(frame, total, seconds)

        trained = [other.name for other in self.config.stages if other.kind == "train"]

        def on_progress(share: float) -> None:
            if self._on_progress is not None and world.main:
                self._on_progress((trained.index(stage.name) + share) / len(trained))

        runner = Runner(
            task, policy, agent, settings, seed=seed, folder=folder, loggers=loggers, evaluation=evaluation,
            on_evaluation=on_evaluation, on_progress=on_progress, name=stage.name, config=stage.as_json(),
            quiet=self._quiet, world=world,
        )  # fmt: skip
        runner.resume()
        name = f"{self.config.name}-{stage.name}"
        if world.main:
            loggers += make_loggers(self.config.logger, folder, name, runner.config, runner.iteration or -1)
        return runner, agent, loggers

    def _cost_before(self, name: str) -> dict[str, float]:
        """What the stages before a stage have cost together."""
        total: dict[str, float] = {}
        for stage in self.config.stages[: [stage.name for stage in self.config.stages].index(name)]:
            for key, value in self._read_record()["stages"].get(stage.name, {}).items():
                total[key] = total.get(key, 0.0) + value
        return total

    def _start(self, stage: StageConfig) -> Policy:
        """The policy that a stage starts from, with adapters if the stage trains some."""
        lora = stage.sections["lora"]
        if stage.start_from == "base":
            policy = build.build_policy(stage.sections["policy"], stage.sections["env"])
        else:
            start = stage.start_from
            policy = policies.load(Path(start) if is_folder(start) else self._stage_folder(start) / "policy")
        if policy.has_adapters and lora is None:
            raise build.unmerged(stage)
        if lora is not None and not policy.has_adapters:
            targets = tuple(lora["targets"]) if lora.get("targets") else None
            policy.add_adapters(lora["rank"], lora["alpha"], targets, seed=self.config.seed)
        return policy

    def _merge(self, stage: StageConfig) -> dict[str, float]:
        started = time.monotonic()
        options = stage.options
        target = self._stage_folder(stage.start_from) / "policy"
        source = self._stage_folder(options["lora_from"]) / "policy"
        merged = merge_policies(target, source, options.get("adapter", "ema"), float(options.get("weight", 1.0)))
        write_folder(self._stage_folder(stage.name) / "policy", merged.save)
        return {"seconds": time.monotonic() - started}

    def _scorer(self, stage: StageConfig) -> dict[str, float]:
        build.use_threads(stage.sections["runner"]["threads"])
        policy = build.build_policy(stage.sections["policy"], stage.sections["env"])
        options, folder = stage.options.get("scorer", {}), self._stage_folder(stage.name)
        return train_scorer(options, policy, stage.sections["env"], folder, self.config.seed)


def make_runner(*overrides: str, quiet: bool = True, config_dirs: Sequence[Path] = (), **settings: Any) -> Run:
    """A run from Python, with the same settings as `srgym train`.

    Args:
        overrides: as on the command line: `"experiment=oars"`, `"runner.lr=1e-3"`.
        quiet: show no progress.
        config_dirs: folders of the user's own configs.
        settings: the same by keyword, for keys without a dot: `make_runner(experiment="oars", seed=3)`.

    Returns:
        A run whose `.learn()` trains every stage and returns what each of them cost.
    """
    words = [*overrides, *(f"{key}={value}" for key, value in settings.items())]
    tree, line = compose(words, config_dirs)
    return Run(resolve(tree, line), quiet=quiet)


def remove_run(folder: Path) -> None:
    """Delete a run's folder, if that is what it is.

    Raises:
        ValueError: if the folder holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise Refusal(f"{folder} isn't the folder of a run (it has no config.json), so it isn't overwritten")
    if folder.is_dir():
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
