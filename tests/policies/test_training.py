"""Every foundation-model policy goes through the same runner with every agent: an iteration that learns."""

import pytest
import torch

from srgym import rewards
from srgym.agents import DPO, REFL, ColdStart, DiffusionNFT, FlowGRPO
from srgym.envs import SRTask, sources
from srgym.policies import adapters
from srgym.runners.loop.runner import Runner
from srgym.runners.loop.settings import RunnerSettings

AGENTS = {
    "cold_start": lambda policy, reward: ColdStart(policy),
    "nft": lambda policy, reward: DiffusionNFT(policy, reward, group_size=2, steps=2, old="on_policy"),
    "flow_grpo": lambda policy, reward: FlowGRPO(policy, reward, group_size=2, steps=3, updates_per_iteration=1),
    "dpo": lambda policy, reward: DPO(policy, reward, group_size=2, steps=2),
    "refl": lambda policy, reward: REFL(policy, reward, steps=2),
}


@pytest.fixture(scope="module")
def task():
    source = sources.make("photographs", scale=4, size=32, crops=2)
    return SRTask(source, rewards.make("psnr_y"))


@pytest.mark.parametrize("agent", AGENTS)
def test_an_iteration_moves_the_learner(make_tiny, kind, agent, task, tmp_path):
    policy = make_tiny(kind, scale=4)
    policy.add_adapters(rank=2, alpha=4)
    base = {name: p.detach().clone() for name, p in policy.named_parameters() if ".lora_" not in name}
    before = {name: p.detach().clone() for name, p in policy.trainable_parameters()}
    settings = RunnerSettings(iterations=1, contexts=2, microbatch=2, prefetch=0, lr=1e-2)
    made = AGENTS[agent](policy, task.reward)
    runner = Runner(task, policy, made, settings, seed=0, folder=tmp_path, quiet=True)
    runner.learn()
    assert runner.updates == 1 and runner.skipped == 0
    # B starts at zero, so the first update moves B alone
    moved = [name for name, p in policy.trainable_parameters() if not torch.equal(p, before[name])]
    assert moved and all(torch.isfinite(p).all() for _, p in policy.trainable_parameters())
    assert {name for name in before if ".lora_B." in name} <= set(moved)
    assert all(torch.equal(p, base[n]) for n, p in policy.named_parameters() if ".lora_" not in n)
    assert adapters.equal(policy.core, "default", "old")  # on-policy, as each of these agents leaves it


FORMS = (
    {}, {"fast": True}, {"solver": "cps"}, {"solver": "dance"}, {"guard": True}, {"slide": 1}, {"branch": True},
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_flow_grpo_trains_in_half_precision_and_starts_at_a_ratio_of_one(make_tiny, form, task, tmp_path, monkeypatch):
    """In bfloat16 kernels round as the batch is cut: what the rollout recorded isn't what a row's forward gives."""
    policy = make_tiny("sd3", on_disk=True, scale=4, dtype="bfloat16", rows=4)
    policy.add_adapters(rank=2, alpha=4)
    agent = FlowGRPO(policy, task.reward, group_size=4, steps=4, **form)
    assert agent.old_log_prob == "recomputed"
    assert next(policy.core.parameters()).dtype == torch.bfloat16
    errors, shifts, loss = [], [], FlowGRPO.loss

    def watched(self, batch):
        terms = loss(self, batch)
        if self._first:
            errors.append(float(terms["ratio_error"]))
            shifts.append(float(terms["anchor_shift"]))
        return terms

    monkeypatch.setattr(FlowGRPO, "loss", watched)
    settings = RunnerSettings(iterations=2, contexts=2, microbatch=1, prefetch=0, lr=1e-2)
    Runner(task, policy, agent, settings, seed=0, folder=tmp_path, quiet=True).learn()
    assert errors and max(errors) <= 1e-6
    assert all(torch.isfinite(p).all() for _, p in policy.trainable_parameters())
    if not form:
        assert max(shifts) > 1e-6  # on what the rollout recorded the plain form would have stopped itself
