"""NFT iterations on a foundation model's transformer with random weights: seconds, share of the peak, memory.

    python benchmarks/bench_models.py --policy sd3 --resolution 512 --device cuda               SD3.5-medium's size
    python benchmarks/bench_models.py --policy qwen_image_edit --resolution 512 --device cuda   Qwen-Image-Edit's
    python benchmarks/bench_models.py --policy sd3 --size tiny --resolution 64 --device cpu     the same code, anywhere

The policy, the agent and the loop are those of `srgym train`; the networks are built from their configurations on the
device itself, in bf16, with a LoRA of rank 32 in float32 and gradient checkpointing. Text encoders are left out: what
they give is random numbers of its shape. Prints a row of a Markdown table. Operations are the model's own (a forward,
and as much again for a backward pass that gives no gradients of weights); what checkpointing computes twice and the
decoder's work don't count, so the share of the peak is what an iteration gets out of the device.
"""

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym import rewards
from srgym.agents import DiffusionNFT
from srgym.envs import SRTask, sources
from srgym.policies.diffusers_policy import DiffusersPolicy
from srgym.policies.estimate import PEAKS
from srgym.policies.flow import FlowPolicy
from srgym.policies.skeleton import blank_condition, skeleton
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings

LORA = {"rank": 32, "alpha": 64}
COLUMNS = ("policy", "parameters", "SR", "samples", "device", "s/iteration", "TFLOP/iteration", "share of peak", "peak")
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "sd3": {
        "transformer": {
            "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
            "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 32,
            "pooled_projection_dim": 32, "pos_embed_max_size": 32, "qk_norm": "rms_norm", "dual_attention_layers": [0],
        },
        "vae": {
            "block_out_channels": [8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 1, "latent_channels": 4,
            "norm_num_groups": 1, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1,
            "scaling_factor": 0.4,
        },
    },
    "qwen_image_edit": {
        "transformer": {
            "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": [8, 4, 4],
        },
        "vae": {
            "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True],
            "latents_mean": [0.1, -0.1, 0.2, 0.0], "latents_std": [1.1, 0.9, 1.0, 1.2],
        },
    },
}  # fmt: skip


def build(name: str, size: str, resolution: int, device: torch.device, rows: int, folder: Path) -> FlowPolicy:
    """A policy with random weights that were never anywhere but on the device."""
    options: dict[str, Any] = {"scale": 4, "dtype": "bfloat16", "rows": rows, "checkpointing": True}
    if size == "tiny":
        for part, config in TINY[name].items():
            (folder / part).mkdir(parents=True)
            (folder / part / "config.json").write_text(json.dumps(config))
        options["path"] = str(folder)
    policy = skeleton(name, options, LORA)
    assert isinstance(policy, DiffusersPolicy)
    blank = blank_condition(policy, 1, resolution // 4, resolution // 4)
    policy.to_empty(device=device)
    fill(policy)
    set_schedule(policy)
    if name == "qwen_image_edit":  # its table of positions is no buffer, so it stayed behind without values
        old = policy.transformer.pos_embed
        policy.transformer.pos_embed = type(old)(
            theta=old.theta, axes_dim=list(old.axes_dim), scale_rope=old.scale_rope
        )
    size_of = blank.pop("size").to(device)
    cond = blank.apply(lambda t: torch.randn(t.shape, device=device, dtype=t.dtype))
    cond["size"] = size_of

    def encode(obs: Mapping[str, Any]) -> TensorDict:
        made: TensorDict = cond[torch.zeros(len(obs["lr"]), dtype=torch.int64, device=device)]
        return made

    policy.__dict__["encode"] = encode
    return policy


@torch.no_grad()
def fill(policy: FlowPolicy) -> None:
    """Weights of spread 0.02, norms of one, no bias, and LoRAs that change nothing yet."""
    generator = torch.Generator(policy.device).manual_seed(0)
    for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]:
        if ".lora_B." in name or name.endswith("bias"):
            tensor.zero_()
        elif tensor.dim() < 2 and name.endswith(("weight", "gamma")):
            tensor.fill_(1)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.02, generator=generator)
    policy.sync("default", "old")
    policy.sync("default", "ema")


def set_schedule(policy: DiffusersPolicy) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    dynamic = policy.name != "sd3"
    policy._scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 if dynamic else 3.0, use_dynamic_shifting=dynamic)


class Kept:
    """A logger that keeps the numbers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.rows.append(dict(values))

    def image(self, iteration: int, name: str, image: Tensor) -> None:
        """Nothing: there is no evaluation."""

    def close(self) -> None:
        """Nothing."""


def peak_flops(device: torch.device, given: float | None) -> float | None:
    if given is not None or device.type != "cuda":
        return given and given * 1e12
    return next((peak for part, peak in PEAKS.items() if part in torch.cuda.get_device_name(device)), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


def measure(given: argparse.Namespace, folder: Path) -> dict[str, str]:
    device = torch.device(given.device)
    policy = build(given.policy, given.size, given.resolution, device, given.rows, folder / "configs")
    task = SRTask(sources.make("photographs", size=given.resolution, crops=given.contexts), rewards.make("psnr_y"))
    agent = DiffusionNFT(policy, task.reward, group_size=given.group_size, steps=given.steps)
    settings = RunnerSettings(
        iterations=1 + given.iterations, contexts=given.contexts, microbatch=given.microbatch, checkpoint_every=0,
        rollout_batch=given.group_size,
    )  # fmt: skip
    kept = Kept()
    runner = Runner(task, policy, agent, settings, seed=0, folder=folder, loggers=[kept], quiet=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    runner.learn()
    if not runner.updates == 1 + given.iterations:
        raise ValueError(f"expected {1 + given.iterations} updates, got {runner.updates}: the rewards were not numbers")
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    measured = [row for row in kept.rows if "cost/iteration_seconds" in row]
    seconds = statistics.median(row["cost/iteration_seconds"] for row in measured[1:])  # the first one warms up
    flops = (measured[-1]["cost/flops"] - measured[0]["cost/flops"]) / given.iterations
    peak = peak_flops(device, given.peak_tflops)
    weights = sum(p.numel() for name, p in policy.core.named_parameters() if ".lora_" not in name)
    cells = (
        f"{given.policy}, {given.size}", f"{weights / 1e6:.4g} M", f"{given.resolution}^2",
        f"{given.contexts} x {given.group_size}, {given.steps} steps", device_name(device), f"{seconds:.3g}",
        f"{flops / 1e12:.3g}", "-" if peak is None else f"{flops / seconds / peak:.1%}", f"{memory / 2**30:.2f} GiB",
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=sorted(TINY), default="sd3")
    parser.add_argument("--size", choices=("medium", "full", "tiny"), default="full", help="medium, full: as published")
    parser.add_argument("--resolution", type=int, default=512, help="of the SR image, a side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=24)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8, help="samples in one forward without gradient")
    parser.add_argument("--iterations", type=int, default=3, help="after one that warms up")
    parser.add_argument("--peak-tflops", type=float, default=None, help="dense bf16; known for usual GPUs")
    parser.add_argument("--header", action="store_true", help="print the table's head before the row")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(given, Path(folder))
    if given.header:
        print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
    print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()
