"""Counting what a function costs on the meta device: operations, and bytes alive at the worst moment."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["extended", "traced"]


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations as torch's flop counter does, and the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.live, self.peak = 0.0, 0, 0
        self._known: dict[int, int] = {}
        self._watched: dict[int, Any] = {}

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave what was there before out of the count."""
        self._known |= {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def _freed(self, key: int) -> None:
        del self._watched[key]
        self.live -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        return out

    def _born(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._watched[key] = weakref.ref(storage, lambda _: self._freed(key))


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """The memory of fused attention: on the meta device torch would write out every attention matrix."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        fused = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = fused(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out

    stock = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = stock


def traced(model: nn.Module, run: Callable[[], Any]) -> tuple[float, float]:
    """(operations, peak bytes beside the model's own) of `run` on the meta device."""
    count = _Count()
    count.ignore([*model.parameters(), *model.buffers()])
    with _fused_attention(), count:
        run()
    for parameter in model.parameters():
        parameter.grad = None
    return count.flops, float(count.peak)


_BLOCKS = ("transformer_blocks", "single_transformer_blocks", "layers")
_RUN = 2


def _kinds(core: nn.Module) -> list[tuple[str, list[int]]]:
    """The core's blocks by kind: (the list they are in, their places); blocks of one kind have the same tensors."""
    kinds: dict[Any, list[int]] = {}
    for name in _BLOCKS:
        for place, block in enumerate(getattr(core, name, ())):
            shapes = tuple((part, p.shape) for part, p in block.named_parameters())
            kinds.setdefault((name, type(block), shapes), []).append(place)
    return [(key[0], places) for key, places in kinds.items()]


@contextlib.contextmanager
def _cut(core: nn.Module, kept: Sequence[tuple[str, Sequence[int]]]) -> Iterator[None]:
    """Run the core with the blocks at some places alone."""
    whole = {name: getattr(core, name) for name, _ in kept}
    for name, blocks in whole.items():
        places = sorted(place for other, some in kept if other == name for place in some)
        setattr(core, name, nn.ModuleList(blocks[place] for place in places))
    try:
        yield
    finally:
        for name, blocks in whole.items():
            setattr(core, name, blocks)


def extended(model: nn.Module, core: nn.Module, run: Callable[[], Any]) -> tuple[float, float]:
    """`traced`, by two and three blocks of each kind: both numbers grow by the same with every block."""
    kinds = _kinds(core)
    few = [(name, places[:_RUN]) for name, places in kinds]
    with _cut(core, few):
        with _fused_attention():
            run()  # fills the models' tables of positions, which stay
        flops, peak = base_flops, base_peak = traced(model, run)
    for i, (name, places) in enumerate(kinds):
        if len(places) > _RUN:
            with _cut(core, [*few[:i], (name, places[: _RUN + 1]), *few[i + 1 :]]):
                more_flops, more_peak = traced(model, run)
            flops += (len(places) - _RUN) * (more_flops - base_flops)
            peak += (len(places) - _RUN) * max(more_peak - base_peak, 0.0)
    return flops, peak
