"""Documents of words and images: what may come where, and what a token is worth. On the compact policy, tiny."""

import pytest
import torch
from writers import drawn, inputs, writer

from srgym.policies.noise import derive_seeds
from srgym.policies.tokens import FORCED, IMAGE, OVER, WORD, Grammar, TokenSampling, likelihood

# Five words (2 opens image 0, 3 the next one, 4 ends all) and three image tokens; image 0 is two free places and a
# forced 1, image 1 one free place, a forced 0, a free place.
GRAMMAR = Grammar(
    torch.arange(8) < 5, torch.arange(8) >= 5, {2: 0, 3: -2}, [[-1, -1, 1], [-1, 0, -1]], end=4
)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return writer()


def test_places_by_hand():
    tokens = torch.tensor([[0, 2, 5, 6, 1, 3, 7, 0, 5, 4, 0], [3, 5, 5, 1, 3, 5, 0, 5, 3, 6, 0]])
    modes = GRAMMAR.modes(GRAMMAR.walk(tokens)).tolist()
    assert modes[0] == [WORD, WORD, IMAGE, IMAGE, FORCED, WORD, IMAGE, FORCED, IMAGE, WORD, OVER]
    # "The next one" begins with image 0, and stays at the last.
    assert modes[1] == [WORD, IMAGE, IMAGE, FORCED, WORD, IMAGE, FORCED, IMAGE, WORD, IMAGE, FORCED]
    assert GRAMMAR.forced(GRAMMAR.walk(tokens))[0, [4, 7]].tolist() == [1, 0]


def test_a_likelihood_by_hand():
    logits = torch.zeros(1, 2, 8, dtype=torch.float64)
    logits[0, 1, 6] = 2.0
    score, entropy, log_z = likelihood(logits, torch.tensor([[3, 6]]), torch.tensor([[WORD, IMAGE]]), GRAMMAR, 0.5)
    among = torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64).log_softmax(0)
    torch.testing.assert_close(score, torch.stack([-torch.tensor(5.0).double().log(), among[1]])[None])
    torch.testing.assert_close(entropy[0, 1], -(among.exp() * among).sum())
    torch.testing.assert_close(log_z[0, 1], torch.tensor([0.0, 4.0, 0.0]).double().logsumexp(0))
    still = likelihood(logits, torch.tensor([[3, 6]]), torch.tensor([[FORCED, OVER]]), GRAMMAR)
    assert not still[0].any() and not still[1].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", ["default", "ema", None])
def test_tokens_score_as_they_were_drawn(policy, temperature, adapter):
    """The key-value cache on one side, whole sequences on the other."""
    with policy.adapter(adapter):
        documents = drawn(policy, temperature=temperature)
        again, _, _ = policy.log_prob(documents["tokens"], documents["place"], documents["cond"], temperature)
    torch.testing.assert_close(again, documents["log_prob"], atol=1e-4, rtol=0)
    assert float(documents["log_prob"].min()) < -1


@pytest.mark.parametrize("cut", [1, 2, 5])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"guidance": 1.5, "image_top_k": 3}])
def test_the_cut_of_a_batch_changes_nothing(policy, how, cut):
    whole, parts = drawn(policy, **how), drawn(policy, cut=cut, **how)
    assert torch.equal(whole["tokens"], parts["tokens"])
    torch.testing.assert_close(whole["sr"], parts["sr"])


def test_what_is_in_a_document(policy):
    """No image token among words, no word in an image, every opened image whole or cut off by the end."""
    documents = drawn(policy, count=12)
    tokens, mode = documents["tokens"], policy.grammar.modes(documents["place"])
    image = tokens >= len(policy.vocabulary)
    assert torch.equal(image, mode == IMAGE)
    assert torch.equal(policy.grammar.walk(tokens), documents["place"])
    forced = mode == FORCED
    assert forced.any() and torch.equal(tokens[forced], policy.grammar.forced(documents["place"])[forced])
    assert not tokens[mode == OVER].any()


def test_guidance_of_one_is_none_and_of_nothing_forgets_the_words(policy):
    plain = drawn(policy)
    torch.testing.assert_close(drawn(policy, guidance=1.0)["log_prob"], plain["log_prob"])
    assert not torch.equal(drawn(policy, guidance=3.0)["tokens"], plain["tokens"])


def test_the_likeliest_token_is_that_of_a_temperature_near_zero(policy):
    assert torch.equal(drawn(policy, temperature=0.0)["tokens"], drawn(policy, temperature=1e-5)["tokens"])
    assert torch.equal(drawn(policy, text_top_k=1, image_top_k=1)["tokens"], drawn(policy, temperature=0.0)["tokens"])


@pytest.mark.parametrize(
    ("how", "scored"),
    [({}, True), ({"temperature": 0.0}, False), ({"text_top_k": 1}, False), ({"guidance": 1.5}, False)],
)
def test_only_what_may_be_drawn_has_a_likelihood(policy, how, scored):
    assert TokenSampling(**how).scored is scored
    assert bool(drawn(policy, **how)["log_prob"].any()) is scored


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"text_top_k": -1}, {"length": 0}, {"guidance": -0.1}])
def test_a_sampling_that_cant_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected a (temperature|document)"):
        TokenSampling(**wrong)


def test_a_short_document_is_broken_and_grey(policy):
    documents = drawn(policy, length=3)
    assert not documents["complete"].any()
    assert torch.equal(documents["sr"], torch.full_like(documents["sr"], 0.5))
    assert torch.isfinite(documents["log_prob"]).all()


def test_sampled_frequencies_are_the_likelihoods(policy):
    """The first word of 3,000 documents: its frequencies against the network's own softmax."""
    count = 3000
    with torch.no_grad():
        cond = policy.encode({"lr": inputs(1)})[torch.zeros(count, dtype=torch.int64)]
        documents = policy.sample(cond, TokenSampling(length=1), derive_seeds(3, 0, torch.arange(count)))
        hidden, _ = policy.network(policy.prefix(cond[:1]))
        logits = policy.logits(hidden[0, -1]).masked_fill(~policy.grammar.words, -torch.inf)
    seen = torch.bincount(documents["tokens"][:, 0], minlength=len(logits)) / count
    expected = logits.softmax(0)
    assert float((seen - expected).abs().max()) < 4 * float((expected * (1 - expected) / count).sqrt().max())


def test_chunks_of_a_large_vocabulary_are_the_whole(policy, monkeypatch):
    documents = drawn(policy)
    document = (documents["tokens"], documents["place"], documents["cond"])

    def gradients():
        policy.zero_grad()
        score, _, _ = policy.log_prob(*document)
        score.sum().backward()
        return score, [p.grad.clone() for _, p in policy.trainable_parameters()]

    score, whole = gradients()
    monkeypatch.setattr("srgym.policies.tokens._CHUNK", 7 * len(policy.grammar.words) * len(documents))
    again, parts = gradients()
    torch.testing.assert_close(again, score)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
