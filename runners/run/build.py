"""From settings to the parts of a run: task, policy, agent, runner."""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from srgym import agents, policies, rewards
from srgym.agents.registry import AGENTS
from srgym.envs import sources
from srgym.envs.task import SRTask
from srgym.errors import Refusal
from srgym.policies.base import FlowPolicy
from srgym.policies.registry import policy_class
from srgym.rewards.base import Reward
from srgym.rewards.serving.readiness import ensure_ready
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.measure.evaluation import Evaluation

if TYPE_CHECKING:
    from srgym.agents.base import Agent

__all__ = [
    "build_agent", "build_evaluation", "build_policy", "build_reward", "build_task", "check_parts",
    "pick_device", "use_threads",
]  # fmt: skip


def use_threads(threads: int | None) -> None:
    """torch's threads: the number given, else `OMP_NUM_THREADS`, else one a core that this process may use."""
    if threads is None:
        threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(threads)


def pick_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise Refusal(f"runner.device is auto, cpu, cuda or cuda:N, got '{name}'") from error


def build_task(
    env: Mapping[str, Any], reward: Reward | None = None, *, policy_gives: Collection[str] = (), **changes: Any
) -> SRTask:
    """The task of an env section: its source by `name`, the source's options, and `prompts`."""
    options = {**env, **changes}
    prompts = options.pop("prompts", False)
    return SRTask(sources.make(options), reward, prompts=prompts, policy_gives=policy_gives)


def build_reward(section: Any) -> Reward:
    """The reward of a reward section, a name or a mapping as `srgym.rewards.make` takes it; what it asks answers.

    Raises:
        ValueError: if a server that it depends on isn't there, before anything is trained.
    """
    reward = rewards.make(section)
    ensure_ready(reward)
    return reward


def build_policy(section: Mapping[str, Any], env: Mapping[str, Any]) -> FlowPolicy:
    """The policy of a policy section, at the scale of the contexts unless the section says another."""
    own_scale = section.get("scale", 0) is not None
    return policies.make(section if own_scale else {**section, "scale": env.get("scale", 4)})


def build_agent(section: Mapping[str, Any], policy: FlowPolicy, task: SRTask) -> "Agent":
    """The agent of an agent section, see `srgym.agents.make`.

    Raises:
        Incompatible: if it can't learn from this reward or these contexts.
    """
    agent = agents.make(section, policy, task.reward)
    agent.check(task.source.provides)
    return agent


def check_parts(sections: Mapping[str, Any]) -> None:
    """Make what a later stage needs beside the policy, and let it go: hours of training shouldn't end in a misspelling.

    Reward servers may still be down. A reward whose judge would be loaded into this process is left for its stage.
    """
    RunnerSettings(**sections["runner"])
    AGENTS.check_options(*AGENTS.read(sections["agent"], {}))
    reward = None if _loads_a_judge(sections["reward"]) else rewards.make(sections["reward"])
    build_task(sections["env"], reward, policy_gives=policy_class(sections["policy"]["name"]).gives)


def _loads_a_judge(section: Any) -> bool:
    """Whether a reward section asks for an engine in this process."""
    if not isinstance(section, Mapping):
        return False
    return section.get("engine") in ("transformers", "vllm") or any(map(_loads_a_judge, section.values()))


def build_evaluation(
    settings: RunnerSettings,
    env: Mapping[str, Any],
    changes: Mapping[str, Any] | None,
    metrics: Sequence[Any] | Mapping[str, Any],
    reward: str,
    seed: int,
) -> Evaluation | None:
    """The evaluation during the run, on the env section with `changes` (photographs: split=validation), or None.

    Warns where those images are trained on too.
    """
    if not (settings.eval_every or settings.images_every) or not settings.eval_contexts or changes is None:
        return None
    held_out = {**env, **changes}
    if env.get("split") == "all" and all(env[key] == held_out[key] for key in env if key != "split"):
        warnings.warn(
            f"the evaluation during the run is on images that are trained on: env.split=all holds those of "
            f"heldout.split={held_out['split']}, too; env.split=train keeps them apart",
            stacklevel=2,
        )
    task = build_task(env, **changes)
    return Evaluation(task, metrics, reward=reward, seeds=(seed,), limit=settings.eval_contexts)
