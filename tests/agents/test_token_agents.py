"""Agents of policies that write: the codec, cold start, VLCoT-GRPO, DPO of documents."""

import math

import pytest
import torch
from tensordict import TensorDict
from writers import inputs, writer

from srgym.agents import DPO, ColdStart, FlowGRPO, make
from srgym.agents.codec import Codec
from srgym.agents.credit import aggregate, compare, to_go
from srgym.agents.flow_grpo import grpo_loss
from srgym.agents.token_cold_start import TokenColdStart
from srgym.agents.token_grpo import TokenGRPO
from srgym.document import SECTIONS
from srgym.envs.photographs import Photographs
from srgym.envs.task import SRTask
from srgym.policies.noise import derive_seeds
from srgym.policies.tokens import IMAGE, OVER, WORD
from srgym.rewards import make as make_reward
from srgym.rewards.base import Incompatible
from srgym.runners.loop.collect import collect

REWARD = {"name": "realsr_r1", "generation": {"sum": {"psnr_y": 0.01}}, "reference": False}


def task(policy, reward=None):
    source = Photographs("train", "mixture", 4, 32, crops=20)
    return SRTask(source, make_reward(reward or REWARD), descriptions="statistics", policy_gives=policy.gives)


@pytest.fixture
def policy():
    return writer()


@pytest.fixture(scope="module")
def learnt():
    """A policy without adapters that knows how a document goes, as seconds of cold start teach it."""
    policy = writer(adapters=False)
    bandit = task(policy)
    agent, optimizer = (
        TokenColdStart(policy),
        torch.optim.AdamW([p for _, p in policy.trainable_parameters()], 1e-2, weight_decay=0.0),
    )
    for iteration in range(60):
        context = bandit.context(range(8 * iteration % 160, 8 * iteration % 160 + 8))
        rows = agent.prepare(collect(bandit, policy, agent, context, seed=0, iteration=iteration))
        optimizer.zero_grad()
        agent.loss(rows)["loss_tokens"].backward()
        optimizer.step()
        agent.after_update()
    return policy


def again(learnt, seed=0):
    """The same, with adapters."""
    policy = writer(adapters=False)
    policy.load_state_dict(learnt.state_dict())
    policy.add_adapters(rank=4, alpha=8.0, seed=seed)
    return policy


def scored(policy, agent, reward, groups=4):
    """A rollout of documents with made-up scores."""
    size = agent.group_size
    index, place = torch.arange(groups).repeat_interleave(size), torch.arange(size).repeat(groups)
    seeds = derive_seeds(0, agent.iterations, index, place)
    with torch.no_grad(), policy.adapter(agent.sampler):
        rolled = policy.rollout({"lr": inputs(groups)}, agent.sampling, seeds)
    rolled["reward"] = reward(rolled)
    rolled["valid"] = torch.ones(len(rolled), dtype=torch.bool)
    rolled["group"] = torch.arange(groups).repeat_interleave(size)
    rolled["seed"] = seeds
    rolled["components"] = TensorDict({"total": rolled["reward"]}, [len(rolled)])
    return rolled


def gradients(agent, rows, cut):
    for _, parameter in agent.policy.trainable_parameters():
        parameter.grad = None
    for part in rows.split(cut):
        terms = agent.loss(part)
        (sum(v for k, v in terms.items() if k.startswith("loss_")) * len(part) / len(rows)).backward()
    return [p.grad.clone() for _, p in agent.policy.trainable_parameters()]


# Formulas


def test_the_clipped_objective_by_hand():
    log_ratio = torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5], dtype=torch.float64)
    advantage = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    expected = [-2.0, -1.3, -math.exp(-0.5), math.exp(0.5), 0.8]
    each = grpo_loss(log_ratio, torch.zeros(5).double(), advantage, clip=0.2, clip_high=0.3)
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64))


def test_means_by_hand():
    values = torch.tensor([[1.0, 3.0, 100.0, 5.0]])
    free, section = torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, 0, 1]])
    assert aggregate(values, free, "sequence", section).item() == 3.0
    assert aggregate(values, free, "token", section).item() == 9.0
    assert aggregate(values, free, "section", section).item() == 3.5


def test_a_token_gets_what_it_can_still_change():
    section = torch.tensor([[0, 1, 6]] * 4)
    components = {
        "degradation": torch.tensor([1.0, 0.0, 1.0, 0.0]), "understanding": torch.tensor([0.0, 0.0, 1.0, 1.0]),
        "generation": torch.tensor([0.0, 1.0, 1.0, 0.0]),
    }  # fmt: skip
    weights = {"degradation": 1.0, "understanding": 2.0, "generation": 1.0}
    keep = torch.ones(4, dtype=torch.bool)
    one = 0.5 / (0.5 + 1e-2)
    expected = [[1 - 2 - 1, -2 - 1, -1], [-1 - 2 + 1, -2 + 1, 1], [1 + 2 + 1, 2 + 1, 1], [-1 + 2 - 1, 2 - 1, -1]]
    torch.testing.assert_close(to_go(components, weights, section, 4, keep), torch.tensor(expected) * one)


def test_credit_compares_like_with_like():
    answers = TensorDict({"key": torch.tensor([[0, -1, 1], [0, 1, -1], [0, -1, -1]]),
                          "value": torch.tensor([[1.0, 9.0, 2.0], [0.0, 2.0, 9.0], [5.0, 0.0, 0.0]])}, [3])  # fmt: skip
    got = compare(answers, torch.tensor([0, 0, 1]))
    assert got[0, 0] == pytest.approx(0.5 / 0.51) and got[1, 0] == pytest.approx(-0.5 / 0.51)
    assert not got[2].any() and not got[:, 1:].any()


# Agents


def test_cold_start_is_the_mean_negative_log_likelihood(policy):
    bandit = task(policy)
    agent = TokenColdStart(policy, words=3.0)
    rollout = collect(bandit, policy, agent, bandit.context(range(5)), seed=0, iteration=0)
    log_prob, _, _ = policy.log_prob(rollout["tokens"], rollout["place"], rollout["cond"])
    mode = policy.grammar.modes(rollout["place"])
    expected = -(3 * log_prob[mode == WORD].sum() + log_prob[mode == IMAGE].sum())
    expected = expected / (3 * (mode == WORD).sum() + (mode == IMAGE).sum())
    terms = agent.loss(agent.prepare(rollout))
    torch.testing.assert_close(terms["loss_tokens"], expected)
    assert 0 < float(terms["entropy_word"]) < math.log(policy.grammar.words.sum())


def test_cold_start_learns_documents_that_it_hasnt_seen(learnt):
    """Sentences and tags at random would cost log 75 = 4.3 nats each."""
    bandit = SRTask(Photographs("test", "mixture", 4, 32, crops=4), descriptions="statistics")

    def nats(policy):
        agent = TokenColdStart(policy)
        with torch.no_grad():
            context = bandit.context(range(len(bandit)))
            return float(agent.loss(collect(bandit, policy, agent, context, seed=0, iteration=0))["nats_word"])

    assert nats(learnt) < 1.5 < 4.0 < nats(writer(adapters=False))


def test_the_codec_learns_the_image():
    policy = writer(adapters=False)
    bandit, agent = task(policy), Codec(policy)
    rows = agent.prepare(collect(bandit, policy, agent, bandit.context(range(8)), seed=0, iteration=0))
    optimizer, losses = torch.optim.AdamW([p for _, p in policy.trainable_parameters()], 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(agent.loss(rows).values())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_z_loss_is_the_squared_normaliser(policy):
    bandit = task(policy)
    plain, agent = TokenColdStart(policy), TokenColdStart(policy, z_loss=0.5)
    rows = agent.prepare(collect(bandit, policy, agent, bandit.context(range(3)), seed=0, iteration=0))
    log_z = policy.log_prob(rows["tokens"], rows["place"], rows["cond"]).log_z
    drawn_at = policy.grammar.modes(rows["place"]) <= IMAGE
    assert float(agent.loss(rows)["loss_z"]) == pytest.approx(0.5 * float(log_z[drawn_at].square().mean()), rel=1e-4)
    assert "loss_z" not in plain.loss(rows)


@pytest.mark.parametrize("level", ["sequence", "token", "section"])
@pytest.mark.parametrize("cut", [1, 5])
def test_the_cut_of_microbatches_changes_nothing(policy, level, cut):
    agent = TokenGRPO(policy, None, level=level, kl=0.1)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    agent._first = False
    for whole, parts in zip(gradients(agent, rows, len(rows)), gradients(agent, rows, cut), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_the_ratio_is_one_before_the_first_update_and_watched(policy):
    agent = TokenGRPO(policy, None)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    terms = agent.loss(rows)
    assert float(terms["ratio_error"]) < 1e-4 and float(terms["clipped"]) == 0
    with torch.no_grad():
        for _, parameter in policy.trainable_parameters():
            parameter.mul_(1.5)
    with pytest.raises(ValueError, match="TokenGRPO.*ratio of likelihoods must be 1, and it is off by"):
        agent.loss(rows)
    agent.after_update()
    assert float(agent.loss(rows)["ratio_error"]) > 1e-3


def test_a_recomputed_anchor_is_the_sampler(policy):
    """After an update, too: `old` is who sampled, though what the rollout noted is wrong."""
    agent = TokenGRPO(policy, None, old_log_prob="recomputed")
    rollout = scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1))
    right = [p.clone() for _, p in policy.trainable_parameters()]
    plain = TokenGRPO(policy, None)
    plain_rows = plain.prepare(rollout)
    rows = agent.prepare(rollout.clone().set("log_prob", rollout["log_prob"] - 0.3))
    terms = agent.loss(rows)
    assert float(terms["ratio_error"]) == 0 and float(terms["anchor_shift"]) == pytest.approx(0.3, abs=0.02)
    with torch.no_grad():
        for (_, parameter), was in zip(policy.trainable_parameters(), right, strict=True):
            parameter.copy_(was * 1.2)
    plain._first = agent._first = False
    expected = plain.loss(plain_rows)["loss_policy"]
    torch.testing.assert_close(agent.loss(rows)["loss_policy"], expected, rtol=1e-3, atol=1e-5)


def test_kl_is_k3_against_the_base(policy):
    agent = TokenGRPO(policy, None, kl=0.5)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    terms = agent.loss(rows)
    samples, at = rows["samples"].data, rows["sample"]
    document = (samples["tokens"][at], samples["place"][at], samples["cond"][at])
    with torch.no_grad():
        now = policy.log_prob(*document)[0].double()
        with policy.adapter(None):
            base = policy.log_prob(*document)[0].double()
    ratio = (base - now).exp()
    mode = policy.grammar.modes(document[1])
    k3 = torch.where((mode == WORD) | (mode == IMAGE), ratio - (base - now) - 1, 0.0)
    expected = (k3.sum(1) / ((mode == WORD) | (mode == IMAGE)).sum(1)).mean()
    assert float(terms["kl"]) == pytest.approx(float(expected), rel=1e-3) and float(expected) > 1e-5
    assert float(terms["loss_kl"]) == pytest.approx(0.5 * float(expected), rel=1e-3)


@pytest.mark.parametrize("train", ["text", "image"])
def test_only_what_is_trained_is_trained(policy, train):
    agent = TokenGRPO(policy, None, train=train)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    kind = WORD if train == "text" else IMAGE
    samples, at = rows["samples"].data, rows["sample"]
    used = policy.grammar.modes(samples["place"][at]) == kind
    score = -rows["advantage"] * used
    expected = (score.sum(1) / used.sum(1).clamp_min(1)).mean()
    torch.testing.assert_close(agent.loss(rows)["loss_policy"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("which", [TokenGRPO, DPO])
def test_rewarded_words_are_written_more_and_punished_ones_less(which, seed, sign):
    """Short documents of a policy that knows nothing: the share of the first half of its words, from about a half."""
    policy = writer(adapters=False, seed=seed)
    policy.add_adapters(rank=4, alpha=8.0, seed=seed)
    policy.longest, half = 12, len(policy.vocabulary) // 2
    with torch.no_grad():
        policy.head.weight.mul_(5)  # it has no LoRA, and a fresh one can hardly tell words apart

    def share(rolled):
        return (rolled["tokens"] < half).float().mean(1)

    agent = which(policy, make_reward("psnr_y"), group_size=16)
    optimizer, shares = torch.optim.Adam([p for _, p in policy.trainable_parameters()], 8e-2), []
    for _ in range(30):
        rollout = scored(policy, agent, lambda rolled: sign * share(rolled))
        shares.append(float(share(rollout).mean()))
        for batch in agent.batches(agent.prepare(rollout)):
            optimizer.zero_grad()
            agent.loss(batch)["loss_policy"].backward()
            optimizer.step()
            agent.after_update()
        agent.after_iteration()
    change = sign * (sum(shares[-3:]) - sum(shares[:3])) / 3
    assert change > 0.1, shares


@pytest.mark.parametrize("credit", ["sum", "to_go", "local"])
def test_every_credit_learns_from_the_whole_reward(learnt, credit):
    policy = again(learnt)
    bandit = task(policy)
    agent = make("token_grpo", policy, bandit.reward, group_size=4, credit=credit)
    agent.check(bandit.provides)
    rollout = collect(bandit, policy, agent, bandit.context([0, 25, 50]), seed=0, iteration=0)
    assert torch.isfinite(rollout["components", "format"]).all()  # text reaches the reward
    rows = agent.prepare(rollout)
    assert len(rows) and torch.isfinite(rows["advantage"]).all()
    agent.loss(rows)["loss_policy"].backward()
    assert any(float(p.grad.abs().max()) > 0 for _, p in policy.trainable_parameters())
    same = (rows["advantage"] == rows["advantage"][:, :1]).all()
    assert bool(same) is (credit == "sum")


def test_tokens_of_the_first_section_get_no_less_than_those_of_the_last(policy):
    """to_go: a document's last section hears of the generation alone, its first of all components."""
    agent = make("token_grpo", policy, make_reward(REWARD), group_size=4, credit="to_go")
    rollout = scored(policy, agent, lambda r: torch.rand(len(r), generator=torch.Generator().manual_seed(0)), groups=1)
    parts = {name: torch.rand(4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(
        ("format", "degradation", "understanding", "generation"))}  # fmt: skip
    rollout["components"] = TensorDict(parts, [4])
    rows = agent.prepare(rollout)

    def standardised(x):
        return (x - x.mean()) / (x.std(correction=0) + 1e-2)

    late = standardised(parts["format"]) + standardised(parts["generation"])
    early = late + standardised(parts["degradation"]) + standardised(parts["understanding"])
    for row, sample in enumerate(rows["sample"].tolist()):
        for column, where in enumerate(rows["section"][row].tolist()):
            expected = early if where == 0 else late + standardised(parts["understanding"]) if where == 1 else late
            assert float(rows["advantage"][row, column]) == pytest.approx(float(expected[sample]), abs=1e-5)
    assert len(SECTIONS) == 7


def test_dpo_of_documents_is_that_of_language(policy):
    agent = DPO(policy, make_reward("psnr_y"), group_size=4)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    assert agent.beta == 0.2
    samples, win, lose = rows["samples"].data, rows["sample"], rows["lose"]

    def whole(at, adapter):
        with torch.no_grad(), policy.adapter(adapter):
            return policy.log_prob(samples["tokens"][at], samples["place"][at], samples["cond"][at])[0].double().sum(1)

    gain = whole(win, "default") - whole(win, None) - whole(lose, "default") + whole(lose, None)
    expected = -torch.nn.functional.logsigmoid(0.1 * gain).mean()
    terms = agent.loss(rows)
    assert float(terms["loss_policy"]) == pytest.approx(float(expected), rel=1e-3)
    terms["loss_policy"].backward()
    score = {name: (samples["tokens"][at] == 5).float().mean(1) for name, at in (("win", win), ("lose", lose))}
    assert (score["win"] > score["lose"]).all()


def test_flows_and_writers_are_told_apart(toy, policy):
    with pytest.raises(Incompatible, match="FlowGRPO trains flow policies, and 'compact_vlcot' is one of"):
        FlowGRPO(policy)
    with pytest.raises(Incompatible, match="ColdStart trains flow policies.*an agent for tokens"):
        ColdStart(policy)
    with pytest.raises(Incompatible, match="TokenGRPO trains policies that write tokens, and 'toy' is one of flow"):
        TokenGRPO(toy.policy())
    with pytest.raises(Incompatible, match="pairs='offline' are pairs of images"):
        DPO(policy, pairs="offline")
    with pytest.raises(Incompatible, match="Codec trains a policy's own tokens.*has adapters"):
        Codec(policy)


def test_what_documents_need_is_said_before_anything_runs(policy):
    with pytest.raises(Incompatible, match="true documents .'hr', 'texts'.*set env.descriptions=statistics"):
        TokenColdStart(policy, provides={"lr", "hr"})
    with pytest.raises(Incompatible, match="set env.descriptions=statistics"):
        TokenGRPO(policy, make_reward(REWARD), credit="local", provides={"lr", "hr"})
    bandit = task(policy, "psnr_y")
    agent = TokenGRPO(policy, bandit.reward, credit="to_go")
    rollout = collect(bandit, policy, agent, bandit.context([0, 1]), seed=0, iteration=0)
    with pytest.raises(Incompatible, match="by their weights, and 'psnr_y' has none: take realsr_r1, or credit='sum'"):
        agent.prepare(rollout)


@pytest.mark.parametrize(
    "wrong",
    [{"level": "x"}, {"credit": "x"}, {"train": "x"}, {"temperature": 0.0}, {"clip": 1.5}, {"kl": -1.0},
     {"updates_per_iteration": 0}, {"old_log_prob": "x"}, {"credit": "to_go", "combine": {"weights": {"format": 1.0}}}],
)  # fmt: skip
def test_a_hyperparameter_out_of_range_is_refused(policy, wrong):
    with pytest.raises(ValueError, match=r"expected|leave combine out"):
        TokenGRPO(policy, make_reward(REWARD), **wrong)


def test_after_the_end_nothing_counts(policy):
    agent = TokenGRPO(policy, None)
    rows = agent.prepare(scored(policy, agent, lambda r: (r["tokens"] == 5).float().mean(1)))
    before = agent.loss(rows)["loss_policy"]
    samples = rows["samples"].data
    over = policy.grammar.modes(samples["place"]) == OVER
    samples["tokens"][over] = 7
    torch.testing.assert_close(agent.loss(rows)["loss_policy"], before)
