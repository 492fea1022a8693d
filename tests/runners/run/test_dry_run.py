"""`srgym train --dry-run`: the work that each agent says it does, and a page for every stage, nothing written."""

import pytest

from srgym import agents
from srgym.agents import DiffusionNFT
from srgym.policies.compact import CompactPolicy
from srgym.policies.workload import Workload
from srgym.runners.run.config import compose, resolve
from srgym.runners.run.dry_run import dry_run, measure, workload


class Silent(DiffusionNFT):
    """An agent of one's own that doesn't say what it costs."""

    def workload(self):
        return None


class Long(DiffusionNFT):
    def __init__(self, policy, reward=None, *, steps=20, **options):
        super().__init__(policy, reward, steps=steps, **options)


def stages(*settings):
    return resolve(*compose(["experiment=smoke", "policy.encoder_depth=1", *settings]))


def work(*settings):
    return workload(stages(*settings).stages[-2])


def test_an_agent_by_name_and_by_path_does_the_same_work():
    named = work("agent=flow_grpo", "agent.group_size=5")
    assert named.group_size == 5 and named.times == named.steps - 1
    pathed = work("agent=srgym.agents.flow_grpo:FlowGRPO", f"agent.steps={named.steps}", "agent.group_size=5")
    assert pathed == named


def test_an_agent_of_ones_own_is_asked():
    assert work(f"agent={__name__}:Long").steps == 20


def test_what_an_agent_does_not_say_is_not_guessed():
    told = dry_run(stages(f"agent={__name__}:Silent"))
    assert f"agent '{__name__}:Silent' doesn't say what it costs" in told


def test_a_page_for_every_stage_and_nothing_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = dry_run(stages())
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
    measured = measure(policy, 2, (8, 8))
    assert measured.forward > 0 and measured.update > 0 and measured.decode > 0 and measured.peak is None
    assert "measured: forward" in str(measured)
    assert all(p.grad is None for p in policy.parameters())


# A second iteration: in a first one `old` is the learner still, which saves NFT its forwards.
COUNTED = {
    "cold_start": ("cold_start", {"draws": 3, "epochs": 2}),
    "nft": ("diffusion_nft", {"group_size": 4, "epochs": 2}),
    "nft without kl": ("diffusion_nft", {"group_size": 4, "kl": 0.0, "old": "on_policy"}),
    "grpo": ("flow_grpo", {"group_size": 4, "steps": 5}),
    "grpo guarded": ("flow_grpo", {"group_size": 4, "steps": 5, "guard": True, "clip": 1e9}),
    "grpo branched": ("flow_grpo", {"group_size": 4, "steps": 5, "branch": True, "old_log_prob": "recomputed"}),
    "neighbor": ("neighbor_grpo", {"group_size": 6, "steps": 4, "epochs": 2}),
    "mapo": ("mapo", {"group_size": 6, "draws": 2}),
    "grpo guided": ("flow_grpo", {"group_size": 4, "fast": True, "guidance": 2.0}),
    "dpo": ("dpo", {"group_size": 6, "draws": 2}),
    "dpo top n": ("dpo", {"group_size": 6, "pairs": "top_n", "top": 2}),
    "crd": ("crd", {"group_size": 4, "epochs": 2, "kl_guidance": 4.5}),
    "refl": ("refl", {"group_size": 8}),
    "draft": ("refl", {"group_size": 2, "k_last": 3}),
    "draft through all": ("refl", {"group_size": 2, "k_last": "all"}),
}


@pytest.mark.parametrize("which", COUNTED)
def test_the_work_is_what_an_iteration_is_counted_to_do(toy, which):
    name, settings = COUNTED[which]
    agent = agents.make(name, toy.policy(), toy.reward(), **settings)
    said, contexts = agent.workload(), 8
    counts = []
    for iterations in (1, 2):
        runner = toy.run(
            agent=agent, task=toy.task(100, toy.reward()), iterations=iterations, contexts=contexts,
            checkpoint_every=0, lr=1e-3,
        )  # fmt: skip
        if counts:
            runner.iteration = 1
        agent.policy.calls.clear()
        runner.learn()
        # One call for each new runner only measures the operations of a forward.
        counts.append([sum(n for n, grad in agent.policy.calls if grad is kind) for kind in (False, True)])
    plain, graded = (count / (contexts * said.group_size) for count in (counts[1][0] - 1, counts[1][1]))
    assert graded == pytest.approx(said.forwards_with_gradient)
    # ReFL's last step is drawn; everything else is certain.
    assert plain == pytest.approx(said.forwards, rel=0.05 if which == "refl" else 1e-9)
    assert isinstance(said, Workload)
