"""The loop: collect, score, prepare, minibatches, loss, step, and then log, evaluate, checkpoint."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.groups import with_scores
from srgym.agents.registry import AGENTS
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.runners.loop import state
from srgym.runners.loop.checkpoint import Checkpoint, Checkpoints
from srgym.runners.loop.collect import collect, imagined, statistics
from srgym.runners.loop.distributed import World, agree, whole
from srgym.runners.loop.health import Failed, Health, check_terms
from srgym.runners.loop.interrupt import Interrupted, listening
from srgym.runners.loop.loggers import Logger
from srgym.runners.loop.meter import Meter, instrumented
from srgym.runners.loop.progress import Display
from srgym.runners.loop.sampler import ContextSampler
from srgym.runners.loop.schedule import learning_rate
from srgym.runners.loop.settings import RunnerSettings, same_config
from srgym.runners.measure.evaluation import Evaluation, contact_sheet
from srgym.runners.measure.methods import Method, Samples

if TYPE_CHECKING:
    from pandas import DataFrame

    from srgym.agents.base import Agent
    from srgym.envs.task import SRTask

__all__ = ["Runner"]

_SHOWN = 4  # contexts in a picture


class Runner:
    """Trains one policy by one agent on one task.

    Args:
        task: contexts and their scores.
        policy: with the weights it starts from, and its adapters where it has them.
        agent: built on that policy.
        settings: see `RunnerSettings`.
        seed: of the contexts' order and of every sample's noise.
        folder: where checkpoints go.
        loggers: where numbers and pictures go.
        evaluation: what is measured during the run, of the averaged weights and with the same noise each time; or
            None.
        on_evaluation: is told of every evaluation: its rows, what was spent so far (`cost`), and the seconds it took.
        on_progress: is told after every iteration what share of the budget is spent, in [0, 1].
        name: the stage's, for messages.
        config: what is written into checkpoints; a checkpoint of another config isn't resumed.
        world: the processes that the run is shared by.
    """

    def __init__(
        self,
        task: "SRTask",
        policy: Policy,
        agent: "Agent",
        settings: RunnerSettings,
        *,
        seed: int,
        folder: Path,
        loggers: Sequence[Logger] = (),
        evaluation: Evaluation | None = None,
        on_evaluation: Callable[["DataFrame", Mapping[str, float], float], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
        name: str = "main",
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.task, self.policy, self.agent, self.settings = task, policy, agent, settings
        self.name, self.folder = name, folder
        self.config: dict[str, Any] = json.loads(json.dumps({**(config or {}), "seed": seed}))
        self._seed, self._loggers = seed, loggers
        self.evaluation, self._on_evaluation, self._on_progress = evaluation, on_evaluation, on_progress
        self._quiet = quiet or not self.world.main
        self._checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        agent_name = AGENTS.name_of(type(agent))
        self._health = Health(name, task.reward.name, agent_name, settings.patience_rewards, self._checkpoints.folder)
        self._sampler = ContextSampler(len(task), seed)
        named = policy.trainable_parameters()
        if not named:
            raise Refusal(f"policy '{policy.name}' has no trainable parameters: add adapters, or unfreeze it")
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named}
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in named],
            lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay,
        )  # fmt: skip
        self.meter = Meter(policy)
        self.iteration, self.updates, self.images, self.skipped = 0, 0, 0, 0
        self._evaluated: int | None = None
        self._spent, self._started = 0.0, time.monotonic()
        self._agreed, self._elsewhere = (0.0, False), {"forwards": 0.0, "flops": 0.0}
        self._queue: deque[Future[Any]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    # Where the run stands

    @property
    def seconds(self) -> float:
        """Wall-clock spent, over all sessions."""
        return self._spent + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]; 1 too when the agent says that it's done."""
        seconds, finished = (self.seconds, self.agent.finished) if self.world.alone else self._agreed
        if finished:
            return 1.0
        return self.settings.budget.progress(self.iteration, self.images, seconds)

    @property
    def cost(self) -> dict[str, float]:
        """What was spent so far: iterations, optimiser updates, images scored, seconds, forwards and model FLOPs."""
        return {
            "iterations": self.iteration, "updates": self.updates, "images": self.images,
            "seconds": self.seconds, "forwards": self.meter.forwards + int(self._elsewhere["forwards"]),
            "flops": self.meter.flops + self._elsewhere["flops"],
        }  # fmt: skip

    def learn(self) -> dict[str, float]:
        """Run until the budget is spent, and return `cost`.

        Raises:
            Interrupted: after SIGINT, SIGTERM, SIGHUP or SIGUSR1, once everything is saved.
            Failed: when nothing is learnt any more, or what is learnt are no numbers.
            Exception: whatever the reward, the agent or the source raises, with a note of where the run was.
        """
        self._started = time.monotonic()
        display = None if self._quiet else Display(self.name)
        with listening(insistent=self.world.alone) as stop, self._working():
            self._agree(None)
            try:
                if not self.iteration:
                    self._log(self._evaluate())
                while self.progress < 1:
                    self._step(display)
                    stopped = self._agree(stop.number)
                    if stopped is not None:
                        self.save()
                        raise Interrupted(stopped, self.folder)
                self._finish()
            except (Interrupted, Failed):
                raise
            except Exception as error:
                error.add_note(self._health.place(self.iteration))
                raise
            finally:
                if display is not None:
                    display.close()
        return self.cost

    def _agree(self, signal: int | None) -> int | None:
        """The signal that any process got; and from here on all see the same time and the same end."""
        if self.world.alone:
            return signal
        states = self.world.gather(
            {"seconds": self.seconds, "finished": self.agent.finished, "signal": signal, "iteration": self.iteration}
        )
        seconds, finished, agreed = agree(states)
        self._agreed = (seconds, finished)
        return agreed

    def _count_elsewhere(self) -> None:
        own = {"forwards": self.meter.forwards, "flops": self.meter.flops}
        self._elsewhere = {name: total - own[name] for name, total in self.world.sum(own).items()}

    def _finish(self) -> None:
        self._log(self._evaluate())  # nothing where the last iteration knew that it was the last
        self.save()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(instrumented(self.policy, self.meter, self.settings.autocast))
            if self.settings.prefetch:
                self._pool = stack.enter_context(ThreadPoolExecutor(1, "contexts"))
            try:
                yield
            finally:
                for future in self._queue:
                    future.cancel()
                self._queue.clear()
                self._pool = None

    # One iteration

    def _step(self, display: Display | None) -> None:
        before, waited, rollout = time.monotonic(), self.meter.waited, self._collect()
        self.images += sum(self.world.gather(len(rollout)))
        scores, start = self.world.scores(rollout)
        logged = statistics(scores)
        self._health.scored(self.iteration, len(scores), logged)
        rollout = rollout if scores is rollout else with_scores(rollout, scores, start)
        rows = self.agent.prepare(rollout)
        counted = {name: float(value) for name, value in self.agent.stats.items()} | {"rows": float(len(rows))}
        logged |= {f"agent/{name}": value for name, value in self.world.sum(counted).items()}
        self._health.learnt(self.iteration, logged["agent/rows"])
        logged |= self._learn(rows, rollout)
        self.agent.after_iteration()
        self.iteration += 1
        if not self.world.alone:
            self._count_elsewhere()
        logged |= {f"cost/{name}": value for name, value in self.cost.items() if name != "iterations"}
        waited = self.meter.waited - waited
        logged |= {"cost/iteration_seconds": time.monotonic() - before, "cost/waiting_seconds": waited}
        self._after(logged, rollout, display)

    def _collect(self) -> TensorDict:
        """A scored rollout. If a context or the reward fails, what was learnt so far is saved before that is raised."""
        taken = self._sampler.taken
        try:
            return collect(
                self.task, self.policy, self.agent, self._next_context(),
                seed=self._seed, iteration=self.iteration, rollout_batch=self.settings.rollout_batch, meter=self.meter,
            )  # fmt: skip
        except Exception:
            self._sampler.taken = taken  # the iteration is done again
            if self.world.alone:  # else the others would have to save, too
                self.save()
            raise

    def _after(self, logged: dict[str, float], rollout: TensorDict, display: Display | None) -> None:
        """Log, evaluate and checkpoint, where their turn has come."""
        settings, last = self.settings, self.progress >= 1
        if _due(settings.eval_every, self.iteration) or last:
            logged |= self._evaluate()
        if _due(settings.log_every, self.iteration) or last or any(name.startswith("eval/") for name in logged):
            self._log(logged)
        if self.evaluation is not None and _due(settings.images_every, self.iteration):
            self._picture()
        if not last and _due(settings.checkpoint_every, self.iteration):
            self.save()
        if self._on_progress is not None:
            self._on_progress(self.progress)
        if display is not None:
            wanted = ("reward/mean", "loss", "eval/reward")
            display.update(self.iteration, self.progress, self.seconds, {k: logged[k] for k in wanted if k in logged})

    def _next_context(self) -> Any:
        count = self.settings.contexts
        if self._pool is None:
            return self.task.context(self.world.share(self._sampler.take(count)))
        while len(self._queue) <= self.settings.prefetch:
            indices = self._sampler.peek(count, ahead=count * len(self._queue))
            self._queue.append(self._pool.submit(self.task.context, self.world.share(indices)))
        self._sampler.take(count)
        return self._queue.popleft().result()

    def _learn(self, rows: TensorDict, rollout: TensorDict) -> dict[str, float]:
        """The iteration's optimiser steps; as many on every process."""
        logged: dict[str, float] = {}
        spare = rows
        if self.world.sharded and not len(rows):
            spare = self.agent.prepare(imagined(rollout))  # one that has no rows must keep step with the others
        batches = iter(self.agent.batches(rows)) if len(rows) else iter(())
        while self.world.any((batch := next(batches, None)) is not None):
            if self.world.any(batch is not None and len(batch) > 0):
                logged |= self._update(batch, spare)
        return logged

    def _update(self, rows: TensorDict | None, spare: TensorDict) -> dict[str, float]:
        """One optimiser step on all rows, accumulated over microbatches weighted by their share of the rows."""
        self._optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part, share in self.world.parts(rows, self.settings.microbatch, spare):
            with self.policy.adapter("default"):
                terms = self.agent.loss(part)
                check_terms(terms, type(self.agent).__name__)
                objective = sum((value for key, value in terms.items() if key.startswith("loss_")), torch.zeros(()))
                torch.autograd.backward(objective * share)
            for key, value in [("loss", objective), *terms.items()]:
                sums[key] = sums.get(key, 0.0) + (share * float(value.detach()) if share else 0.0)
        sums = self.world.sum(sums)
        self.world.sum_gradients(list(self._names))
        rate = learning_rate(self.settings.lr, self.settings.schedule, self.settings.warmup, self.progress)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(list(self._names), self.settings.clip)))
        self._take_step(rate, norm, sums)
        logged = {
            key.replace("loss_", "loss/", 1) if key.startswith("loss") else f"agent/{key}": value
            for key, value in sums.items()
        }
        return {**logged, "optim/gradient_norm": norm, "optim/lr": rate, "optim/skipped": float(self.skipped)}

    def _take_step(self, rate: float, norm: float, terms: Mapping[str, float]) -> None:
        if not math.isfinite(norm):
            self.skipped += 1
            self._health.skipped(self.iteration, self.skipped)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.updates += 1
        self.agent.observe(terms)
        self.agent.after_update()

    # What is seen of it

    def _log(self, values: Mapping[str, float]) -> None:
        if not values:
            return
        for logger in self._loggers:
            logger.scalars(self.iteration, values)

    def _evaluate(self) -> dict[str, float]:
        """The held-out numbers, once an iteration; nothing for a run without evaluations."""
        if self.evaluation is None or not self.settings.eval_every or self._evaluated == self.iteration:
            return {}
        self._evaluated, started, cost = self.iteration, time.monotonic(), self.cost
        with self.agent.averaged():
            frame = self.evaluation.measure(self._methods())
        if self._on_evaluation is not None:
            self._on_evaluation(frame, cost, time.monotonic() - started)
        return self.evaluation.means(frame)

    def _methods(self) -> dict[str, Method]:
        return {"policy": Samples(self.policy, self.settings.eval_steps)}

    def _picture(self) -> None:
        assert self.evaluation is not None
        with self.agent.averaged():
            grid = contact_sheet(self.evaluation.pictures(self._methods(), _SHOWN))
        for logger in self._loggers:
            logger.image(self.iteration, "pictures/lr_sr_hr", grid)

    # Checkpoints

    def save(self) -> Path:
        """Write a checkpoint of everything the rest of the run depends on; the main process writes it for all.

        Raises:
            Failed: if a weight isn't finite, so that no checkpoint holds it.
        """
        generators, generator_values = state.generator_state()
        agent_tensors, agent_values = state.split(self.agent.state())
        tensors: dict[str, Mapping[str, Tensor]] = {
            "policy": state.policy_state(self.policy),
            "optimizer": state.optimizer_state(self._optimizer, self._names),
            "generators": generators,
        }
        if agent_tensors:
            tensors["agent"] = agent_tensors
        values = {
            "stage": self.name, "iteration": self.iteration, "updates": self.updates, "images": self.images,
            "skipped": self.skipped, "evaluated": self._evaluated, "seconds": self.seconds,
            "forwards": self.cost["forwards"], "flops": self.cost["flops"], "contexts_taken": self._sampler.taken,
            "agent": agent_values, "generators": generator_values, "settings": asdict(self.settings),
            "config": self.config,
        }  # fmt: skip
        tensors = {stem: {name: whole(t) for name, t in named.items()} for stem, named in tensors.items()}
        self._health.weights(self.iteration, tensors["policy"].items())
        if self.world.main:
            self._checkpoints.save(self.iteration, tensors, values)
        self.world.barrier()
        return self._checkpoints.folder_of(self.iteration)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint in the folder; False if there is none.

        Raises:
            ValueError: if the checkpoint is of another config.
        """
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            return False
        self._load(checkpoint)
        return True

    def _load(self, checkpoint: Checkpoint) -> None:
        values = checkpoint.values
        same_config(values["config"], self.config, self.folder)
        state.load_policy_state(self.policy, checkpoint.tensors["policy"])
        state.load_optimizer_state(self._optimizer, self._names, checkpoint.tensors.get("optimizer", {}))
        state.load_generator_state(checkpoint.tensors["generators"], values["generators"])
        self.agent.load_state({**checkpoint.tensors.get("agent", {}), **values["agent"]})
        self.iteration, self.updates, self.images = values["iteration"], values["updates"], values["images"]
        self.skipped, self._spent, self._evaluated = values["skipped"], values["seconds"], values.get("evaluated")
        if self.world.main:  # they are sums over the processes
            self.meter.forwards, self.meter.flops = values["forwards"], values["flops"]
        self._sampler.taken = values["contexts_taken"]


def _due(every: int, iteration: int) -> bool:
    return every > 0 and iteration % every == 0
