"""One run on several processes: contexts shared out by whole groups, scores gathered as numbers, gradients summed.

Started by `torchrun -m srgym train ...` or `accelerate launch -m srgym train ...`, which say in the environment how
many processes there are. Each process rolls out and learns from its own contexts; what an iteration does (contexts,
group size, rows, their weights) is what one process alone would do, so their number changes nothing but the time.

Two ways, by `runner.parallel`:

- `ddp`: every process holds the whole policy, and gradients are summed in one message after the last microbatch. What
  is trained is a LoRA, some hundred megabytes beside a model of tens of gigabytes, so overlapping the message with the
  backward pass, as DistributedDataParallel does, would gain nothing; and a process whose groups were all filtered out
  just adds nothing to the sum.
- `fsdp`: PyTorch's FSDP2 (`fully_shard`) splits the transformer, block by block, for a base that doesn't fit one GPU.

A process that ends, or doesn't answer for `runner.patience` seconds, ends the others too, with `LostProcess`.
"""

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.policies.base import Policy

__all__ = ["LostProcess", "World", "agree", "like", "shard", "unshard", "whole"]

_FOREVER = timedelta(days=365)


class LostProcess(Exception):
    """Another process of the run ended, or stopped answering; the command ends with exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class World:
    """The processes of a run. `World()` is one process alone: everything in it is as if it weren't there.

    Attributes:
        rank, size: which process this is, of how many.
        sharded: whether the policy is split between them, so that all must take part in every forward.
        patience: seconds that one waits for the others.
        slow: the group in which they wait for as long as it takes.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    patience: float = 0.0
    slow: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def start(cls, device: torch.device | str = "cpu", patience: float = 900.0) -> "World":
        """Join the processes that the environment names; alone where it names none.

        Raises:
            ValueError: if the processes can't have a GPU each.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        import torch.distributed as dist

        device = torch.device(device)
        if device.type == "cuda":
            _take_gpu(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=patience))
        slow = dist.new_group(backend="gloo", timeout=_FOREVER)
        return cls(dist.get_rank(), size, patience=patience, slow=slow)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    # Numbers

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` (JSON values; floats stay exact), in the order of the ranks."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        device = _device()
        sent = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(sent)], device=device))
        longest = max(int(size) for size in sizes)
        received = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(self.size)]
        dist.all_gather(received, nn.functional.pad(sent, (0, longest - len(sent))))
        pairs = zip(received, sizes, strict=True)
        return [json.loads(bytes(text[: int(size)].cpu().tolist()).decode()) for text, size in pairs]

    def any(self, value: bool) -> bool:
        """Whether it's true of any process."""
        return value if self.alone else any(self.gather(bool(value)))

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum of every number over the processes; a process may lack some."""
        if self.alone:
            return dict(values)
        summed: dict[str, float] = {}
        for theirs in self.gather(dict(values)):
            for name, value in theirs.items():
                summed[name] = summed.get(name, 0.0) + value
        return summed

    def barrier(self) -> None:
        """Wait for every process."""
        self.gather(None)

    def wait(self) -> None:
        """Wait for every process, however long one of them has work that the others have no part in."""
        if not self.alone:
            torch.distributed.barrier(group=self.slow)

    def lost(self, error: Exception) -> LostProcess | None:
        """What to raise for an error of the messages between processes; None for any other."""
        message = f"{type(error).__name__} {error}".lower()
        if self.alone or not any(
            word in message for word in ("gloo", "nccl", "distnetwork", "distbackend", "diststore")
        ):
            return None
        return LostProcess(
            f"process {self.rank} of {self.size} lost the others: one of them ended (its own message says why), or "
            f"gave no answer for runner.patience={self.patience:g} s. The same command goes on from the last checkpoint"
        )

    def close(self) -> None:
        """Leave the others, at the end, when nothing that was split is in use any more."""
        if self.alone:
            return
        gc.collect()  # a group that a forgotten module still holds would abort the interpreter as it ends
        self.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()

    # Work

    def share(self, contexts: Tensor) -> Tensor:
        """This process's part of an iteration's contexts [G]; a context's whole group is drawn and learnt from here.

        Raises:
            ValueError: if there are fewer contexts than processes, or the processes of a split policy would have
                different numbers of them, and so of forwards.
        """
        if len(contexts) < self.size:
            raise Refusal(
                f"runner.contexts={len(contexts)} can't be shared by {self.size} processes: expected at least one each"
            )
        if self.sharded and len(contexts) % self.size:
            raise Refusal(
                f"runner.contexts={len(contexts)} can't be shared evenly by {self.size} processes, as runner.parallel="
                f"fsdp must: expected a multiple of {self.size}"
            )
        return contexts[len(contexts) * self.rank // self.size : len(contexts) * (self.rank + 1) // self.size]

    def scores(self, rollout: TensorDict) -> tuple[TensorDict, int]:
        """The rewards of all processes' rollouts: `reward`, `valid`, `group` and `components`; no images are sent.

        Second, where among them this rollout's begin.
        """
        if self.alone or "reward" not in rollout:
            return rollout, 0
        names = sorted(rollout["components"].keys())
        own = {name: rollout[name].tolist() for name in ("reward", "valid", "group")}
        own |= {f"components.{name}": rollout["components"][name].tolist() for name in names}
        parts = self.gather(own)
        columns = {name: [value for part in parts for value in part[name]] for name in own}
        columns["group"] = [f + (i << 32) for i, part in enumerate(parts) for f in part["group"]]
        kinds = {name: rollout["components"][name].dtype for name in names}
        components = {name: torch.tensor(columns[f"components.{name}"], dtype=kinds[name]) for name in names}
        size = [len(columns["group"])]
        gathered: TensorDict = TensorDict(
            {name: torch.tensor(columns[name]) for name in ("reward", "valid", "group")}, batch_size=size
        )
        gathered["components"] = TensorDict(components, batch_size=size)
        return gathered, sum(len(part["group"]) for part in parts[: self.rank])

    def parts(self, rows: TensorDict | None, size: int, spare: TensorDict | None) -> Iterator[tuple[TensorDict, float]]:
        """Microbatches of this process's rows, each with its share of all processes' rows.

        Where the policy is split, every process must run as many forwards as the others: one that has fewer rows goes
        on with rows of share 0, its own or else `spare`.
        """
        count = 0 if rows is None else len(rows)
        counts = self.gather(count)
        if not sum(counts):
            return
        rounds = -(-max(counts) // size) if self.sharded else -(-count // size)
        for start in range(0, rounds * size, size):
            if rows is not None and start < count:
                part = rows[start : start + size]
                yield part, len(part) / sum(counts)
            else:
                filler = rows if rows is not None and count else spare
                assert filler is not None
                yield filler[:1], 0.0

    def sum_gradients(self, parameters: Iterable[nn.Parameter | Tensor]) -> None:
        """Replace gradients by their sums over the processes. Those of a split policy are sums already."""
        if self.alone or self.sharded:
            return
        import torch.distributed as dist

        tensors = list(parameters)
        reached = torch.tensor([float(p.grad is not None) for p in tensors], device=tensors[0].device)
        dist.all_reduce(reached)
        tensors = [p for p, count in zip(tensors, reached.tolist(), strict=True) if count]
        if not tensors:
            return
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in tensors])
        dist.all_reduce(flat)
        for parameter, grad in zip(tensors, torch.split(flat, [p.numel() for p in tensors]), strict=True):
            parameter.grad = grad.view_as(parameter).to(parameter.dtype)


def _take_gpu(device: torch.device) -> None:
    """Let this process work on the GPU of its number among its machine's processes."""
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise Refusal(
            f"runner.device={device} would put all processes on one GPU: expected cuda or auto, by which each takes "
            "its own"
        )
    if local >= there:
        raise Refusal(
            f"process {local} of this machine finds {there} GPU(s): start at most {there} processes a machine "
            f"(torchrun --nproc-per-node {there})"
        )
    torch.cuda.set_device(local)


def _device() -> torch.device:
    """Where this process's messages lie."""
    import torch.distributed as dist

    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


# A policy in pieces


def shard(policy: Policy, device: torch.device | str = "cpu", microbatch: int = 1) -> None:
    """Split the core network between the processes, block by block (FSDP2), after its adapters were added.

    Gradients come out summed over the processes, and not averaged: the rows' shares add up to one.

    Args:
        policy: with adapters.
        device: where the pieces lie.
        microbatch: rows of one loss at most. Processes may hold different numbers of them and must run equally many
            forwards, so the policy may not cut them into several.

    Raises:
        ValueError: for a policy without adapters, or one that would cut a microbatch.
    """
    if microbatch > getattr(policy, "rows", microbatch):
        raise Refusal(
            f"runner.parallel=fsdp runs every microbatch in one forward: expected runner.microbatch={microbatch} to be "
            f"at most policy.rows={getattr(policy, 'rows', 0)}; change either"
        )
    if not policy.has_adapters:
        raise Refusal(
            "runner.parallel=fsdp splits the base under a LoRA: expected lora settings, got lora=null; use "
            "runner.parallel=ddp"
        )
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    group = dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, torch.device(device).type)
    core = policy.core
    kinds = tuple(getattr(core, "_no_split_modules", None) or ())
    blocks = [module for module in core.modules() if type(module).__name__ in kinds]
    for block in blocks or [child for child in core.children() if any(True for _ in child.parameters())]:
        if not isinstance(block, nn.ModuleList):
            fully_shard(block, mesh=mesh)
    fully_shard(core, mesh=mesh)
    for module in core.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    policy.sharded = True


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together, on every process (all must call); any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor split as `parameter` is, or on its device where that isn't split."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return tensor.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    placed: Tensor = distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]
    return placed


def unshard(policy: Policy, main: bool) -> None:
    """Put the policy together again on the main process's CPU, to be saved; the others are left without weights."""
    for module in policy.core.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, "full_tensor"):
                full = whole(parameter.detach())
                kept = full.cpu() if main else torch.empty(0)
                module._parameters[name] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
    policy.sharded = False


def agree(states: Sequence[Mapping[str, Any]]) -> tuple[float, bool, int | None]:
    """(seconds, finished, signal) that all processes go on with, from what each of them sees.

    Raises:
        ValueError: if they aren't at the same iteration.
    """
    iterations = [each["iteration"] for each in states]
    if len(set(iterations)) > 1:
        raise Refusal(
            f"the processes are at iterations {iterations} and must be at the same: is out= a folder that all of them "
            "see?"
        )
    signals = [each["signal"] for each in states if each["signal"] is not None]
    return max(each["seconds"] for each in states), any(each["finished"] for each in states), next(iter(signals), None)
