"""Preferences from rollouts: the pairs that a scored rollout holds, for `srgym.envs.preferences` to write."""

from collections.abc import Sequence

from tensordict import TensorDict

from srgym.agents.groups import assess
from srgym.agents.pairs import pair_up
from srgym.envs.preferences import Preference, Preferences, write_preferences

__all__ = ["Preference", "Preferences", "pairs_of", "write_preferences"]


def pairs_of(
    rollout: TensorDict,
    group_size: int,
    ids: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    top: int | None = None,
    min_gap: float = 0.0,
) -> list[Preference]:
    """The pairs that a scored rollout holds.

    Args:
        rollout: TensorDict [N] as a runner collects it: `lr`, `sr`, `reward`, `group` and, where there is, `valid`.
        group_size: K.
        ids, prompts: of the N / K contexts.
        top, min_gap: see `srgym.agents.pairs.pair_up`.
    """
    groups = assess(rollout, group_size)
    pairs = pair_up(groups.score, groups.keep, group_size, top=top, min_gap=min_gap)
    return [
        Preference(
            id=ids[win // group_size],
            lr=rollout["lr"][win],
            win=rollout["sr"][win],
            lose=rollout["sr"][lose],
            prompt=None if prompts is None else prompts[win // group_size],
            gap=float(groups.score[win] - groups.score[lose]),
        )
        for win, lose in zip(pairs.win.tolist(), pairs.lose.tolist(), strict=True)
    ]
