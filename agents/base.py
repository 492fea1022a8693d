"""What every agent is, and what all of them do alike."""

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from srgym.agents.ema import WeightAverage, evaluation_decay
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.policies.flow import FlowPolicy
from srgym.policies.workload import Workload
from srgym.rewards.base import Incompatible, Reward

__all__ = ["Agent", "Need"]


class Need(enum.Enum):
    """What an agent can't work without."""

    GROUPS = "several samples of one context"
    REWARD_GRADIENT = "a differentiable reward"
    HR = "ground truth"
    PREFERENCES = "a preference dataset"
    DOCUMENTS = "descriptions of images and of their degradations"
    CREDIT = "what each token of a document earned"


class Agent(ABC):
    """Turns rollouts into a loss.

    An iteration: collect as `sampling`, `group_size` and `sampler` say; `prepare` the rollout into rows; for each of
    `batches(rows)` one optimiser step on the gradient of `loss`, accumulated over microbatches of any size, followed by
    `after_update`; and `after_iteration`. Everything random in it follows from the rows' seeds and the number of
    updates so far, so neither the microbatch nor a resumed run changes the result. No other processes are
    known to an agent: where a run is on several, a rollout brings all groups' scores along (`groups.all_scores`).

    An agent touches no dataset, logger or file, and runs on the learner's adapter: the caller holds
    `policy.adapter("default")` around `loss` and its backward.

    Args:
        policy: what is trained.
        reward: what it is trained for; agents that learn from pairs alone need none.
        group_size: samples of a context in one iteration, K.
        epochs: passes over the rows of an iteration.
        ema: the cap of the evaluation average's decay, min((1 + s) / (10 + s), ema); 0: the learner itself.
        provides: what the source of contexts provides, see `check`; None: not known yet, and `check` may be called
            later.

    Raises:
        Incompatible: for parts that can't work together, naming both and what would work.
        ValueError: for a hyperparameter out of its range.
    """

    name: ClassVar[str]
    needs: frozenset[Need] = frozenset()
    trains: ClassVar[Any] = FlowPolicy
    """What kind of policy it can train."""
    sampling: Any = None
    """How it collects, as the policy's `sample` takes it; None: it doesn't, and samples for itself where it must."""
    sampler: str = "default"
    encodes: bool = False
    """Whether `loss` encodes the contexts itself, with gradient, so that rows need no `cond`."""

    def __init__(
        self,
        policy: Policy,
        reward: Reward | None = None,
        *,
        group_size: int = 1,
        epochs: int = 1,
        ema: float = 0.9,
        provides: Collection[str] | None = None,
    ) -> None:
        if not isinstance(policy, self.trains):
            flows = isinstance(policy, FlowPolicy)
            raise Incompatible(
                f"{type(self).__name__} trains {_KINDS[not flows]}, and '{getattr(policy, 'name', policy)}' is one of "
                f"{_KINDS[flows]}: take {_OTHERS[not flows]}"
            )
        if Need.GROUPS in self.needs and group_size < 2:
            raise Incompatible(
                f"{type(self).__name__} compares the samples of one context and can't work with groups of "
                f"{group_size}: set group_size to at least 2, or use ColdStart or REFL"
            )
        if group_size < 1 or epochs < 1:
            raise Refusal(f"group_size and epochs are at least 1, got {group_size} and {epochs}")
        if not 0 <= ema < 1:
            raise Refusal(f"ema is in [0, 1), got {ema}")
        self.policy, self.reward = policy, reward
        self.group_size, self.epochs, self.ema = group_size, epochs, ema
        self.updates, self.iterations = 0, 0
        self.stats: dict[str, float] = {}
        self._average = None if policy.has_adapters else WeightAverage(policy.trainable_parameters())
        if provides is not None:
            self.check(provides)

    def check(self, provides: Collection[str]) -> None:
        """Refuse a source of contexts that lacks what the agent needs.

        Args:
            provides: the names of what it provides, of {"lr", "hr", "prompt", "degradation", "preference", "texts"}.

        Raises:
            Incompatible: naming the agent and what is missing.
        """
        if Need.HR in self.needs and "hr" not in provides:
            raise Incompatible(
                f"{type(self).__name__} needs ground truth ('hr'), and the contexts provide {_listed(provides)}: use "
                "contexts with 'hr' (photographs, hr_folder, paired_folders), or DiffusionNFT, FlowGRPO or DPO with a "
                "reward that needs none"
            )
        if Need.PREFERENCES in self.needs and "preference" not in provides:
            raise Incompatible(
                f"{type(self).__name__} with pairs='offline' needs a preference dataset ('preference'), and the "
                f"contexts provide {_listed(provides)}: train on srgym.envs.preferences:Preferences, or take "
                "pairs='best_worst'"
            )
        if {Need.DOCUMENTS, Need.CREDIT} & self.needs and not {"texts", "hr"} <= set(provides):
            raise Incompatible(
                f"{type(self).__name__} learns from true documents ('hr', 'texts'), and the contexts provide "
                f"{_listed(provides)}: set env.descriptions=statistics, or a file of them, on contexts whose "
                "degradation is known (photographs, hr_folder)"
            )
        missing = set() if self.reward is None else self.reward.missing(provides) & {"lr", "hr"}
        if self.reward is not None and missing:
            raise Incompatible(
                f"reward '{self.reward.name}', which {type(self).__name__} learns from, needs {_listed(missing)}, and "
                f"the contexts provide {_listed(provides)}: use contexts that have it, or another reward"
            )

    # One iteration

    @abstractmethod
    def prepare(self, rollout: TensorDict) -> TensorDict:
        """A rollout [N] to rows [M] (a row is one forward), maybe none; what was left out is counted in `stats`."""

    def batches(self, rows: TensorDict) -> Iterator[TensorDict]:
        """The rows of each optimiser step of this iteration, in order."""
        for _ in range(self.epochs):
            yield rows

    @abstractmethod
    def loss(self, batch: TensorDict) -> TensorDict:
        """The objective on a batch of rows [B]: scalars, means over the rows, of which those named `loss_*` are summed
        and the others logged."""

    def observe(self, terms: Mapping[str, float]) -> None:  # noqa: B027 - few have anything to hear
        """What the update's `loss` came to: each term's mean over all its rows, just before `after_update`."""

    def after_update(self) -> None:
        """After each optimiser step: the evaluation average follows the learner."""
        self.updates += 1
        decay = evaluation_decay(self.updates, self.ema)
        if self._average is None:
            self.policy.sync("default", "ema", decay)
        else:
            self._average.update(decay)

    def after_iteration(self) -> None:
        """After the last update of an iteration: the adapter `old` follows the learner by `old_decay`."""
        self.iterations += 1
        if self.policy.has_adapters:
            self.policy.sync("default", "old", self.old_decay())

    def old_decay(self) -> float:
        """d in old <- d old + (1 - d) theta; 0 unless the agent says otherwise."""
        return 0.0

    def workload(self) -> Workload | None:
        """What an iteration costs, for predictions; None: the agent doesn't say, and nothing is guessed."""
        return None

    @property
    def finished(self) -> bool:
        """Whether going on would do harm, by the agent's own reckoning."""
        return False

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Run a policy without adapters under its evaluation average; one with adapters keeps that in `ema`."""
        with contextlib.nullcontext() if self._average is None else self._average.swapped_in():
            yield

    # For checkpoints

    def state(self) -> dict[str, Tensor | float | int]:
        """Everything the agent knows that isn't in the policy."""
        averages = {} if self._average is None else self._average.weights
        return {
            "updates": self.updates,
            "iterations": self.iterations,
            **{f"average.{name}": weight for name, weight in averages.items()},
        }

    def load_state(self, state: Mapping[str, Tensor | float | int]) -> None:
        """Put `state` back."""
        self.updates, self.iterations = int(state["updates"]), int(state["iterations"])
        if self._average is not None:
            prefix = "average."
            weights = {k.removeprefix(prefix): torch.as_tensor(v) for k, v in state.items() if k.startswith(prefix)}
            self._average.load(weights)

    # For the agents

    def _require_adapters(self, what: str) -> None:
        if not self.policy.has_adapters:
            raise Incompatible(
                f"{type(self).__name__} holds the learner against {what}, and policy '{self.policy.name}' has no "
                "adapters to keep the two apart: call policy.add_adapters() first (lora in a config), or train all its "
                "weights by ColdStart or REFL"
            )


# What would go together, for agents of tokens and for agents of flows.
_OTHERS = (
    "a policy that writes tokens (compact_vlcot, lumina_vlcot), or an agent for flows (DiffusionNFT, FlowGRPO, DPO, "
    "REFL, ColdStart)",
    "a flow policy (compact, qwen_image_edit, flux_kontext, sd3), or an agent for tokens (TokenGRPO, TokenColdStart, "
    "DPO)",
)


_KINDS = ("policies that write tokens", "flow policies")


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "nothing"
