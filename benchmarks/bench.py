"""What the library costs beside the arithmetic it asks for. Prints ratios, each from one run on one machine.

    python benchmarks/bench.py                   everything
    python benchmarks/bench.py overhead          an iteration of each agent against a bare loop of the same forwards
    python benchmarks/bench.py step              DiffusionNFT's optimiser step on SD3Policy, at several cuts
    python benchmarks/bench.py forwards          forwards of a trained row, against the least that would do
    python benchmarks/bench.py waiting           what is waited for a judge that is as slow as the sampler
    python benchmarks/bench.py scaling           log-log slopes in K, contexts and resolution
    python benchmarks/bench.py memory            peak memory of each agent's iteration, in a process of its own

The bare loop replays the calls that were recorded in an iteration (encode, velocity with or without gradient, decode,
reward, optimiser step), with the same batch sizes and adapters and nothing around them.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from srgym import policies, rewards
from srgym.agents import DiffusionNFT, agent_class
from srgym.agents.base import Agent
from srgym.envs import SRTask, sources
from srgym.policies import FlowPolicy
from srgym.policies.sd3 import SD3Policy
from srgym.rewards.base import Reward
from srgym.rewards.info import describe
from srgym.runners.loop.collect import collect
from srgym.runners.loop.meter import Meter

AGENTS: dict[str, dict[str, Any]] = {
    "diffusion_nft": {"group_size": 8, "steps": 6},
    "flow_grpo": {"group_size": 8, "steps": 6},
    "flow_grpo, recomputed": {"group_size": 8, "steps": 6, "old_log_prob": "recomputed"},
    "dpo": {"group_size": 8, "steps": 6},
    "refl": {"group_size": 1, "steps": 6},
    "cold_start": {},
}
OTHERS: dict[str, dict[str, Any]] = {name: {"group_size": 8, "steps": 6} for name in ("awm", "dgpo", "gdpo_sr")}
MICROBATCH = 64  # the runner's


@dataclass
class Workload:
    """One agent on one task, and what an iteration of it does."""

    agent: Agent
    task: SRTask
    optimizer: torch.optim.Optimizer
    contexts: int
    iteration: int = 0
    rollout_batch: int | None = None
    meter: Meter | None = None

    def rows(self) -> TensorDict:
        """What an iteration learns from."""
        first = self.iteration * self.contexts % (len(self.task) - self.contexts)
        context = self.task.context(torch.arange(first, first + self.contexts))
        rollout = collect(
            self.task, self.agent.policy, self.agent, context, seed=0, iteration=0, rollout_batch=self.rollout_batch,
            meter=self.meter,
        )  # fmt: skip
        return self.agent.prepare(rollout)

    def step(self) -> None:
        """An iteration as the runner does it, without logging."""
        optimise(self.agent, self.optimizer, self.rows())
        self.agent.after_iteration()
        self.iteration += 1


def workload(name: str, *, contexts: int = 8, size: int = 64, **changes: Any) -> Workload:
    policy = policies.make("compact", weights=None)
    if name != "cold_start":
        policy.add_adapters(rank=32, alpha=64)
    reward = rewards.make("structure_texture")
    task = SRTask(sources.make("photographs", size=size, crops=200), reward)
    kind = agent_class(name.partition(",")[0])
    agent = kind(policy, reward, **{**(AGENTS | OTHERS)[name], **changes})
    parameters = [p for _, p in policy.trainable_parameters()]
    lr = 1e-6 if name.endswith("recomputed") else 0.0  # a learner that stays where it is needn't ask who sampled
    return Workload(agent, task, torch.optim.AdamW(parameters, lr=lr), contexts)


@dataclass
class Calls:
    """What an iteration asked of the machine: thunks that ask it again, bare."""

    replay: list[Callable[[], None]] = field(default_factory=list)
    forwards: int = 0


@contextlib.contextmanager
def recorded(work: Workload) -> Iterator[Calls]:
    """Note every call of the policy and of the reward, and every optimiser step."""
    policy, task, calls = work.agent.policy, work.task, Calls()
    velocity, encode, decode, score, step = (
        policy.velocity, policy.encode, policy.decode, task.reward.score, work.optimizer.step,
    )  # fmt: skip

    def on_velocity(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        grad, base = torch.is_grad_enabled(), _base_active(policy)
        calls.replay.append(_again(velocity, grad, policy, base, x.detach(), t.detach(), cond.detach()))
        calls.forwards += len(x)
        return velocity(x, t, cond)

    def on_encode(obs: Any) -> Any:
        calls.replay.append(_again(encode, torch.is_grad_enabled(), policy, False, obs))
        return encode(obs)

    def on_decode(x0: Tensor, cond: Any) -> Tensor:
        calls.replay.append(
            _again(decode, torch.is_grad_enabled() and x0.requires_grad, policy, False, x0.detach(), cond)
        )
        return decode(x0, cond)

    def on_score(sr: Tensor, **given: Any) -> Any:
        grad = sr.requires_grad
        calls.replay.append(lambda: _score(score, sr.detach().requires_grad_(grad), given))
        return score(sr, **given)

    def on_step(*args: Any) -> Any:
        calls.replay.append(step)
        return step(*args)

    policy.velocity, policy.encode, policy.decode = on_velocity, on_encode, on_decode  # type: ignore[method-assign]
    task.reward.score, work.optimizer.step = on_score, on_step  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del policy.velocity, policy.encode, policy.decode
        task.reward.score, work.optimizer.step = score, step  # type: ignore[method-assign]


def _base_active(policy: FlowPolicy) -> bool:
    from srgym.policies import adapters

    return any(layer._disable_adapters for layer in adapters.layers(policy.core).values())


def _again(call: Callable[..., Any], grad: bool, policy: FlowPolicy, base: bool, *inputs: Any) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(grad), policy.adapter(None if base else "default"):
            if call.__name__ == "decode" and grad:
                out = call(inputs[0].requires_grad_(True), *inputs[1:])
            else:
                out = call(*inputs)
            if grad:
                tensors = [out] if isinstance(out, Tensor) else [v for v in out.values() if v.requires_grad]
                sum(v.square().mean() for v in tensors).backward()

    return run


def _score(score: Callable[..., Any], sr: Tensor, given: dict[str, Any]) -> None:
    with torch.set_grad_enabled(sr.requires_grad):
        out = score(sr, **given)
        total = out["total"] if isinstance(out, dict) else out
        if sr.requires_grad:
            total.sum().backward()


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Of this process alone: what others on the machine do doesn't count, but for the caches that they take."""
    before = time.process_time()
    run()
    return time.process_time() - before


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times


def overhead(repeats: int = 7) -> None:
    """Medians of alternating runs, so that a busy moment of the machine falls on both."""
    print("agent                 iteration [ms]   bare loop [ms]   ratio   forwards")
    for name in AGENTS:
        work = workload(name)
        work.step()
        with recorded(work) as calls:
            work.step()

        def bare(calls: Calls = calls) -> None:
            for call in calls.replay:
                call()

        pairs = [(seconds(work.step, 1)[0], seconds(bare, 1)[0]) for _ in range(repeats)]
        ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:<21} {1e3 * ours:>14.0f} {1e3 * plain:>16.0f} {ratio:>7.3f} {calls.forwards:>10}", flush=True)


def sd3_policy(rows: int) -> SD3Policy:
    """The real policy over a transformer of 2.7 M parameters, with random weights, in float32."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=32,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=1,
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    policy = SD3Policy(
        pipe=SimpleNamespace(**parts, vae_scale_factor=2), dtype="float32", checkpointing=False, rows=rows
    )
    policy.add_adapters(rank=32, alpha=64)
    return policy


def sd3_rows(policy: SD3Policy, agent: DiffusionNFT) -> TensorDict:
    """Rows of made-up samples of one context, 4 x 32 x 32 latents, at 9 times each."""
    count = agent.group_size
    cond = TensorDict({
        "size": torch.tensor([[64, 64]]).expand(count, 2).clone(), "reference": torch.randn(count, 4, 32, 32),
        "embeds": torch.randn(1, 16, 64).expand(count, -1, -1).clone(),
        "pooled": torch.randn(1, 64).expand(count, -1).clone(),
    }, batch_size=[count])  # fmt: skip
    rollout = {
        "x0": torch.randn(count, 4, 32, 32), "cond": cond, "seed": torch.arange(count), "reward": torch.rand(count),
        "index": torch.zeros(count, dtype=torch.int64), "group": torch.zeros(count, dtype=torch.int64),
        "valid": torch.ones(count, dtype=torch.bool), "components": TensorDict({}, batch_size=[count]),
    }  # fmt: skip
    return agent.prepare(TensorDict(rollout, batch_size=[count]))


def sd3_step(repeats: int = 2) -> None:
    """DiffusionNFT's optimiser step on SD3Policy, in the CPU's seconds, and the transformer's share of it.

    Bare are the transformer's own calls of a step, replayed on the same tensors: the base without gradient, the learner
    with it and a backward pass. How a step is cut: samples in one forward without gradient / rows with it.
    """
    torch.set_num_threads(1)
    cuts = {"defaults": (8, MICROBATCH), "64": (64, 64), "8": (8, 8)}
    steps: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}
    for name, (rows, microbatch) in cuts.items():
        policy = sd3_policy(rows)
        agent = DiffusionNFT(policy, rewards.make("psnr_y"), group_size=8, steps=10)
        parameters = [p for _, p in policy.trainable_parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.0)
        batch = sd3_rows(policy, agent)
        steps[name] = (
            partial(optimise, agent, optimizer, batch, microbatch),
            bare_step(policy, agent, optimizer, batch, microbatch),
        )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats + 1):  # the first warms up
        for name, (ours, bare) in steps.items():
            times[name].append((cpu_seconds(ours), cpu_seconds(bare)))
    size = sum(p.numel() for name, p in policy.named_parameters() if ".lora_" not in name) / 1e6
    print(f"DiffusionNFT's step on SD3Policy, {size:.2f} M parameters, 8 x 4x32x32, 9 times, 1 thread, CPU seconds")
    print("cut         without / with gradient   step   bare   step over bare   over the default's")
    default = [ours for ours, _ in times["defaults"][1:]]
    for name, pairs in times.items():
        ours, bare = (statistics.median(side) for side in zip(*pairs[1:], strict=True))
        ratio = statistics.median(a / b for a, b in pairs[1:])
        against = statistics.median(a / b for (a, _), b in zip(pairs[1:], default, strict=True))
        rows, microbatch = cuts[name]
        print(
            f"{name:<12}{rows:>14} / {microbatch:<10}{ours:>7.2f}{bare:>7.2f}{ratio:>14.3f}{against:>19.3f}", flush=True
        )


def optimise(agent: Agent, optimizer: torch.optim.Optimizer, rows: TensorDict, microbatch: int = MICROBATCH) -> None:
    """An iteration's optimiser steps, as the runner takes them."""
    for batch in agent.batches(rows):
        optimizer.zero_grad(set_to_none=True)
        for part in batch.split(microbatch):
            with agent.policy.adapter("default"):
                terms = agent.loss(part)
                loss = sum(value for key, value in terms.items() if key.startswith("loss_"))
                (loss * (len(part) / len(batch))).backward()
        optimizer.step()
        agent.after_update()


def bare_step(
    policy: SD3Policy, agent: DiffusionNFT, optimizer: torch.optim.Optimizer, batch: TensorDict, microbatch: int
) -> Callable[[], None]:
    """The transformer's calls of a step, again."""
    calls: list[tuple[bool, dict[str, Any]]] = []

    def note(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        kept = {key: value.detach() if isinstance(value, Tensor) else value for key, value in given.items()}
        calls.append((torch.is_grad_enabled(), kept))

    handle = policy.transformer.register_forward_pre_hook(note, with_kwargs=True)
    optimise(agent, optimizer, batch, microbatch)
    handle.remove()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        for grad, given in calls:
            with torch.set_grad_enabled(grad), policy.adapter("default" if grad else None):
                v = policy.transformer(**given)[0]
                if grad:
                    v.square().mean().backward()
        optimizer.step()

    return run


# Forwards a trained row can't do without, (with gradient, without): the learner's, and each other adapter's that the
# loss names, once. A pair of DPO is two rows; what REFL needs without gradient is the way to its step.
LEAST = {
    "diffusion_nft": ((1, 1), (1, 2)), "diffusion_nft, kl=0": ((1, 0), (1, 1)), "awm, kl=0": ((1, 0), (1, 1)),
    "dgpo": ((1, 2), (1, 2)), "gdpo_sr": ((1, 2), (1, 2)), "flow_grpo": ((1, 1), (1, 1)),
    "flow_grpo, kl=0": ((1, 0), (1, 0)), "dpo": ((1, 1), (1, 1)), "refl": ((1, 4.5), (1, 4.5)),
    "cold_start": ((1, 0), (1, 0)),
}  # fmt: skip


def forwards() -> None:
    """Counted forwards of a trained row in an iteration, the sampler's apart, against the least that would do.

    On policy: the adapter that sampled is the learner. Behind: it isn't any more, as from the second update on.
    """
    print("agent                  on policy   least   behind   least   (with gradient + without, of a trained row)")
    for name, least in LEAST.items():
        kind, _, option = name.partition(", ")
        changes = {"kl": 0.0} if option else {}
        counted = [count_forwards(kind, behind, changes) for behind in (False, True)]
        cells = [f"{cell:>10}" for pair in zip(counted, least, strict=True) for cell in map(_sum, pair)]
        print(f"{name:<22}{''.join(cells)}", flush=True)


def _sum(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3g} + {pair[1]:.3g}"


def count_forwards(name: str, behind: bool, changes: dict[str, Any]) -> tuple[float, float]:
    """Forwards of one trained row, with gradient and without."""
    work = workload(name, contexts=2, size=32, **changes)
    policy = work.agent.policy
    if behind and policy.has_adapters:
        with torch.no_grad():
            for _, parameter in policy.trainable_parameters():
                parameter.add_(0.01)
    counts, velocity = [0, 0], policy.velocity

    def counted(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        counts[torch.is_grad_enabled()] += len(x)
        return velocity(x, t, cond)

    rows = work.rows()
    policy.velocity = counted  # type: ignore[method-assign]
    optimise(work.agent, work.optimizer, rows)
    passes = len(rows) * work.agent.epochs * (2 if name == "dpo" else 1)
    return counts[True] / passes, counts[False] / passes


def waiting() -> None:
    """NFT under a judge elsewhere that takes as long for a sample as the sampler: what of an iteration is waited for.

    The judge sleeps, so it takes nothing of this machine. K = 8, and as many contexts as there are parts.
    """
    print("contexts   rollout_batch   iteration [s]   waited [s]   share")
    for contexts, batch in ((8, None), (8, 8)):
        work = workload("diffusion_nft", contexts=contexts)
        drawn = seconds(partial(work.rows), 2)[1] / (contexts * work.agent.group_size)
        work.task._reward = slow_judge(work.task.reward, drawn)
        work.rollout_batch, work.meter = batch, Meter(work.agent.policy)
        took = seconds(work.step, 1)[0]
        waited = work.meter.waited
        print(
            f"{contexts:>8}   {batch or 'null':>13}   {took:>13.2f}   {waited:>10.2f}   {waited / took:.1%}", flush=True
        )


def slow_judge(reward: Reward, seconds: float) -> Reward:
    """A reward that is asked elsewhere, where an image takes so many seconds, one after another."""
    elsewhere = ThreadPoolExecutor(1)

    def ask(sr: Tensor, hr: Tensor) -> Callable[[], Tensor]:
        score = reward.score(sr, hr)  # the numbers themselves are cheap
        answered = elsewhere.submit(time.sleep, seconds * len(sr))

        def answer() -> Tensor:
            answered.result()
            return score

        return answer

    return Reward(ask, describe(ask, "slow_judge"))


def scaling() -> None:
    """Slopes of log time over log size: 1 is linear; resolution counts in pixels."""
    cases: dict[str, list[tuple[float, Callable[[], Workload]]]] = {
        "K": [(k, lambda k=k: workload("diffusion_nft", group_size=k)) for k in (4, 8, 16, 32)],
        "contexts": [(n, lambda n=n: workload("diffusion_nft", contexts=n)) for n in (2, 4, 8, 16)],
        "pixels": [(s * s, lambda s=s: workload("diffusion_nft", size=s, contexts=4)) for s in (32, 64, 96, 128)],
    }
    for name, sizes in cases.items():
        times = []
        for _, make in sizes:
            work = make()
            work.step()
            times.append(min(seconds(work.step, 3)))
        slope = np.polyfit(np.log([size for size, _ in sizes]), np.log(times), 1)[0]
        shown = ", ".join(f"{size:g}: {t:.2f} s" for (size, _), t in zip(sizes, times, strict=True))
        print(f"time over {name}: slope {slope:.2f}  ({shown})", flush=True)


def memory() -> None:
    for name in AGENTS:
        done = subprocess.run([sys.executable, __file__, "peak", name], capture_output=True, text=True, check=True)
        print(done.stdout.strip(), flush=True)


def peak(name: str) -> None:
    work = workload(name)
    built = status("VmRSS")
    for _ in range(2):
        work.step()
    most = status("VmHWM")
    print(f"{name:<15} peak {most:.0f} MiB, {most - built:.0f} MiB above what importing and building took")


def status(field: str) -> float:
    """What Linux says of this process, in MiB. (The peak of `getrusage` may be that of the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["overhead", "step", "forwards", "waiting", "scaling", "memory"])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what[0] == "peak":
        peak(given.what[1])
        return
    known = {
        "overhead": overhead, "step": sd3_step, "forwards": forwards, "waiting": waiting, "scaling": scaling,
        "memory": memory,
    }  # fmt: skip
    for what in given.what:
        if what not in known:
            parser.error(f"unknown benchmark '{what}': expected one of {', '.join(known)}")
        known[what]()


if __name__ == "__main__":
    main()
