"""`srgym train --dry-run`: the work that each agent's settings mean, and a page for every stage, nothing written."""

import pytest

from srgym.policies.compact import CompactPolicy
from srgym.policies.estimate import Workload
from srgym.runners.run.config import compose, resolve
from srgym.runners.run.dry_run import dry_run, measure, workload

RUNNER = {"contexts": 3, "microbatch": 5}
COMMON = {"contexts": 3, "microbatch": 5}


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ({"name": "diffusion_nft", "group_size": 4, "steps": 6, "time_share": 0.99, "kl": 1e-4, "epochs": 2},
         {"group_size": 4, "steps": 6, "times": 5, "epochs": 2}),
        ({"name": "diffusion_nft", "group_size": 4, "steps": 6, "kl": 0},
         {"group_size": 4, "steps": 6, "times": 5, "reference": False}),
        ({"name": "flow_grpo", "group_size": 4, "steps": 10, "kl": None, "guidance": 1.0},
         {"group_size": 4, "steps": 10, "times": 9, "old": False}),
        ({"name": "flow_grpo", "group_size": 4, "steps": 10, "fast": True, "window": 3, "guard": True, "guidance": 2.0},
         {"group_size": 4, "steps": 10, "times": 3, "old": True, "reference": False, "guided": True}),
        ({"name": "dpo", "group_size": None, "steps": 6, "pairs": "best_worst", "draws": 2},
         {"group_size": 8, "steps": 6, "times": 0.5, "old": False}),
        ({"name": "refl", "group_size": 1, "steps": 6, "k_last": 2},
         {"group_size": 1, "steps": 4, "times": 0, "reward_steps": 2, "old": False}),
        ({"name": "refl", "group_size": 1, "steps": 6, "k_last": "all"},
         {"group_size": 1, "steps": 0, "times": 0, "reward_steps": 6, "old": False}),
        ({"name": "cold_start", "draws": 2},
         {"group_size": 2, "steps": 0, "times": 1, "old": False, "reference": False}),
    ],
)  # fmt: skip
def test_the_work_of_an_agent(agent, expected):
    assert workload(agent, RUNNER) == Workload(**COMMON, **expected)


def test_a_page_for_every_stage_and_nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = dry_run(resolve(*compose(["experiment=smoke", "policy.encoder_depth=1"])))
    for expected in (
        "stage cold_start",
        "stage reinforce",
        "memory at the worst",
        "s an iteration on",
        "for 2 iterations",
    ):
        assert expected in told
    assert "stage merged" not in told and not list(tmp_path.iterdir())


def test_a_step_can_be_measured():
    policy = CompactPolicy(weights=None, encoder_width=8, encoder_depth=1, width=8, middle=8)
    policy.add_adapters(rank=2)
    measured = measure(policy, Workload(microbatch=2), (8, 8))
    assert measured.forward > 0 and measured.update > 0 and measured.decode > 0 and measured.peak is None
    assert "measured: forward" in str(measured)
    assert all(p.grad is None for p in policy.parameters())
