"""What is known of a reward before it runs: its arguments, range and origin. Imports nothing heavy."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from srgym.errors import Refusal, WrongType

__all__ = ["CONTEXT", "DIRECTIONS", "MADE_BY_THE_BANDIT", "PURPOSES", "RewardInfo", "describe", "takes_sr"]

# What the library itself hands a reward beside `sr`. An argument of one of these names that has a default is an
# optional context; any argument without a default is a need, whatever its name.
CONTEXT = ("lr", "hr", "text", "degradation", "tags", "group", "index", "intermediate")

# Known wherever rollouts are scored, so no source of contexts has to provide them.
MADE_BY_THE_BANDIT = frozenset({"group", "index"})

DIRECTIONS = ("higher", "none")

# What a metric witnesses: that the image is the right one, or that it looks right; "" of what says neither.
PURPOSES = ("", "fidelity", "perceptual")


@dataclass(frozen=True)
class RewardInfo:
    """What a reward declares.

    Attributes:
        name: what `make` knows it by.
        path: `module:object`, where it lives.
        needs: argument names besides `sr` that it can't score without.
        wants: context names that it uses when they are given.
        range: the closed interval that totals lie in.
        direction: "higher" is better; "none" for a control that follows no quality at all.
        differentiable: whether its gradient reaches `sr`.
        group: whether it must see all samples of a context at once; it then receives `group`, int64 [B].
        licence, weights: of the reward, and where its weights come from. A licence that isn't given is the library's
            own for the library's rewards, and "not stated" for others'.
        variant: what its numbers must be quoted with, such as a training set.
        unit: of its numbers: "dB", or "" for a score without one.
        colour_space: what of the image it looks at.
        purpose: "fidelity" or "perceptual", where it is a judge of one of these.
        kin: what it was trained on or labels: names of rewards and of data sets (see `srgym.rewards.kin`).
        doc: the first line of its documentation.
    """

    name: str
    path: str
    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    range: tuple[float, float] = (-math.inf, math.inf)
    direction: str = "higher"
    differentiable: bool = False
    group: bool = False
    licence: str = ""
    weights: str = "none"
    variant: str = ""
    unit: str = ""
    colour_space: str = "RGB"
    purpose: str = ""
    kin: frozenset[str] = frozenset()
    doc: str = ""

    def __post_init__(self) -> None:
        if not self.licence:
            object.__setattr__(self, "licence", "Apache-2.0" if self.path.startswith("srgym.") else "not stated")
        low, high = self.range
        if math.isnan(low) or math.isnan(high) or low >= high:
            raise Refusal(f"reward '{self.name}': expected a range (low, high) with low < high, got {self.range}")
        if self.direction not in DIRECTIONS:
            raise Refusal(f"reward '{self.name}': expected a direction of {DIRECTIONS}, got '{self.direction}'")
        if self.purpose not in PURPOSES:
            raise Refusal(f"reward '{self.name}': expected a purpose of {PURPOSES}, got '{self.purpose}'")

    def row(self) -> dict[str, Any]:
        """The same as a plain dict, for a listing: sets become sorted lists."""
        sets = {key: sorted(getattr(self, key)) for key in ("needs", "wants", "kin")}
        return asdict(self) | sets | {"range": list(self.range)}


def describe(target: Callable[..., Any], name: str, **declared: Any) -> RewardInfo:
    """Read a reward's needs off its signature and put them beside what it declares.

    Args:
        target: a function `(sr, ...)`, a class whose instances are called so, or such an instance.
        declared: fields of `RewardInfo`.

    Raises:
        TypeError: when the first argument isn't `sr`, or a group reward takes no `group`.
    """
    parameters = _parameters(target)
    if not takes_sr(target):
        raise WrongType(
            f"reward '{name}': expected a callable whose first argument is 'sr', got ({', '.join(parameters)})"
        )
    named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    required = {key for key, p in named.items() if p.default is p.empty} - {"sr"}
    group = bool(declared.pop("group", False)) or "group" in required
    if group and "group" not in named and not takes_all:
        raise WrongType(f"reward '{name}' scores whole groups, so it must take an argument 'group' (int64 [B])")
    optional = {key for key, p in named.items() if p.default is not p.empty and key in CONTEXT}
    return RewardInfo(
        name=name,
        path=f"{_module(target)}:{_qualname(target)}",
        needs=frozenset(declared.pop("needs", required - {"group"})),
        wants=frozenset(declared.pop("wants", optional - {"group"} if group else optional)),
        group=group,
        doc=_first_line(target),
        **declared,
    )


def takes_sr(target: Callable[..., Any]) -> bool:
    """Whether this is a function whose first argument is `sr`, a class whose instances are called so, or such one."""
    return next(iter(_parameters(target)), None) == "sr"


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # A torch module's own __call__ says (*args, **kwargs); its forward names the arguments.
    method = "forward" if hasattr(target, "forward") else "__call__"
    if inspect.isclass(target):
        parameters = dict(inspect.signature(getattr(target, method)).parameters)
        parameters.pop(next(iter(parameters), ""), None)  # self
        return parameters
    return inspect.signature(target if inspect.isroutine(target) else getattr(target, method)).parameters


def _module(target: Callable[..., Any]) -> str:
    return str(getattr(target, "__module__", type(target).__module__))


def _qualname(target: Callable[..., Any]) -> str:
    return str(getattr(target, "__qualname__", type(target).__qualname__))


def _first_line(target: Callable[..., Any]) -> str:
    return (inspect.getdoc(target) or "").strip().split("\n")[0]
