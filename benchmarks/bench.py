"""What the library costs beside the arithmetic it asks for. Prints ratios, each from one run on one machine.

    python benchmarks/bench.py                   everything
    python benchmarks/bench.py overhead          an iteration of each agent against a bare loop of the same forwards
    python benchmarks/bench.py step              one NFT optimiser step on a small SD3 transformer
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgym import policies, rewards
from srgym.agents import agent_class
from srgym.agents.base import Agent
from srgym.envs import SRTask, sources
from srgym.policies import FlowPolicy
from srgym.runners.loop.collect import collect

AGENTS: dict[str, dict[str, Any]] = {
    "diffusion_nft": {"group_size": 8, "steps": 6},
    "flow_grpo": {"group_size": 8, "steps": 6},
    "flow_grpo, recomputed": {"group_size": 8, "steps": 6, "old_log_prob": "recomputed"},
    "dpo": {"group_size": 8, "steps": 6},
    "refl": {"group_size": 1, "steps": 6},
    "cold_start": {},
}
MICROBATCH = 64  # the runner's


@dataclass
class Workload:
    """One agent on one task, and what an iteration of it does."""

    agent: Agent
    task: SRTask
    optimizer: torch.optim.Optimizer
    contexts: int
    iteration: int = 0

    def step(self) -> None:
        """An iteration as the runner does it, without logging."""
        first = self.iteration * self.contexts % (len(self.task) - self.contexts)
        context = self.task.context(torch.arange(first, first + self.contexts))
        rows = self.agent.prepare(collect(self.task, self.agent.policy, self.agent, context, seed=0, iteration=0))
        for batch in self.agent.batches(rows):
            self.optimizer.zero_grad(set_to_none=True)
            for part in batch.split(MICROBATCH):
                with self.agent.policy.adapter("default"):
                    terms = self.agent.loss(part)
                    loss = sum(value for key, value in terms.items() if key.startswith("loss_"))
                    (loss * (len(part) / len(batch))).backward()
            self.optimizer.step()
            self.agent.after_update()
        self.agent.after_iteration()
        self.iteration += 1


def workload(name: str, *, contexts: int = 8, size: int = 64, **changes: Any) -> Workload:
    policy = policies.make("compact", weights=None)
    if name != "cold_start":
        policy.add_adapters(rank=32, alpha=64)
    reward = rewards.make("structure_texture")
    task = SRTask(sources.make("photographs", size=size, crops=200), reward)
    agent = agent_class(name.partition(",")[0])(policy, reward, **{**AGENTS[name], **changes})
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


def seconds(run: Callable[[], None], repeats: int) -> list[float]:
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


def sd3_step(repeats: int = 3) -> None:
    """16 samples of 4 x 32 x 32 latents at 9 timesteps each, one thread: learner with gradient, base without."""
    from diffusers import SD3Transformer2DModel

    from srgym.agents.diffusion_nft import nft_loss
    from srgym.policies import adapters

    model = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=32,
    )  # fmt: skip
    targets = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    adapters.add(model, adapters.LoraSettings(32, 64, targets), torch.Generator().manual_seed(0))
    parameters = [p for _, p in adapters.parameters(model, "default")]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    x0, text, pooled = torch.randn(16, 4, 32, 32), torch.randn(16, 16, 64), torch.randn(16, 64)
    r = torch.rand(16)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = model(x, text, pooled, timestep=1000 * t, return_dict=False)[0]
        return out

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for t in torch.linspace(1, 0.1, 9).expand(16, 9).unbind(1):
            eps = torch.randn_like(x0)
            x = (1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * eps
            with torch.no_grad(), adapters.use(model, None):
                base = velocity(x, t)
            v = velocity(x, t)
            loss = nft_loss(v, v.detach(), x, t, x0, r).mean() + 1e-4 * (v - base).square().mean()
            (loss / 9).backward()
        optimizer.step()

    torch.set_num_threads(1)
    step()
    times = seconds(step, repeats)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"NFT step on an SD3 transformer of {size:.2f} M parameters, 16 x 4x32x32, 9 timesteps, 1 thread: "
          f"{statistics.median(times):.2f} s")  # fmt: skip


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
    parser.add_argument("what", nargs="*", default=["overhead", "step", "scaling", "memory"])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what[0] == "peak":
        peak(given.what[1])
        return
    known = {"overhead": overhead, "step": sd3_step, "scaling": scaling, "memory": memory}
    for what in given.what:
        if what not in known:
            parser.error(f"unknown benchmark '{what}': expected one of {', '.join(known)}")
        known[what]()


if __name__ == "__main__":
    main()
