"""The uniform wrapper that every reward is used through, and what it returns."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srgym.errors import Refusal
from srgym.notebook import SHOWN, table
from srgym.rewards.info import MADE_BY_THE_BANDIT, RewardInfo
from srgym.rewards.later import Later, settled, then

__all__ = ["Incompatible", "Reward", "RewardOutput", "follow", "full_precision"]


class Incompatible(Refusal):
    """Two parts that can't work together; the message names both sides and what would work."""


@dataclass(frozen=True)
class RewardOutput:
    """Scores of a batch of B images.

    Attributes:
        total: float32 [B], higher is better; NaN where invalid.
        valid: bool [B]; False where there is no score. A score is never made up.
        components: float32 [B] each, by name; NaN where a component is absent.
    """

    total: Tensor
    valid: Tensor
    components: dict[str, Tensor]

    def __repr__(self) -> str:
        scores = self.total[self.valid]
        told = f"mean {scores.mean():.4g}, {scores.min():.4g} to {scores.max():.4g}" if len(scores) else "no score"
        lacking = f", {len(self.total) - len(scores)} without" if len(scores) < len(self.total) else ""
        parts = f", components {', '.join(self.components)}" if self.components else ""
        images = "1 image" if len(self.total) == 1 else f"{len(self.total)} images"
        return f"RewardOutput({images}: {told}{lacking}{parts})"

    def _repr_html_(self) -> str:
        columns = {"total": self.total, **self.components}
        rows = [
            [i, *(f"{float(values[i]):.4g}" for values in columns.values())] for i in range(min(len(self.total), SHOWN))
        ]
        return table(["image", *columns], rows, repr(self))


class Reward:
    """A reward: `reward(sr, lr=..., hr=...) -> RewardOutput`.

    Wraps a callable `(sr, ...)` that returns [B] numbers, a mapping of name to [B] (whose `total` is the score, or
    whose sum is when it has none; a bool `valid` may be among them), or a `RewardOutput`; or, where it has asked
    somebody for them, a function without arguments that waits for any of these. It hands the callable what it names and
    nothing else, in float32 and outside any autocast: bfloat16 scores lose the spread inside a group.

    Args:
        score: the callable.
        info: what it declares. An instance may narrow it by attributes of the same names (`needs`, `range`, ...),
            for a class whose needs depend on its options.
    """

    def __init__(self, score: Callable[..., Any], info: RewardInfo) -> None:
        if isinstance(score, nn.Module):
            score.requires_grad_(False).eval()
        self.score = score
        self.info = info
        forward = score.forward if isinstance(score, nn.Module) else score
        parameters = inspect.signature(forward).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._accepts = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"sr"}
        self._accepts -= set(getattr(score, "keywords", ()))  # options that a partial has bound
        self.name = info.name
        self.needs = frozenset(getattr(score, "needs", info.needs))
        self.wants = frozenset(getattr(score, "wants", info.wants)) - self.needs
        self.differentiable = bool(getattr(score, "differentiable", info.differentiable))
        self.group = bool(getattr(score, "group", info.group))
        self.range: tuple[float, float] = tuple(getattr(score, "range", info.range))
        self.direction = str(getattr(score, "direction", info.direction))
        self.variant = str(getattr(score, "variant", info.variant))
        self.unit, self.colour_space, self.purpose = info.unit, info.colour_space, info.purpose
        self.kin = frozenset(getattr(score, "kin", info.kin))
        self.doc, self.licence, self.weights = info.doc, info.licence, info.weights

    def __repr__(self) -> str:
        return f"Reward({self.name!r}, needs={sorted(self.needs)}, range={self.range})"

    def _repr_html_(self) -> str:
        facts = {
            "needs": ", ".join(sorted(self.needs)) or "nothing but SR",
            "range": "{:.4g} to {:.4g}".format(*self.range),
            "better": self.direction,
            "gradient": "reaches SR" if self.differentiable else "none",
            "licence": self.licence,
            "weights": self.weights,
        }
        return table([self.name, self.doc], facts.items())

    def missing(self, available: Collection[str]) -> frozenset[str]:
        """The needs that `available` context names leave open; `group` and `index` are always at hand."""
        return self.needs - frozenset(available) - MADE_BY_THE_BANDIT

    @property
    def compares(self) -> bool:
        """Whether a score may depend on the other samples of its group, which then belong into one call."""
        return self.group or "group" in self.needs | self.wants

    def __call__(
        self, sr: Tensor, *, lr: Tensor | None = None, hr: Tensor | None = None, **context: Any
    ) -> RewardOutput:
        """Score SR images.

        Args:
            sr: float [B, 3, H, W] in [0, 1].
            lr: float [B, 3, h, w]. hr: float [B, 3, H, W].
            context: `text` list[str], `degradation` list[dict], `tags` list[list[str]], `group` and `index` int64 [B],
                `intermediate` list of image batches; None counts as not given.

        Raises:
            Incompatible: when a need isn't given, naming the reward and the argument.
            ValueError: for a context or a returned score of the wrong shape, naming the reward.
        """
        return settled(self.begin(sr, lr=lr, hr=hr, **context))

    def begin(
        self, sr: Tensor, *, lr: Tensor | None = None, hr: Tensor | None = None, **context: Any
    ) -> Later[RewardOutput]:
        """Score SR images without waiting for whom the reward asks: the scores, or a function that waits for them.

        Arguments and errors as when called; what goes wrong with an answer is raised by the function.
        """
        arguments = {"lr": lr, "hr": hr, **context}
        arguments = {key: value for key, value in arguments.items() if value is not None}
        self._check_arguments(sr, arguments)
        sr = sr.float()
        finite = torch.isfinite(sr).flatten(1).all(1)
        rows = finite[:, None, None, None]
        # A broken image must neither crash the reward nor be scored; its row is blanked and marked invalid below.
        seen = torch.where(rows, sr, torch.zeros_like(sr))
        wanted = {key: _to_float32(v) for key, v in arguments.items() if self._takes_all or key in self._accepts}
        if isinstance(self.score, nn.Module):
            follow(self.score, sr.device)
        grad = self.differentiable and torch.is_grad_enabled()

        def read(scores: Any) -> RewardOutput:
            output = self._read(scores, sr, finite)
            if seen.requires_grad:
                _stop_gradient_of_invalid(seen, output.valid)
            return output

        with self._scoring(sr, grad):
            scores = self.score(seen, **wanted)
        if not callable(scores):
            return read(scores)

        def answered() -> Any:
            with self._scoring(sr, grad):
                return scores()

        return then(answered, read)

    @contextlib.contextmanager
    def _scoring(self, sr: Tensor, grad: bool) -> Iterator[None]:
        """In full precision, with a gradient or none; an error says which reward it came from."""
        with full_precision(sr.device), torch.set_grad_enabled(grad):
            try:
                yield
            except Exception as error:
                error.add_note(f"while the reward '{self.name}' scored SR images of {list(sr.shape)}")
                raise

    @property
    def has_map(self) -> bool:
        """Whether it can say where an image is bad: its callable has a method `map`."""
        return callable(getattr(self.score, "map", None))

    @torch.no_grad()
    def map(self, sr: Tensor, **context: Any) -> Tensor:
        """Where SR images [B, 3, H, W] are bad: float32 [B, 1, H, W] in [0, 1], 1 the worst.

        Args:
            context: as when scoring; the reward's `map` is handed what it names.

        Raises:
            Incompatible: for a reward that has no map. ValueError: for a map of another shape.
        """
        if not self.has_map:
            raise Incompatible(f"reward '{self.name}' has no map of faults; 'finpercep' has one")
        kinds = inspect.signature(self.score.map).parameters.values()  # type: ignore[attr-defined]
        takes_all, named = any(p.kind is p.VAR_KEYWORD for p in kinds), {p.name for p in kinds}
        wanted = {k: _to_float32(v) for k, v in context.items() if v is not None and (takes_all or k in named)}
        with full_precision(sr.device):
            fault = self.score.map(sr.float().nan_to_num(0.0), **wanted)  # type: ignore[attr-defined]
        if tuple(fault.shape) != (len(sr), 1, *sr.shape[-2:]):
            raise Refusal(
                f"{self._function()}: expected a map of shape {[len(sr), 1, *sr.shape[-2:]]}, got {list(fault.shape)}"
            )
        return torch.as_tensor(fault).float().clamp(0, 1)

    def _check_arguments(self, sr: Tensor, arguments: Mapping[str, Any]) -> None:
        if sr.ndim != 4 or sr.shape[1] != 3 or not sr.is_floating_point() or sr.shape[0] == 0:
            raise Refusal(f"{self.name}: expected sr as float [B, 3, H, W], got {sr.dtype} {tuple(sr.shape)}")
        lacking = [key for key in sorted(self.needs) if key not in arguments]
        if self.group and "group" not in arguments:
            lacking.append("group")
        if lacking:
            raise Incompatible(
                f"reward '{self.name}' needs {_listed(lacking)}, which this call doesn't give; "
                f"it was given {_listed(['sr', *arguments])}"
            )
        if "hr" in arguments and arguments["hr"].shape != sr.shape:
            raise Refusal(
                f"{self.name}: expected hr of the shape of sr, {tuple(sr.shape)}, got {tuple(arguments['hr'].shape)}"
            )
        for key, value in arguments.items():
            if key != "intermediate" and hasattr(value, "__len__") and len(value) != len(sr):
                raise Refusal(f"{self.name}: expected {key} for {len(sr)} images, got {len(value)}")

    def _read(self, returned: Any, sr: Tensor, finite: Tensor) -> RewardOutput:
        """Whatever the callable returned as a `RewardOutput`, checked."""
        valid = finite
        if isinstance(returned, RewardOutput):
            returned = {**returned.components, "total": returned.total, "valid": returned.valid}
        if isinstance(returned, Mapping):
            if "valid" in returned:
                valid = valid & self._column(returned["valid"], sr, "valid").bool()
            parts = {key: self._column(v, sr, key) for key, v in returned.items() if key != "valid"}
            if not parts:
                raise Refusal(f"{self._function()}: expected at least one score in the returned mapping, got none")
            total = parts.pop("total") if "total" in parts else torch.stack(list(parts.values())).sum(0)
        else:
            parts, total = {}, self._column(returned, sr, "total")
        valid = valid & torch.isfinite(total)
        nan = torch.full_like(total, torch.nan)
        return RewardOutput(
            total=torch.where(valid, total, nan),
            valid=valid,
            components={key: torch.where(torch.isfinite(v) & finite, v, nan) for key, v in parts.items()},
        )

    def _column(self, value: Any, sr: Tensor, part: str) -> Tensor:
        """One returned score as float32 [B] on the images' device."""
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise Refusal(f"{self._function()}: expected '{part}' as numbers [{len(sr)}], got {value!r}") from error
        if value.shape != (len(sr),):
            raise Refusal(
                f"{self._function()}: expected '{part}' of shape [{len(sr)}], one an image, got {list(value.shape)}"
            )
        return torch.as_tensor(value).to(sr.device, torch.float32)

    def _function(self) -> str:
        return f"reward '{self.name}' ({self.info.path})"


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 that is float32: outside autocast, and on a GPU without TF32, which keeps 10 bits of a product."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    held = matmul.fp32_precision, convolution.fp32_precision
    try:
        matmul.fp32_precision = convolution.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision = held


def follow(module: nn.Module, device: torch.device) -> None:
    """Bring a module to where the images are."""
    held = next(module.parameters(), next(module.buffers(), None))
    if held is not None and held.device != device:
        module.to(device)


def _stop_gradient_of_invalid(seen: Tensor, valid: Tensor) -> None:
    """0 * nan is nan: without this an invalid row's backward would poison every weight behind the images."""
    rows = valid[:, None, None, None]
    seen.register_hook(lambda grad: torch.where(rows, grad, torch.zeros_like(grad)))  # type: ignore[no-untyped-call]


def _to_float32(value: Any) -> Any:
    """Float tensors, alone or in a list, in float32; all else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, Sequence) and value and all(isinstance(v, Tensor) for v in value):
        return [_to_float32(v) for v in value]
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
