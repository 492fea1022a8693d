"""What a training iteration will need, before anything is loaded: memory, operations, time.

The policy's own networks are built without storage (torch's meta device), its own velocity, backward pass and decoder
run on them, and every operation's cost and every tensor's life are counted on the way. So checkpointing, LoRA in
float32, tiles and the reference's size enter as they do in training. A transformer's blocks are alike: two and three of
a kind are run, and the rest follow. Left out are the allocator's fragmentation (some percent), the encoders' own
activations, and the reward.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srgym.policies.base import Policy
from srgym.policies.flow import FlowPolicy
from srgym.policies.skeleton import MODELS, blank_condition, skeleton
from srgym.policies.tokens import AutoregressivePolicy
from srgym.policies.tracing import extended, traced
from srgym.policies.workload import Workload

__all__ = ["PEAKS", "Batches", "Estimate", "Workload", "estimate"]

# Dense bf16 operations a second, from the makers' data sheets, by a part of the device's name.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12,
    "A6000": 155e12, "4090": 165e12, "3090": 71e12, "5090": 210e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


@dataclass(frozen=True)
class Batches:
    """How much of a workload there is, and how it is cut.

    Attributes:
        contexts: of an iteration.
        microbatch: rows in one forward and backward.
        rollout_batch: samples drawn at once; None: all, or as many as the policy takes in one forward.
    """

    contexts: int
    microbatch: int
    rollout_batch: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What was predicted.

    Attributes:
        parameters: by network.
        resident: bytes that stay, by what they are.
        phases: bytes on top of them while a phase runs.
        flops: operations an iteration spends, by phase.
        streamed: bytes of weights that an iteration reads to write token by token, which memory bounds and operations
            don't.
    """

    parameters: Mapping[str, int]
    resident: Mapping[str, float]
    phases: Mapping[str, float]
    flops: Mapping[str, float]
    streamed: float = 0.0

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return sum(self.resident.values()) + self.phases[self.worst]

    def seconds(self, peak_flops: float, utilisation: float = 0.4) -> float:
        """An iteration's time at a share of the device's peak, the reward not counted."""
        return sum(self.flops.values()) / (peak_flops * utilisation)

    def __str__(self) -> str:
        lines = [f"{'parameters, ' + name:<34}{_short(count)}" for name, count in self.parameters.items()]
        lines += [f"{name:<34}{_short(size)}B" for name, size in self.resident.items()]
        lines += [f"+ {name:<32}{_short(size)}B" for name, size in self.phases.items()]
        lines.append(f"{'memory at the worst: ' + self.worst:<34}{_short(self.peak)}B")
        lines += [f"{name:<34}{_short(count)}FLOP" for name, count in self.flops.items()]
        return "\n".join(lines)


def _short(value: float) -> str:
    """A number and its prefix, right-aligned: `   20.43 G`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:9.2f} {prefix}"
    return f"{value:9.0f} "


# The prediction


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _text_bytes(name: str, options: Mapping[str, Any]) -> float:
    """The text encoders' weights: what their files hold, or what the published ones weigh in bf16."""
    if name not in MODELS:
        return 0.0
    folder = options.get("path")
    if folder is not None and Path(folder).is_dir():
        return float(sum(file.stat().st_size for file in Path(folder).glob("text_encoder*/*.safetensors")))
    return 2.0 * float(MODELS[name]["text"])


def estimate(
    name: str,
    options: Mapping[str, Any],
    work: Workload,
    batches: Batches,
    *,
    height: int,
    width: int,
    lora: Mapping[str, Any] | None = None,
) -> Estimate:
    """Predict an iteration of training.

    Args:
        name, options: the policy's name and keyword arguments.
        work, batches: what the iteration does, and how often.
        height, width: of the LR images.
        lora: rank, alpha and targets; None: all weights are trained.
    """
    policy = skeleton(name, options, lora)
    if isinstance(policy, AutoregressivePolicy):
        return _of_writer(policy, work, batches)
    assert isinstance(policy, FlowPolicy)
    text = _text_bytes(name, options)
    kept = options.get("text_encoder", "keep") == "keep"
    samples = batches.contexts * work.group_size
    phases, flops = _phases(policy, work, batches, samples, height, width)
    resident = _resident(policy, work, samples, blank_condition(policy, 1, height, width))
    if text and kept:
        resident["weights of the text encoders"] = text
    elif text:
        phases["encoding prompts"] = text
    return Estimate(_parameters(policy), resident, phases, flops)


def _parameters(policy: Policy) -> dict[str, int]:
    return {
        "network": sum(p.numel() for n, p in policy.core.named_parameters() if ".lora_" not in n),
        "trainable": sum(p.numel() for p in policy.parameters() if p.requires_grad),
    }


def _of_writer(policy: AutoregressivePolicy, work: Workload, batches: Batches) -> Estimate:
    """Of a policy that writes: documents of full length, drawn token by token with a cache of keys and values."""
    config: Any = policy.core.config
    samples, length = batches.contexts * work.group_size, policy.reading + policy.longest
    drawn = min(samples, batches.rollout_batch or samples)
    rows = min(batches.microbatch, max(round(samples * max(work.times, 1)), 1))
    kind = next(p for n, p in policy.core.named_parameters() if ".lora_" not in n).dtype
    shape = (length,) if policy.reads_tokens else (length, config.hidden_size)

    # A mask that is there already: transformers would look into the numbers of places to make one.
    masks = {count: torch.ones(count, 1, length, length, device="meta", dtype=torch.bool) for count in {1, rows}}

    def run(count: int) -> Tensor:
        inputs = torch.zeros(count, *shape, device="meta", dtype=torch.int64 if policy.reads_tokens else kind)
        hidden = policy.network(inputs, mask=masks[count])[0][:, -policy.longest :]
        parts = torch.split(hidden, policy.chunk(count), 1)

        def score(part: Tensor) -> Tensor:
            return policy.logits(part).float().logsumexp(-1).sum()

        once = len(parts) == 1 or not torch.is_grad_enabled()  # else they are computed again, as `log_prob` does
        scores = [score(part) if once else checkpoint(score, part, use_reentrant=False) for part in parts]
        return torch.stack(scores)

    def forward() -> None:
        with torch.no_grad():
            run(1)

    def update() -> None:
        torch.autograd.backward(run(rows).sum())

    forward_flops, _ = extended(policy, policy.core, forward)
    phases, flops, streamed = dict[str, float](), dict[str, float](), 0.0
    if work.steps:
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        cell = heads * (config.hidden_size // config.num_attention_heads)
        size = torch.empty((), dtype=kind).element_size()
        phases["writing"] = 2.0 * drawn * length * config.num_hidden_layers * cell * size
        flops["writing"] = samples * work.steps * forward_flops
        streamed = -(-samples // drawn) * policy.longest * _bytes(policy.core.parameters())
    if work.times:
        update_flops, phases["update"] = extended(policy, policy.core, update)
        beside = sum(work.beside.values()) * forward_flops
        flops["update"] = samples * work.times * work.epochs * (update_flops / rows + beside)
    core = [*policy.core.parameters(), *policy.core.buffers()]
    lora = _bytes(p for name, p in policy.core.named_parameters() if ".lora_" in name)
    resident = {
        "weights of the trained network": _bytes(core) - lora,
        "weights of the other networks": _bytes([*policy.parameters(), *policy.buffers()]) - _bytes(core),
        "LoRA (learner, old, average)": lora,
        "gradients and AdamW's moments": 3 * _bytes(p for p in policy.parameters() if p.requires_grad),
        "rollouts": float(samples * (policy.longest * 3 * 8 + 4 * _pixels(policy))),
    }
    return Estimate(_parameters(policy), resident, phases, flops, streamed)


def _pixels(policy: Policy) -> int:
    """Numbers of an HR image, and of what is made before it."""
    height, width = policy.window or (128, 128)
    return round(3 * height * width * policy.scale**2 * 1.4)


def _inputs(policy: FlowPolicy, rows: int, height: int, width: int) -> tuple[Tensor, Tensor, TensorDict]:
    cond = blank_condition(policy, rows, height, width)
    x = torch.empty(rows, *policy.latent_shape(cond), device="meta")
    return x, torch.empty(rows, device="meta"), cond


def _phases(
    policy: FlowPolicy, work: Workload, batches: Batches, samples: int, height: int, width: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The bytes that each phase needs while it runs, and the operations that an iteration spends in it."""
    drawn = min(samples, batches.rollout_batch or samples, getattr(policy, "rows", samples))
    sampled = _inputs(policy, drawn, height, width)
    rows = min(batches.microbatch, max(round(samples * max(work.times, 1)), 1))
    x, t, cond = _inputs(policy, rows, height, width)

    def forward() -> None:
        with torch.no_grad():
            policy.velocity(*sampled)

    def decode() -> None:
        with torch.no_grad():
            policy.decode(sampled[0][:1], sampled[2][:1])

    def update() -> None:
        torch.autograd.backward(policy.velocity(x, t, cond).float().square().mean())

    def reward() -> None:
        state = x
        for _ in range(work.reward_steps):
            state = state - policy.velocity(state, t, cond).float()
        torch.autograd.backward(policy.decode(state, cond).square().mean())

    forward_flops, forward_peak = extended(policy, policy.core, forward)
    decode_flops, decode_peak = traced(policy, decode)
    each = forward_flops / drawn
    phases: dict[str, float] = {}
    flops: dict[str, float] = {}
    if work.steps:
        phases |= {"sampling": forward_peak, "decoding": decode_peak}
        flops["sampling"] = samples * (work.steps * (1 + work.guided) * each + decode_flops)
    if work.times:
        update_flops, phases["update"] = extended(policy, policy.core, update)
        row = (1 + work.guided) * (update_flops / rows + sum(work.beside.values()) * each)
        row -= work.detached * (update_flops / rows - each)
        flops["update"] = samples * work.times * work.epochs * row
    if work.reward_steps:
        reward_flops, phases["reward gradient"] = extended(policy, policy.core, reward)
        again = work.reward_steps * each if work.recomputed else 0.0
        flops["reward gradient"] = samples * (reward_flops / rows + again)
    return phases, flops


def _resident(policy: FlowPolicy, work: Workload, samples: int, cond: TensorDict) -> dict[str, float]:
    """The bytes that stay through an iteration."""
    core, whole = ([*model.parameters(), *model.buffers()] for model in (policy.core, policy))
    lora = _bytes(p for name, p in policy.core.named_parameters() if ".lora_" in name)
    tall, wide = cond["size"][0].tolist()
    cells = torch.Size(policy.latent_shape(cond)).numel()
    sample = 4 * cells * (work.steps + 2) + 12 * tall * wide + _bytes(v for v in cond.values() if isinstance(v, Tensor))
    return {
        "weights of the trained network": _bytes(core) - lora,
        "weights of the other networks": _bytes(whole) - _bytes(core),
        "LoRA (learner, old, average)": lora,
        "gradients and AdamW's moments": 3 * _bytes(p for p in policy.parameters() if p.requires_grad),
        "rollouts": float(samples * sample),
    }
