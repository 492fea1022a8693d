"""VLCoT over Chameleon and VQ-8: the real classes, tiny, with random weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from writers import LAYOUT, lumina, lumina_folder, vq8_file

from srgym import policies
from srgym.agents import DPO, make
from srgym.document import IMAGES, PICTURE, TEXTS, section
from srgym.envs.photographs import Photographs
from srgym.envs.task import SRTask
from srgym.policies.noise import derive_seeds
from srgym.policies.tokens import FORCED, IMAGE, WORD, TokenSampling
from srgym.policies.vlcot.vq8 import VQ8
from srgym.rewards import make as make_reward
from srgym.rewards.base import Incompatible
from srgym.rewards.realsr_r1.format import format_reward
from srgym.runners.loop.collect import collect

SHORT = TokenSampling(1.0, length=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lumina")


@pytest.fixture(scope="module")
def policy(folder):
    made = lumina(folder)
    made.add_adapters(rank=2, alpha=4.0)
    with torch.no_grad():
        for _, parameter in made.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made.sync("default", "old")
    return made


@pytest.fixture(scope="module")
def bandit(policy):
    reward = {"name": "realsr_r1", "generation": {"sum": {"psnr_y": 0.01}}, "reference": False}
    source = Photographs("train", "mixture", 4, 128, crops=3)
    return SRTask(source, make_reward(reward), descriptions="statistics", policy_gives=policy.gives)


@pytest.fixture(scope="module")
def written(policy, bandit):
    context = bandit.context([0, 20])
    cond = policy.encode({"lr": context.lr})
    return policy.documents(context.hr, context.texts, cond), context, cond


def test_a_true_document_says_what_is_true_and_has_the_released_layout(policy, written):
    tokens, context, _ = written
    for text, told in zip(policy.text(tokens), context.texts, strict=True):
        assert format_reward(text) == 1.0
        assert {name: section(text, name) for name in TEXTS} == told
        assert all(section(text, name) == PICTURE for name in IMAGES)
    row = tokens[0].tolist()
    at = row.index(LAYOUT["soi"])
    # 32 pixels are a grid: the coarse image names one by one, then four rows of four codes.
    assert row[at + 1 : at + 3] == [LAYOUT["grid"] + 1] * 2
    assert [row[at + 2 + 5 * i] for i in range(1, 5)] == [LAYOUT["newline"]] * 4 and row[at + 23] == LAYOUT["eoi"]
    assert row.count(LAYOUT["soi"]) == 3 and row.count(LAYOUT["newline"]) == 4 + 8 + 16


def test_its_images_are_what_the_tokeniser_makes_of_the_truth(policy, written):
    tokens, context, cond = written
    images, whole = policy.images(tokens, policy.grammar.walk(tokens), cond)
    assert whole.all() and [image.shape[-1] for image in images] == [32, 64, 128]
    expected = policy.vq.decode(policy.vq.encode(context.hr), 128, 128)
    torch.testing.assert_close(images[2], expected, atol=1e-4, rtol=0)


def test_places_and_sections_of_a_document(policy, written):
    tokens, _, _ = written
    mode = policy.grammar.modes(policy.grammar.walk(tokens))
    assert (mode == IMAGE).sum(1).tolist() == [16 + 64 + 256] * 2
    assert (mode == FORCED).sum(1).tolist() == [3 * 3 + 4 + 8 + 16] * 2
    places = policy.sections(tokens)[0]
    assert [int(places[i]) for i in (tokens[0] == LAYOUT["soi"]).nonzero().flatten()] == [2, 4, 6]
    assert bool((places[1:] >= places[:-1]).all()) and int(places[0]) == 0


@pytest.mark.parametrize("adapter", ["default", None])
def test_true_documents_and_drawn_ones_score_alike_with_and_without_a_cache(policy, written, adapter):
    """Step by step through the key-value cache against the whole sequence: of documents that hold all three images."""
    tokens, _, cond = written
    place = policy.grammar.walk(tokens)
    with torch.no_grad(), policy.adapter(adapter):
        whole, _, _ = policy.log_prob(tokens, place, cond)
        hidden, cache = policy.network(policy.prefix(cond), keep=True)
        steps = [hidden[:, -1:]]
        for i in range(60):
            hidden, cache = policy.network(tokens[:, i : i + 1], cache, keep=True)
            steps.append(hidden)
        mode = policy.grammar.modes(place)[:, :61]
        logits = policy.logits(torch.cat(steps, 1)).masked_fill(~policy.grammar.allowed(mode), -torch.inf)
        by_steps = logits.log_softmax(-1).gather(-1, tokens[:, :61, None])[..., 0]
    torch.testing.assert_close(whole[:, :61], torch.where(mode < FORCED, by_steps, 0.0), atol=1e-4, rtol=0)
    seeds = derive_seeds(0, 0, torch.arange(2))
    with torch.no_grad(), policy.adapter(adapter):
        drawn = policy.sample(cond, SHORT, seeds)
        again, _, _ = policy.log_prob(drawn["tokens"], drawn["place"], cond)
        alone = policy.sample(cond[1:], SHORT, seeds[1:])
    torch.testing.assert_close(again, drawn["log_prob"], atol=1e-4, rtol=0)
    assert torch.equal(alone["tokens"], drawn["tokens"][1:])


def test_image_tokens_have_a_likelihood(policy, written):
    tokens, _, cond = written
    place = policy.grammar.walk(tokens)
    with torch.no_grad():
        score, entropy, _ = policy.log_prob(tokens, place, cond)
    mode = policy.grammar.modes(place)
    for kind, count in ((IMAGE, 64), (WORD, int(policy.grammar.words.sum()))):
        assert float(score[mode == kind].min()) > -30 and 0 < float(entropy[mode == kind].max()) <= math.log(count)


def test_layers_are_recomputed_in_the_backward_pass_alone(policy, written):
    tokens, _, cond = written
    place = policy.grammar.walk(tokens)
    plain = policy._options["checkpointing"]
    gradients = []
    for checkpointing in (True, False):
        policy._options["checkpointing"] = checkpointing
        policy.zero_grad()
        policy.log_prob(tokens, place, cond)[0].sum().backward()
        gradients.append([p.grad.clone() for _, p in policy.trainable_parameters()])
    policy._options["checkpointing"] = plain
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_guidance_is_off_where_it_is_one_and_forgets_what_came_before(policy, written):
    _, _, cond = written
    seeds = derive_seeds(1, 0, torch.arange(2))
    with torch.no_grad():
        off = policy.sample(cond, TokenSampling(1.0, length=30), seeds)
        on = policy.sample(cond, TokenSampling(1.0, length=30, guidance=0.8), seeds)
    assert torch.equal(off["tokens"].shape and off["tokens"][:, :1], on["tokens"][:, :1])
    assert not on["log_prob"].any()


@pytest.mark.parametrize("agent", ["token_grpo", "dpo", "token_cold_start"])
def test_one_iteration_of_every_agent(policy, bandit, agent):
    policy.longest, longest = 60 if agent != "token_cold_start" else policy.longest, policy.longest
    try:
        options = {} if agent == "token_cold_start" else {"group_size": 4}
        learner = make(agent, policy, bandit.reward, **options)
        rollout = collect(bandit, policy, learner, bandit.context([1]), seed=0, iteration=0)
        if agent != "token_cold_start":
            rollout["reward"] = torch.arange(4.0)
        rows = learner.prepare(rollout)
        before = [p.detach().clone() for _, p in policy.trainable_parameters()]
        optimizer = torch.optim.AdamW([p for _, p in policy.trainable_parameters()], 1e-3)
        terms = learner.loss(rows)
        optimizer.zero_grad()
        sum(value for name, value in terms.items() if name.startswith("loss_")).backward()
        optimizer.step()
        learner.after_update()
        moved = [not torch.equal(p, was) for (_, p), was in zip(policy.trainable_parameters(), before, strict=True)]
        assert all(moved)
        assert all(p.grad is None for n, p in policy.named_parameters() if ".default." not in n)
    finally:
        policy.longest = longest


def test_it_comes_back_from_disk(policy, folder, written, tmp_path):
    tokens, _, cond = written
    place = policy.grammar.walk(tokens)
    policy.save(tmp_path)
    assert not list(tmp_path.rglob("*.pt")) and not (tmp_path / "model").exists()
    back = policies.load(tmp_path)
    for adapter in ("default", "ema", None):
        with torch.no_grad(), policy.adapter(adapter), back.adapter(adapter):
            torch.testing.assert_close(
                back.log_prob(tokens, place, cond)[0], policy.log_prob(tokens, place, cond)[0], atol=0, rtol=0
            )


def test_trained_in_full_it_brings_its_weights(folder, tmp_path):
    whole = lumina(folder)
    with torch.no_grad():
        whole.model.lm_head.weight.add_(0.1)
    whole.save(tmp_path)
    back = policies.load(tmp_path)
    assert torch.equal(back.model.lm_head.weight, whole.model.lm_head.weight)
    assert not torch.equal(back.model.lm_head.weight, lumina(folder).model.lm_head.weight)


@pytest.mark.parametrize("stored", [(8,), (2, 8)])
def test_norms_that_are_stored_once_a_shard_are_each_head_s(folder, tmp_path, stored):
    """Lumina-mGPT keeps one for all heads, Chameleon's release one for each shard of them."""
    lumina_folder(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        if ".q_norm." in name or ".k_norm." in name:
            tensors[name] = torch.randn(stored, generator=torch.Generator().manual_seed(len(name)))
    save_file(tensors, file)
    vq8_file(tmp_path / "vq.pt")
    read = lumina(tmp_path).model.state_dict()
    for name, tensor in tensors.items():
        if ".q_norm." in name or ".k_norm." in name:
            rows = tensor.reshape(-1, 8)
            assert torch.equal(read[name], rows.repeat_interleave(4 // len(rows), 0))


def test_the_codebook_is_looked_up_by_direction_as_in_llamagen(folder):
    """The nearest code of unit length, computed here; transformers' network takes rows as they are."""
    vq = VQ8(folder / "vq.pt")
    stored = torch.load(folder / "vq.pt", weights_only=True)["model"]["quantize.embedding.weight"]
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = vq.net.quant_conv(vq.net.encoder(2 * image - 1))[0].flatten(1).T
    unit = torch.nn.functional.normalize(latent, dim=-1) @ torch.nn.functional.normalize(stored, dim=-1).T
    assert torch.equal(vq.encode(image)[0], unit.argmax(1))
    assert vq.decode(vq.encode(image), 32, 32).shape == (1, 3, 32, 32)
    assert vq.decode(torch.zeros(1, 8, dtype=torch.int64), 16, 32).shape == (1, 3, 16, 32)


def test_what_isnt_there_or_isnt_it_is_said(folder, tmp_path):
    good = {"path": str(folder / "model"), "vq": str(folder / "vq.pt"), "side": 128, "layout": LAYOUT}
    lumina(folder)
    with pytest.raises(ValueError, match="expected path .a model's folder. and vq"):
        policies.make("lumina_vlcot")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json in it"):
        policies.make("lumina_vlcot", **{**good, "path": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="expected LlamaGen's VQ-8"):
        policies.make("lumina_vlcot", **{**good, "vq": str(tmp_path / "none.pt")})
    with pytest.raises(ValueError, match="side as a multiple of 128"):
        policies.make("lumina_vlcot", **{**good, "side": 96})
    with pytest.raises(ValueError, match="layout names 32 image tokens, and .* has 64"):
        policies.make("lumina_vlcot", **{**good, "layout": {**LAYOUT, "codes": [[4, 32]]}})
    (tmp_path / "not.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected tensors alone"):
        VQ8(tmp_path / "not.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected LlamaGen's VQ-8, which has"):
        VQ8(tmp_path / "other.pt")
    lumina_folder(tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "lm_head.weight"}, tmp_path / "broken" / "model.safetensors")
    with pytest.raises(ValueError, match="expected 'lm_head.weight' among the weights"):
        policies.make("lumina_vlcot", **{**good, "path": str(tmp_path / "broken")})


def test_local_credit_and_its_own_codec_are_refused(policy):
    with pytest.raises(Incompatible, match="'lumina_vlcot' doesn't say: take compact_vlcot, or credit='to_go'"):
        make("token_grpo", policy, make_reward("psnr_y"), credit="local")
    with pytest.raises(Incompatible, match="uses those of another model|has adapters"):
        make("codec", policy)
    assert isinstance(make("dpo", policy, make_reward("psnr_y")), DPO)
    assert json.dumps(policy.config)
