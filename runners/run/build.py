"""From settings to the parts of a run: task, policy, agent, runner."""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from srgym import agents, policies, rewards
from srgym.agents.registry import AGENTS
from srgym.envs import sources
from srgym.envs.task import SRTask
from srgym.errors import MissingFile, Refusal
from srgym.policies.base import Policy
from srgym.policies.registry import POLICIES, policy_class
from srgym.policies.skeleton import skeleton
from srgym.rewards.base import Reward
from srgym.rewards.info import RewardInfo
from srgym.rewards.serving.readiness import ensure_ready
from srgym.runners.loop.settings import RunnerSettings
from srgym.runners.measure.evaluation import Evaluation
from srgym.runners.run.config import StageConfig, is_folder
from srgym.settings import check_value

if TYPE_CHECKING:
    from srgym.agents.base import Agent

__all__ = [
    "any_reward", "build_agent", "build_evaluation", "build_policy", "build_reward", "build_skeleton", "build_task",
    "check_order", "check_parts", "larger_crops", "pick_device", "unmerged", "use_threads",
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
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise Refusal(f"runner.device: expected auto, or a device of this machine, got '{name}' ({reason})") from error


def build_task(
    env: Mapping[str, Any], reward: Reward | None = None, *, policy_gives: Collection[str] = (), **changes: Any
) -> SRTask:
    """The task of an env section: its source by `name`, the source's options, `prompts` and `descriptions`."""
    options = {**env, **changes}
    prompts = options.pop("prompts", False)
    descriptions = options.pop("descriptions", None)
    check_value(bool | str, prompts, "env.prompts")
    check_value(str | None, descriptions, "env.descriptions")
    source = sources.make(options)
    return SRTask(source, reward, prompts=prompts, descriptions=descriptions, policy_gives=policy_gives)


def larger_crops(task: SRTask, env: Mapping[str, Any], size: int | None) -> SRTask:
    """The contexts that pictures show: crops of `size` HR pixels where those of the task are crops and every image has
    room for such, else the task's own.
    """
    if not size or env.get("size") is None:
        return task
    try:
        return build_task(env, size=size)
    except Refusal:
        return task


def build_reward(section: Any) -> Reward:
    """The reward of a reward section, a name or a mapping as `srgym.rewards.make` takes it; what it asks answers.

    Raises:
        ValueError: if a server that it depends on isn't there, before anything is trained.
    """
    reward = rewards.make(section)
    ensure_ready(reward)
    return reward


def build_policy(section: Mapping[str, Any], env: Mapping[str, Any]) -> Policy:
    """The policy of a policy section, at the scale of the contexts unless the section says another."""
    return policies.make(_scaled({"policy": section, "env": env}))


def build_agent(section: Mapping[str, Any], policy: Policy, task: SRTask) -> "Agent":
    """The agent of an agent section, see `srgym.agents.make`.

    Raises:
        Incompatible: if it can't learn from this reward or these contexts.
    """
    _check_size(policy, task)
    agent = agents.make(section, policy, task.reward)
    agent.check(task.provides)
    return agent


def _check_size(policy: Policy, task: SRTask) -> None:
    """Refuse contexts of another size than the only one that a policy takes."""
    size = task.source.size
    if policy.window is not None and size is not None and tuple(size) != tuple(policy.window):
        own, given = (" x ".join(map(str, sides)) for sides in (policy.window, size))
        raise Refusal(
            f"policy '{policy.name}' takes LR images of {own}, and the source '{task.source.name}' gives {given}: set "
            f"env.size={policy.window[0] * policy.scale}"
        )


def unmerged(stage: StageConfig) -> Refusal:
    """Of a stage without a LoRA that starts from a policy with one."""
    return Refusal(
        f"stage '{stage.name}' trains all weights (lora=null) but starts from '{stage.start_from}', which has "
        "adapters: merge them first, or let the stage go on with the LoRA"
    )


def check_order(stages: Sequence[StageConfig]) -> None:
    """Refuse a stage that would train all weights of a policy which an earlier one has put adapters on, and one that
    starts from a folder which isn't there.

    Raises:
        Refusal, MissingFile: naming the stage.
    """
    carrying: set[str] = set()
    for stage in stages:
        if is_folder(stage.start_from) and not (Path(stage.start_from) / "policy.json").is_file():
            raise MissingFile(f"stage '{stage.name}' starts from {stage.start_from}: no policy was saved there")
    for stage in [stage for stage in stages if stage.kind == "train"]:
        inherits = stage.start_from in carrying
        if inherits and stage.sections["lora"] is None:
            raise unmerged(stage)
        if inherits or stage.sections["lora"] is not None:
            carrying.add(stage.name)


def check_parts(sections: Mapping[str, Any], heldout: Mapping[str, Any] | None = None) -> "Agent | None":
    """Make what a stage needs, its policy without storage: hours of training shouldn't end in a misspelling.

    Reward servers may still be down. A reward whose judge would be loaded into this process is left for its stage.

    Args:
        heldout: what changes in the env section for the evaluation during the run; None: there is none.

    Returns:
        The stage's agent, on that policy; None on a policy of somebody's, which may not be made without storage.
    """
    settings = RunnerSettings(**sections["runner"])
    pick_device(settings.device)
    POLICIES.check_options(*POLICIES.read(_scaled(sections), {}))
    AGENTS.check_options(*AGENTS.read(sections["agent"], {}))
    loads = _loads_a_judge(sections["reward"])
    reward = any_reward() if loads else rewards.make(sections["reward"])
    kind = sections["policy"]["name"]
    task = build_task(sections["env"], None if loads else reward, policy_gives=policy_class(kind).gives)
    agent = None
    if kind in POLICIES.builtin:
        policy = build_skeleton(sections)
        _check_size(policy, task)
        agent = agents.make(sections["agent"], policy, reward)
        agent.check(task.provides)
    if heldout is not None and settings.eval_every:
        build_task(sections["env"], **heldout)
    return agent


def build_skeleton(sections: Mapping[str, Any]) -> Policy:
    """A stage's policy, at the scale of its contexts, with the adapters that the stage trains, on the meta device."""
    name, options = POLICIES.read(_scaled(sections), {})
    return skeleton(name, options, sections["lora"])


def _scaled(sections: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's policy section, at the scale of its contexts unless it says another."""
    own = dict(sections["policy"])
    return own if own.get("scale", 0) is not None else {**own, "scale": sections["env"].get("scale") or 4}


def any_reward() -> Reward:
    """What stands for a reward that isn't loaded: whatever an agent asks of one, it has."""
    return Reward(lambda sr: sr.mean((1, 2, 3)), RewardInfo("any", "", range=(0.0, 1.0), differentiable=True))


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
