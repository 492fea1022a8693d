"""What must hold for all agents alike."""

from pathlib import Path

import pytest
import torch
import yaml
from toys import flawed

import srgym.agents
from srgym.agents import AWM, CRD, DPO, REFL, ColdStart, DiffusionNFT, FlowGRPO, MaPO, NeighborGRPO
from srgym.agents.base import Agent
from srgym.agents.dgpo import DGPO
from srgym.agents.flow_dppo import FlowDPPO
from srgym.agents.gdpo_sr import GDPOSR
from srgym.agents.grouped import GroupedAgent
from srgym.agents.groups import with_scores
from srgym.agents.registry import AGENTS as REGISTRY
from srgym.rewards.base import Incompatible, Reward
from srgym.rewards.info import describe
from srgym.runners.run.config import compose, resolve

# (class, settings, optimiser updates' learning rate, iterations that suffice)
AGENTS = {
    "cold_start": (ColdStart, {"draws": 4}, 0.03, 50),
    "nft": (DiffusionNFT, {"group_size": 8}, 0.02, 25),
    "nft_plain": (DiffusionNFT, {"group_size": 8, "form": "plain", "kl": 0.0}, 0.02, 25),
    "nft_delayed_old": (DiffusionNFT, {"group_size": 8, "old": 0.5, "clip": 5.0, "beta": 0.5}, 0.02, 40),
    "nft_binary": (DiffusionNFT, {"group_size": 8, "adv_mode": "binary", "norm_guard": 0.01}, 0.02, 30),
    "nft_one_only": (DiffusionNFT, {"group_size": 8, "adv_mode": "one_only", "kl": 0.0}, 0.02, 40),
    "awm": (AWM, {"group_size": 8}, 0.02, 25),
    "awm_uniform": (AWM, {"group_size": 8, "weighting": "uniform", "kl": 0.0, "epochs": 2, "old": 0.3}, 0.02, 40),
    "grpo": (FlowGRPO, {"group_size": 8, "steps": 6}, 0.02, 25),
    "grpo_fast": (FlowGRPO, {"group_size": 8, "steps": 6, "fast": True}, 0.02, 30),
    "grpo_slide": (FlowGRPO, {"group_size": 8, "steps": 6, "slide": 4, "window": 3}, 0.02, 30),
    "grpo_branch": (FlowGRPO, {"group_size": 8, "steps": 6, "branch": True}, 0.02, 40),
    "grpo_cps": (FlowGRPO, {"group_size": 8, "steps": 6, "solver": "cps"}, 0.02, 25),
    "grpo_dance": (FlowGRPO, {"group_size": 8, "steps": 6, "solver": "dance", "kl": 0.0}, 0.02, 25),
    "grpo_guard": (FlowGRPO, {"group_size": 8, "steps": 6, "guard": True, "kl": 0.0}, 0.02, 25),
    "dpo": (DPO, {"beta": 100.0, "draws": 2}, 0.02, 45),
    "dpo_top_n": (DPO, {"beta": 100.0, "pairs": "top_n"}, 0.02, 30),
    "neighbor": (NeighborGRPO, {"group_size": 8, "steps": 4, "time_share": 1.0}, 0.02, 40),
    "mapo": (MaPO, {"draws": 2}, 0.02, 45),
    "dgpo": (DGPO, {"group_size": 8, "kl": 0.0}, 0.02, 30),
    "dgpo_old": (DGPO, {"group_size": 8, "reference": "old", "old": 0.3, "kl": 0.0}, 0.03, 40),
    "gdpo_sr": (GDPOSR, {"group_size": 8, "beta": 100.0}, 0.02, 30),
    "crd": (CRD, {"group_size": 8, "kl": 0.0}, 0.02, 30),
    "crd_slow": (CRD, {"group_size": 8, "kl": 1e-3, "normalised": False, "old": 0.3, "reference": 0.5}, 0.03, 40),
    "dppo": (FlowDPPO, {"group_size": 8, "steps": 6}, 0.02, 30),
    "refl": (REFL, {}, 0.02, 30),
    "draft": (REFL, {"k_last": 2}, 0.02, 30),
    "refl_leaps": (REFL, {"path": "leaps"}, 0.02, 30),
    "refl_known_noise": (REFL, {"path": "known_noise", "span": 0.3}, 0.02, 30),
}
ONE_EACH = ["cold_start", "nft", "awm", "grpo", "neighbor", "dpo", "mapo", "dgpo", "gdpo_sr", "crd", "dppo", "refl"]


def build(toy, which, policy=None):
    kind, settings, _, _ = AGENTS[which]
    return kind(policy if policy is not None else toy.policy(), toy.reward(), **settings)


def moved(policy, by=0.1):
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.add_(by)


def completed(agent, rows):
    """The rows of an update, with what an agent of whole groups adds to them before it."""
    return agent.completed(rows) if isinstance(agent, GroupedAgent) else rows


def gradients(agent, rows, cut):
    for _, parameter in agent.policy.trainable_parameters():
        parameter.grad = None
    for start in range(0, len(rows), cut):
        part = rows[start : start + cut]
        terms = agent.loss(part)
        (sum(v for k, v in terms.items() if k.startswith("loss_")) * len(part) / len(rows)).backward()
    return [p.grad.clone() for _, p in agent.policy.trainable_parameters()]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("which", AGENTS)
def test_identity_task(toy, which, seed):
    """The toy's shift starts 0.141 from the reward's optimum; a working agent comes within a third, on every seed."""
    _, _, lr, iterations = AGENTS[which]
    policy = toy.policy(seed=seed)
    start = toy.distance(policy)
    assert start == pytest.approx(0.1414, abs=1e-3)
    toy.train(build(toy, which, policy), iterations, lr, seed=seed)
    assert toy.distance(policy) < start / 3
    assert toy.distance(policy, "ema") < start / 3


@pytest.mark.parametrize("which", ["nft", "awm", "grpo", "neighbor", "dpo", "mapo", "dgpo", "gdpo_sr", "crd", "dppo"])
def test_a_reward_upside_down_leads_away(toy, which):
    """What solves the task isn't a drift of the loop: against the reward's sign the distance grows."""

    def worse(sr, lr):
        return -toy.closeness(sr, lr)

    kind, settings, lr, _ = AGENTS[which]
    policy = toy.policy()
    toy.train(kind(policy, Reward(worse, describe(worse, "worse")), **settings), 10, lr)
    assert toy.distance(policy) > 0.16


@pytest.mark.parametrize("which", AGENTS)
def test_the_learner_moves_and_nothing_else_does(toy, which):
    policy = toy.policy()
    frozen = policy.net.shift.base_layer.weight
    agent = build(toy, which, policy)
    copies = {n: p.clone() for n, p in policy.core.named_parameters() if ".lora_" in n and ".default." not in n}
    start = [p.clone() for _, p in policy.trainable_parameters()]
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable_parameters()], lr=0.1)
    rows = next(agent.batches(agent.prepare(toy.collect(agent, torch.arange(3)))))
    optimizer.zero_grad()
    agent.loss(rows)["loss_flow" if which == "cold_start" else "loss_policy"].backward()
    optimizer.step()
    assert any(not torch.equal(p, was) for (_, p), was in zip(policy.trainable_parameters(), start, strict=True))
    assert torch.equal(frozen, torch.zeros_like(frozen))
    for name, parameter in policy.core.named_parameters():
        if name in copies:
            assert torch.equal(parameter, copies[name]) and parameter.grad is None
        assert parameter.requires_grad == (".default." in name)


@pytest.mark.parametrize("which", AGENTS)
def test_every_loss_term_has_a_gradient(toy, which):
    agent = build(toy, which)
    moved(agent.policy)
    rows = next(agent.batches(agent.prepare(toy.collect(agent, torch.arange(3)))))
    terms = agent.loss(rows)
    names = [name for name in terms.keys() if name.startswith("loss_")]  # noqa: SIM118 - a TensorDict
    assert len(names) == 1 + bool(getattr(agent, "kl", 0)) + (which in ("mapo", "nft_binary"))
    for name in names:
        for _, parameter in agent.policy.trainable_parameters():
            parameter.grad = None
        terms[name].backward(retain_graph=True)
        assert all(p.grad.abs().sum() > 0 for _, p in agent.policy.trainable_parameters()), name
    for name in set(terms.keys()) - set(names):
        assert not terms[name].requires_grad, name


@pytest.mark.parametrize("which", AGENTS)
def test_one_batch_of_eight_equals_eight_of_one(toy, which):
    """Accumulated over any cut of the rows, the gradient is that of the whole."""
    agent = build(toy, which)
    agent.ratio_tolerance = 1e6
    rows = agent.prepare(toy.collect(agent, torch.arange(8)))
    moved(agent.policy)
    rows = completed(agent, rows)
    rows = rows[torch.linspace(0, len(rows) - 1, 8).long()]
    whole = gradients(agent, rows, len(rows))
    for cut in (1, 3):
        for one, other in zip(gradients(agent, rows, cut), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-6)
    assert any(g.abs().sum() > 0 for g in whole)


@pytest.mark.parametrize("which", [name for name in AGENTS if name != "dpo_top_n"])
def test_a_context_is_trained_alike_in_any_company(toy, which):
    """Rows of a context collected alone equal its rows among others: groups, noise and times are its own.

    (DP2O-SR's weights compare the groups of a batch, so there it isn't so.)
    """
    agent = build(toy, which)
    together = completed(agent, agent.prepare(toy.collect(agent, torch.tensor([3, 7]))))
    alone = completed(agent, agent.prepare(toy.collect(agent, torch.tensor([7]))))
    assert 2 * len(alone) == len(together)
    one, other = agent.loss(together[len(alone) :]), agent.loss(alone)
    for key in one.keys():  # noqa: SIM118 - a TensorDict
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("nft", {"std": "batch"}), ("grpo", {"std": "batch", "updates_per_iteration": 3}), ("dpo_top_n", {}),
        ("grpo", {"std": "batch", "combine": {"weights": {"distance": -1.0}}}),
    ],
)  # fmt: skip
def test_groups_apart_become_the_rows_they_become_together(toy, which, settings):
    """Two processes with a part of the groups each, and everyone's scores, do what one does with all."""
    kind, common, _, _ = AGENTS[which]
    reward = Reward(flawed, describe(flawed, "flawed"))
    agent = kind(toy.policy(), reward, **common | settings)
    whole = toy.collect(agent, torch.arange(5))
    size = 2 * agent.group_size
    rows, stats = agent.prepare(whole), agent.stats
    parts, counted = [], []
    for start, part in ((0, whole[:size]), (size, whole[size:])):
        parts.append(agent.prepare(with_scores(part, whole, start)))
        counted.append(agent.stats)
    for name in rows.keys():  # noqa: SIM118 - a TensorDict
        if name not in ("sample", "samples"):
            assert torch.equal(torch.cat([part[name] for part in parts]), rows[name]), name
    assert {name: sum(one[name] for one in counted) for name in stats} == stats and stats["samples_invalid"] == 1


@pytest.mark.parametrize("which", AGENTS)
def test_state_goes_on_where_it_stopped(toy, which):
    agent = build(toy, which)
    toy.train(agent, 3, 0.01)
    state = agent.state()
    assert all(isinstance(value, (torch.Tensor, float, int)) for value in state.values())
    other = build(toy, which, agent.policy)
    other.load_state(state)
    index = torch.arange(50, 53)
    assert agent.sampling == other.sampling
    first, second = (next(a.batches(a.prepare(toy.collect(a, index, 0, 3)))) for a in (agent, other))
    one, two = agent.loss(first), other.loss(second)
    for key in one.keys():  # noqa: SIM118 - a TensorDict
        assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("which", ONE_EACH)
def test_it_trains_a_network(toy, tiny_policy, which):
    """One iteration on the compact policy: every LoRA matrix that can learn (B; A is behind a zero) gets a gradient."""
    tiny_policy.add_adapters(rank=2, alpha=4.0)

    def score(sr, lr):
        return -(sr.mean((2, 3)) - 0.7).square().sum(1)

    kind, settings, _, _ = AGENTS[which]
    reward = Reward(score, describe(score, "level", differentiable=True, range=(-3.0, 0.0)))
    agent = kind(tiny_policy, reward, **{**settings, **({"kl": 0.0} if which == "grpo" else {})})
    g = torch.Generator().manual_seed(0)
    from tensordict import TensorDict

    size = agent.group_size
    lr = torch.rand(2, 3, 4, 4, generator=g)
    batch = TensorDict(
        {
            "lr": lr.repeat_interleave(size, 0), "hr": torch.rand(2 * size, 3, 16, 16, generator=g),
            "seed": torch.arange(2 * size), "group": torch.arange(2).repeat_interleave(size),
        },
        batch_size=[2 * size],
    )  # fmt: skip
    with torch.no_grad():
        if agent.sampling is None:
            batch["cond"] = tiny_policy.encode({"lr": batch["lr"]})
        else:
            batch.update(tiny_policy.rollout({"lr": lr}, agent.sampling, batch["seed"]))
            batch["reward"] = reward(batch["sr"], lr=batch["lr"]).total
    rows = next(agent.batches(agent.prepare(batch)))
    gradients(agent, rows, 16)
    for name, parameter in tiny_policy.trainable_parameters():
        assert torch.isfinite(parameter.grad).all()
        assert ".lora_A." in name or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("which", ["nft", "awm", "grpo", "dpo"])
def test_groups_of_one_are_refused(toy, which):
    kind = AGENTS[which][0]
    with pytest.raises(Incompatible, match=rf"{kind.__name__}.*groups of 1.*ColdStart or REFL"):
        kind(toy.policy(), toy.reward(), group_size=1)


@pytest.mark.parametrize("which", ["nft", "grpo", "dpo"])
def test_a_reward_whose_ground_truth_is_absent_is_refused(toy, which):
    kind = AGENTS[which][0]
    with pytest.raises(Incompatible, match=r"'psnr_y'.*needs 'hr'.*provide 'lr'"):
        kind(toy.policy(), toy.make("psnr_y"), provides=["lr"])
    assert kind(toy.policy(), toy.make("psnr_y"), provides=["lr", "hr"])


def test_names_and_classes():
    names = "awm codec cold_start crd dgpo diffusion_nft dpo flow_dppo flow_grpo gdpo_sr mapo neighbor_grpo refl"
    assert srgym.agents.available() == [*names.split(), "token_cold_start", "token_grpo"]
    for name in srgym.agents.available():
        found = srgym.agents.agent_class(name)
        assert issubclass(found, Agent) and found.name == name
    with pytest.raises(ValueError, match=r"unknown agent 'flow_gpro'.*did you mean 'flow_grpo'"):
        srgym.agents.agent_class("flow_gpro")
    assert srgym.agents.agent_class("srgym.agents.dpo:DPO") is DPO
    assert srgym.agents.agent_class("nft") is srgym.agents.DiffusionNFT


def test_an_agent_is_made_by_name(toy):
    agent = srgym.agents.make("nft", toy.policy(), toy.reward(), group_size=4)
    assert (agent.name, agent.group_size) == ("diffusion_nft", 4)
    assert srgym.agents.make({"name": "nft", "steps": 2}, toy.policy(), toy.reward()).sampling.steps == 2
    with pytest.raises(ValueError, match="agent 'nft' has no option 'bta': did you mean 'beta'"):
        srgym.agents.make("nft", toy.policy(), toy.reward(), bta=1)
    with pytest.raises(ValueError, match="has no option 'provides'"):
        srgym.agents.make("nft", toy.policy(), toy.reward(), provides=["lr"])


@pytest.mark.parametrize("name", srgym.agents.available())
def test_config_files_are_the_signatures(name):
    """The constructor is the schema: its file gives every hyperparameter, with the constructor's own default."""
    settings = yaml.safe_load((Path(srgym.__path__[0]) / "configs" / "agent" / f"{name}.yaml").read_text())
    assert settings.pop("name") == name
    expected = REGISTRY.options(srgym.agents.agent_class(name))
    assert settings == expected
    assert all(type(settings[k]) is type(v) for k, v in expected.items())


@pytest.mark.parametrize(
    ("preset", "said"),
    [("mixgrpo", {"slide": 25, "window": 4, "spread": 0.0}), ("tempflow_grpo", {"branch": True, "kl": 1e-3})],
)
def test_presets_are_options_of_flow_grpo(toy, preset, said):
    options = resolve(*compose(["experiment=smoke", f"agent={preset}", "agent.steps=6"])).stages[-2].sections["agent"]
    assert options["name"] == "flow_grpo" and said.items() <= options.items()
    agent = srgym.agents.make(options, toy.policy(), toy.reward())
    assert agent.kl == said.get("kl", 0.0) and agent.windows.moves
