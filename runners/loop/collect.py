"""Collecting: contexts in, the rollout TensorDict out, scored."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict

from srgym.agents.base import Need
from srgym.policies.base import Policy, repeat
from srgym.policies.noise import derive_seeds
from srgym.runners.loop.meter import Meter
from srgym.runners.loop.scoring import Scoring

if TYPE_CHECKING:
    from srgym.agents.base import Agent
    from srgym.envs.task import SRTask

__all__ = ["collect", "imagined", "statistics"]


def collect(
    task: "SRTask",
    policy: Policy,
    agent: "Agent",
    context: Any,
    *,
    seed: int,
    iteration: int,
    rollout_batch: int | None = None,
    meter: Meter | None = None,
) -> TensorDict:
    """What an agent learns from: K samples of each of G contexts with their rewards, or the contexts alone.

    Args:
        context: of G contexts, on any device.
        seed, iteration: with the contexts' indices they give every sample's seed.
        rollout_batch: samples drawn at once. A judge that answers from elsewhere scores them while the next are drawn.
        meter: is told how long was waited for a judge after the last were.

    Returns:
        TensorDict [N], N = G K, groups contiguous: `index`, `group`, `seed` int64, `lr`, `hr` where there is one,
        `cond`; a preference dataset's `win` and `lose`, or true documents' `tokens` and `place`, for an agent that
        needs them; and, unless the agent samples
        for itself, what `rollout` gives, `reward` [N] (0 where invalid), `valid` [N] and `components`.
    """
    size = agent.group_size
    index = context.index.repeat_interleave(size)
    place = torch.arange(size).repeat(len(context.index))
    seeds = derive_seeds(seed, iteration, index, place)
    device = policy.device
    batch = TensorDict(
        {"index": index, "group": torch.arange(len(context.index)).repeat_interleave(size), "seed": seeds},
        batch_size=[len(seeds)],
    )
    for name in ("lr", "hr"):
        images = getattr(context, name)
        if images is not None:
            batch[name] = images.repeat_interleave(size, 0)
    batch = batch.to(device)
    obs = {"lr": context.lr.to(device), "prompt": context.prompt}
    with torch.no_grad():
        if agent.sampling is None:
            if not agent.encodes:
                batch["cond"] = repeat(policy.encode(obs), size)
            if Need.PREFERENCES in agent.needs:
                source: Any = task.source  # one with preferences, as `agent.check` has seen
                batch.update(source.pairs(index).to(device))
            if Need.DOCUMENTS in agent.needs:
                batch.update(_documents(policy, context, obs, size))
            return batch
        scoring, parts = Scoring(task, policy, context, size), []
        with policy.adapter(agent.sampler):
            for part in _drawn(policy, agent.sampling, obs, seeds, rollout_batch):
                scoring.add(part)
                parts.append(part)
    rolled: TensorDict = torch.cat(parts) if len(parts) > 1 else parts[0]
    batch.update(rolled)
    if Need.CREDIT in agent.needs:
        batch["answers"] = _answers(policy, context, rolled, size)
    scored = scoring.scores(meter)
    batch["reward"] = torch.nan_to_num(scored.total).float().to(device)
    batch["valid"] = scored.valid.to(device)
    components = {name: value.to(device) for name, value in scored.components.items()}
    batch["components"] = TensorDict(components, batch_size=batch.batch_size)
    return batch


def _answers(policy: Any, context: Any, rolled: TensorDict, size: int) -> TensorDict:
    """What each token of K documents of each context answers for, and how well it did."""
    texts = [text for text in context.texts for _ in range(size)]
    answers: TensorDict = policy.answers(rolled, context.hr.to(policy.device).repeat_interleave(size, 0), texts)
    return answers


def _documents(policy: Any, context: Any, obs: dict[str, Any], times: int) -> TensorDict:
    """The true documents of contexts, `times` of each."""
    tokens = policy.documents(context.hr.to(policy.device), context.texts, policy.encode(obs))
    written = TensorDict({"tokens": tokens, "place": policy.grammar.walk(tokens)}, batch_size=[len(tokens)])
    return repeat(written, times)


def _drawn(
    policy: Policy, sampling: Any, obs: dict[str, Any], seeds: torch.Tensor, rollout_batch: int | None
) -> Iterator[TensorDict]:
    """A rollout in parts of at most `rollout_batch` samples; each context is still encoded once."""
    if rollout_batch is None or rollout_batch >= len(seeds):
        yield policy.rollout(obs, sampling, seeds)
        return
    cond = repeat(policy.encode(obs), len(seeds) // len(obs["lr"]))
    for start in range(0, len(seeds), rollout_batch):
        rows = slice(start, start + rollout_batch)
        yield policy.sample(cond[rows], sampling, seeds[rows])


def imagined(rollout: TensorDict) -> TensorDict:
    """A rollout with made-up scores that leave no group out: its rows are for forwards that weigh nothing."""
    made = rollout.exclude("batch")
    made["reward"] = torch.arange(len(rollout), device=rollout["reward"].device).remainder(2).float()
    made["valid"] = torch.ones_like(rollout["valid"])
    made["components"] = rollout["components"].apply(lambda _: made["reward"])
    return made


def statistics(rollout: TensorDict) -> dict[str, float]:
    """What is logged of a rollout: the reward, its spread inside groups, every component, how many were invalid."""
    if "reward" not in rollout:
        return {}
    reward, valid, group = rollout["reward"], rollout["valid"], rollout["group"]
    spreads = [
        float(members.std(correction=0))
        for members in (reward[(group == g) & valid] for g in group.unique())
        if len(members) > 1
    ]
    logged = {
        "reward/mean": _mean(reward[valid]),
        "reward/std": float(reward[valid].std(correction=0)) if valid.any() else float("nan"),
        "reward/spread_in_groups": sum(spreads) / len(spreads) if spreads else float("nan"),
        "reward/invalid": float((~valid).sum()),
    }
    for name, value in rollout["components"].items():
        logged[f"reward/{name}"] = _mean(value[torch.isfinite(value)])
    return logged


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")
