"""The linter for rewards: does one keep the contract, on real pictures?

`check(reward)` tries shape, finite scores, range, direction, independence of batch and order, determinism, untouched
inputs and the gradient, measures time and memory, and says of every violation what a person needs to mend it.
"""

import ctypes
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srgym.errors import Refusal
from srgym.registry import Spec
from srgym.rewards.base import Incompatible, Reward, RewardOutput
from srgym.rewards.registry import make
from srgym.rewards.specimens import WORSE, Specimen, photographs, specimen, worse

__all__ = ["CHECKS", "CheckReport", "Finding", "check"]

CHECKS = ("shape", "finite", "range", "direction", "batch", "order", "repeat", "inputs", "gradient", "cost")

_INVARIANCE = 1e-5
_GRADIENT = 0.05  # relative: finite differences in float32 are no better
_STEPS = (4e-3, 1.2e-3, 4e-4, 1.2e-4, 4e-5, 1.2e-5)  # root mean square, in units of the images' range


@dataclass(frozen=True)
class Finding:
    """What one check found: status "ok", "fails", "note" (worth knowing, no violation) or "skipped"."""

    check: str
    status: str
    measured: str
    sentence: str = ""


@dataclass(frozen=True)
class CheckReport:
    """All findings on one reward. `ok` if nothing fails; `violations` are sentences; `table()` is for printing."""

    reward: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def violations(self) -> list[str]:
        return [f"{self.reward}: {f.sentence}" for f in self.findings if f.status == "fails"]

    def table(self) -> str:
        """The findings as lines of text: check, status, what was measured; sentences below."""
        width = max(len(f.check) for f in self.findings)
        lines = [f"{f.check:<{width}}  {f.status:<7}  {f.measured}".rstrip() for f in self.findings]
        sentences = [f"{f.check}: {f.sentence}" for f in self.findings if f.sentence]
        return "\n".join([f"reward {self.reward}", *lines, *sentences])


def check(
    reward: "Spec | Reward | Callable[..., Any]",
    *,
    size: int = 192,
    context: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
    **options: Any,
) -> CheckReport:
    """Try a reward on crops of photographs.

    Args:
        reward: anything that `make` takes, with its `options`.
        size: of the square pictures, a multiple of 4 up to 280.
        context: functions by context name that make what the linter can't, such as a mask, or in another way:
            `{"mask": lambda specimen: torch.ones_like(specimen.sr[:, :1])}`; `lr`, `hr`, `text` (a reasoned one),
            `degradation` (a record), `tags`, `group` and `index` are there.
        skip: names of `CHECKS` to leave out.

    Raises:
        Incompatible: when the reward needs a context that neither the linter nor `context` makes.
        ValueError: for an unknown name in `skip`.
    """
    unknown = set(skip) - set(CHECKS)
    if unknown:
        raise Refusal(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    made = make(reward, **options)
    return _Linter(made, size, dict(context or {}), torch.device(device), seed).run(skip)


class _Linter:
    def __init__(
        self, reward: Reward, size: int, makers: dict[str, Callable[[Specimen], Any]], device: torch.device, seed: int
    ) -> None:
        self.reward, self.makers, self.device, self.seed = reward, makers, device, seed
        self.hr = photographs(size)
        self.seen: list[RewardOutput] = []
        # Two candidates of each photograph, a good and a middling one, so that groups are groups.
        good, middling = worse(self.hr, "blur", 0.8), worse(self.hr, "noise", 0.05, seed)
        self.base = self._prepare(torch.stack([good, middling], 1))
        missing = reward.missing(self.base.context)
        if missing:
            raise Incompatible(
                f"reward '{reward.name}' needs {', '.join(map(repr, sorted(missing)))}, which the linter can't make; "
                f"hand it a maker: check(..., context={{{min(missing)!r}: lambda specimen: ...}})"
            )

    def run(self, skip: Collection[str]) -> CheckReport:
        findings = [self._shape()]
        if findings[0].status == "fails":  # nothing else can be told of it
            return CheckReport(self.reward.name, tuple(findings))
        for name in CHECKS[1:]:
            if name in skip:
                findings.append(Finding(name, "skipped", "by request"))
                continue
            try:
                findings.append(getattr(self, f"_{name}")())
            except Exception as error:  # a stranger's code: that it raised is what the linter is there to report
                findings.append(Finding(name, "fails", "raised", f"it raised {type(error).__name__}: {error}"))
        # Every call of every check is held against the range, so it is told last.
        if "range" not in skip:
            findings[CHECKS.index("range")] = self._range()
        return CheckReport(self.reward.name, tuple(findings))

    def _prepare(self, candidates: Tensor) -> Specimen:
        made = specimen(candidates, self.hr)
        extra = {name: maker(made) for name, maker in self.makers.items()}
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in {**made.context, **extra}.items()}
        return Specimen(made.sr.to(self.device), moved)

    def _score(self, what: Specimen) -> RewardOutput:
        output = self.reward(what.sr, **what.context)
        self.seen.append(output)
        return output

    def _shape(self) -> Finding:
        try:
            self._score(self.base)
        except Exception as error:  # as above
            return Finding("shape", "fails", "raised", f"it raised {type(error).__name__}: {error}")
        return Finding("shape", "ok", f"[{len(self.base.sr)}] float32")

    def _finite(self) -> Finding:
        output = self.seen[0]
        broken = int((~output.valid).sum())
        if broken:
            return Finding(
                "finite",
                "fails",
                f"{broken} of {len(output.valid)} invalid",
                f"it gave no finite score for {broken} of {len(output.valid)} sound photographs; training drops such "
                f"samples, so look for a division by zero, a logarithm or root of a negative number, or a failed parse",
            )
        flat = self._prepare(torch.full_like(self.hr, 0.5)[:, None].repeat(1, 2, 1, 1, 1))
        if not self._score(flat).valid.all():
            return Finding("finite", "note", "photographs valid, flat grey not", "a flat grey picture gets no score")
        return Finding("finite", "ok", "photographs and flat grey")

    def _range(self) -> Finding:
        totals = torch.cat([o.total.detach()[o.valid].cpu() for o in self.seen])
        if not len(totals):
            return Finding("range", "skipped", "no valid score")
        low, high = float(totals.min()), float(totals.max())
        declared = f"[{self.reward.range[0]:g}, {self.reward.range[1]:g}]"
        slack = _INVARIANCE * max(1.0, abs(low), abs(high))
        if low < self.reward.range[0] - slack or high > self.reward.range[1] + slack:
            return Finding(
                "range",
                "fails",
                f"[{low:.4g}, {high:.4g}] of {declared}",
                f"its scores ran from {low:.4g} to {high:.4g} though it declares {declared}; "
                f"declare the range that it has, in register_reward(range=...), or clamp it",
            )
        return Finding("range", "ok", f"[{low:.4g}, {high:.4g}] of {declared}")

    def _direction(self) -> Finding:
        if self.reward.direction == "none":
            return Finding("direction", "skipped", "declares none")
        rises, trends = [], []
        for kind, steps in WORSE.items():
            stages = torch.stack([worse(self.hr, kind, step, self.seed) for step in steps], 1)
            output = self._score(self._prepare(stages))
            means = output.total.detach().view(len(self.hr), len(steps)).nanmean(0).tolist()
            trends.append(f"{kind} {means[0]:.3g}>{means[-1]:.3g}")
            if not means[-1] < means[0]:
                rises.append(f"{kind} from {means[0]:.4g} to {means[-1]:.4g}")
        measured = ", ".join(trends)
        if len(rises) > 1:
            return Finding(
                "direction",
                "fails",
                measured,
                f"its score doesn't fall as the picture gets worse ({'; '.join(rises)}); higher must be better, "
                f"so return the negative of a distance",
            )
        if rises:
            return Finding("direction", "note", measured, f"its score doesn't fall with {rises[0]}")
        return Finding("direction", "ok", measured)

    def _batch(self) -> Finding:
        rows = list(range(len(self.base.sr)))
        sizes = (2,) if self.reward.group else (1, 2)
        gaps = {}
        for size in sizes:
            cut = [self._score(self.base.rows(rows[i : i + size])) for i in range(0, len(rows), size)]
            gaps[size] = _gap(torch.cat([o.total for o in cut]), self.seen[0].total)
        return self._invariance("batch", max(gaps.values()), f"sizes {', '.join(map(str, (*sizes, len(rows))))}")

    def _order(self) -> Finding:
        groups = [3, 0, 2, 1]
        order = [2 * group + k for group in groups for k in ((0, 1) if self.reward.group else (1, 0))]
        shuffled = self._score(self.base.rows(order)).total
        return self._invariance("order", _gap(shuffled, self.seen[0].total[order]), "permuted")

    def _invariance(self, name: str, gap: float, how: str) -> Finding:
        if gap <= _INVARIANCE:
            return Finding(name, "ok", f"{gap:.1e} ({how})")
        return Finding(
            name,
            "fails",
            f"{gap:.1e} ({how})",
            f"an image's score changes by {gap:.1e} with the {'images beside it' if name == 'batch' else 'order'}, "
            f"more than {_INVARIANCE:g}; look for statistics over the batch (batch norm, standardising, a rank), or "
            f"declare group=True if it must compare the samples of one context",
        )

    def _repeat(self) -> Finding:
        gap = _gap(self._score(self.base).total, self._score(self.base).total)
        if gap <= _INVARIANCE:
            return Finding("repeat", "ok", f"{gap:.1e}")
        return Finding(
            "repeat",
            "fails",
            f"{gap:.1e}",
            f"the same images scored {gap:.1e} apart when asked again; look for dropout in training mode, random "
            f"crops, or sampling without a fixed seed",
        )

    def _inputs(self) -> Finding:
        held = self.base.rows(list(range(len(self.base.sr))))
        self._score(held)
        changed = [
            k for k, v in held.context.items() if isinstance(v, Tensor) and not torch.equal(v, self.base.context[k])
        ]
        changed += [] if torch.equal(held.sr, self.base.sr) else ["sr"]
        if not changed:
            return Finding("inputs", "ok", "untouched")
        return Finding(
            "inputs", "fails", ", ".join(changed), f"it changes {', '.join(changed)} in place; work on a copy"
        )

    def _gradient(self) -> Finding:
        if not self.reward.differentiable:
            return Finding("gradient", "skipped", "declares none")
        pair = self.base.rows([0, 1])
        # Away from 0 and 1, where clamping has no derivative.
        sr = (0.05 + 0.9 * pair.sr).requires_grad_()
        output = self.reward(sr, **pair.context)
        advice = "look for detach(), no_grad(), numpy or rounding on the way, or declare differentiable=False"
        if not output.total.requires_grad:
            return Finding("gradient", "fails", "none", f"it declares a gradient and its score carries none; {advice}")
        (gradient,) = torch.autograd.grad(_projected(output), sr)
        if not torch.isfinite(gradient).all() or not gradient.abs().max() > 0:
            what = "zero" if torch.isfinite(gradient).all() else "not finite"
            return Finding("gradient", "fails", what, f"its gradient is {what}; {advice}")
        error = max(self._gradient_error(pair, sr.detach(), gradient, way) for way in self._ways(sr, gradient))
        if error > _GRADIENT:
            return Finding(
                "gradient",
                "fails",
                f"{error:.0%} off",
                f"its gradient is {error:.0%} off what finite differences say of the score; {advice}",
            )
        return Finding("gradient", "ok", f"{error:.1%} off finite differences")

    def _ways(self, sr: Tensor, gradient: Tensor) -> list[Tensor]:
        """Directions of change [2, 3, H, W], root mean square 1: the gradient itself, and smooth chance."""
        generator = torch.Generator().manual_seed(self.seed)
        chance = F.avg_pool2d(torch.randn(sr.shape, generator=generator), 5, 1, 2).to(sr.device)
        return [way / way.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-30) for way in (gradient, chance)]

    def _gradient_error(self, pair: Specimen, sr: Tensor, gradient: Tensor, way: Tensor) -> float:
        """How far autograd's slope along a direction is from finite differences, at the best of several steps."""
        slope, steepest = float((gradient * way).sum()), float(gradient.norm() * way.norm())
        errors = []
        with torch.no_grad():
            for step in _STEPS:
                ahead, behind = (self.reward(sr + sign * step * way, **pair.context) for sign in (1, -1))
                measured = float(_projected(ahead) - _projected(behind)) / (2 * step)
                # A direction that is nearly level is measured against the steepest one, not against itself.
                errors.append(abs(measured - slope) / max(abs(measured), 0.02 * steepest))
        return min(errors)

    def _cost(self) -> Finding:
        def once() -> float:
            started = time.perf_counter()
            self.reward(self.base.sr, **self.base.context)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - started

        with torch.no_grad():
            seconds = min(once() for _ in range(3))
            memory = _peak_memory(once, self.device)
        count, side = len(self.base.sr), self.base.sr.shape[-1]
        peak = "" if memory is None else f", {memory / 2**20:.0f} MiB at the peak"
        return Finding("cost", "ok", f"{1000 * seconds:.1f} ms for {count} of {side} x {side}{peak}")


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to scores above 1; infinite where only one of the two is NaN."""
    a, b = a.detach(), b.detach()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    return float(((a - b).abs() / b.abs().clamp_min(1.0)).nan_to_num(0.0).max())


def _projected(output: RewardOutput) -> Tensor:
    """One number of two scores; unequal weights, since the sum of a group's relative scores may be constant."""
    return output.total[0] + 0.5 * output.total[1]


def _peak_memory(run: Callable[[], float], device: torch.device) -> int | None:
    """Bytes above what was held before, at the peak of `run`; None where the system doesn't tell."""
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - held)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept would hide what is taken
        held = _process_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        run()
        return max(_process_memory("VmHWM") - held, 0)
    except (OSError, AttributeError):
        return None


def _process_memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
