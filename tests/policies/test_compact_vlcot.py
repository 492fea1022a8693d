"""The compact policy that writes: documents that are true, images from tokens, and itself on disk."""

import pytest
import torch
from writers import drawn, writer

from srgym import policies
from srgym.document import IMAGES, PICTURE, SECTIONS, TEXTS, section
from srgym.envs.descriptions import Statistics
from srgym.envs.photographs import Photographs
from srgym.envs.sources import Sample
from srgym.envs.task import SRTask
from srgym.policies.compact import bicubic
from srgym.policies.tiling import upscale
from srgym.policies.vlcot.codec import ResidualCodec, pyramid
from srgym.policies.vlcot.words import SENTENCES
from srgym.rewards import make as make_reward
from srgym.rewards.realsr_r1.degradation import degradation_reward, describe
from srgym.rewards.realsr_r1.format import format_reward


@pytest.fixture(scope="module")
def policy():
    return writer()


@pytest.fixture(scope="module")
def contexts():
    return [Photographs("train", "mixture", 4, 32, crops=3)[i] for i in (0, 4, 10, 20, 29)]


@pytest.fixture(scope="module")
def written(policy, contexts):
    cond = policy.encode({"lr": torch.stack([sample.lr for sample in contexts])})
    hr = torch.stack([sample.hr for sample in contexts])
    texts = [Statistics().texts(sample) for sample in contexts]
    return policy.documents(hr, texts, cond), texts, cond, hr


def test_a_true_document_has_the_form_and_says_what_is_true(policy, contexts, written):
    tokens, texts, _, _ = written
    for text, sample, told in zip(policy.text(tokens), contexts, texts, strict=True):
        assert format_reward(text) == 1.0
        assert degradation_reward(section(text, "degradation"), sample.degradation) == 1.0
        assert {name: section(text, name) for name in TEXTS} == told
        assert all(section(text, name) == PICTURE for name in IMAGES)


def test_its_images_are_what_the_codec_makes_of_the_truth(policy, written):
    tokens, _, cond, hr = written
    images, whole = policy.images(tokens, policy.grammar.walk(tokens), cond)
    assert whole.all()
    for i, (image, known) in enumerate(zip(pyramid(hr), pyramid(cond["mean"]), strict=True)):
        expected = policy.codec.reconstruct(image, known, i).clamp(0, 1)
        torch.testing.assert_close(images[i], expected, atol=1e-5, rtol=0)
        assert tuple(images[i].shape[2:]) == tuple(image.shape[2:])


def test_every_token_is_of_the_section_it_stands_in(policy, written):
    tokens, _, _, _ = written
    row, places = tokens[0].tolist(), policy.sections(tokens)[0].tolist()
    index = policy.vocabulary.index
    for i, name in enumerate(SECTIONS):
        start, end = row.index(index[f"<{name}>"]), row.index(index[f"</{name}>"])
        assert places[start : end + 1] == [i] * (end + 1 - start)


def test_the_guide_of_a_place_is_the_patch_that_it_is_in(policy):
    """Of 32 pixels: 1, 4 and 16 patches, each followed by a closing tag."""
    patch = policy.get_buffer("patch").tolist()
    assert patch == [0, 1, 0, 2, 3, 4, 5, 0, *range(6, 22), 0]


def test_answers_know_a_truth_from_a_lie(policy, contexts, written):
    tokens, texts, cond, hr = written
    rolled_out = policy.sample(cond, policy.sampling(), torch.arange(len(tokens)))
    rolled_out = rolled_out.set("tokens", tokens).set("place", policy.grammar.walk(tokens))
    rolled_out["complete"] = torch.ones(len(tokens), dtype=torch.bool)
    rolled_out["sr"] = policy.images(tokens, policy.grammar.walk(tokens), cond)[0][2]
    answers = policy.answers(rolled_out, hr, texts)
    said = (answers["key"] >= 0) & (answers["key"] < len(policy.vocabulary.rows))
    assert int(said[0].sum()) == 8 + 3 and bool((answers["value"][said] == 1).all())
    wrong = tokens.clone()
    at = wrong[0].tolist().index(policy.vocabulary.index["<degradation>"]) + 1
    row = next(row for row in SENTENCES if policy.vocabulary.words[int(wrong[0, at])] in row)
    other = next(s for s in row if s != policy.vocabulary.words[int(wrong[0, at])])
    wrong[0, at] = policy.vocabulary.index[other]
    lied = policy.answers(rolled_out.set("tokens", wrong), hr, texts)
    assert float(lied["value"][0, at]) == 0 and int((lied["value"] != answers["value"]).sum()) == 1
    # The final image's patches: better than the image's average on one side, worse on the other.
    patches = answers["key"] >= len(policy.vocabulary.rows)
    assert patches.sum(1).tolist() == [16] * len(tokens)
    torch.testing.assert_close(answers["value"][0][patches[0]].mean(), torch.tensor(0.0), atol=1e-4, rtol=0)


def test_an_image_of_another_size_and_an_unknown_sentence_are_refused(policy, written):
    _, texts, cond, hr = written
    with pytest.raises(ValueError, match="takes LR images of 8 x 8, got 16 x 16: set env.size=32, or srgym upscale"):
        policy.encode({"lr": torch.rand(1, 3, 16, 16)})
    with pytest.raises(ValueError, match="doesn't know 'A cat sleeps.'"):
        policy.documents(hr[:1], [texts[0] | {"rough_understand": "Dark. A cat sleeps."}], cond[:1])
    with pytest.raises(ValueError, match="got one without 'final_understand'"):
        policy.documents(hr[:1], [{k: v for k, v in texts[0].items() if k != "final_understand"}], cond[:1])


def test_it_comes_back_from_disk(policy, tmp_path):
    policy.save(tmp_path)
    back = policies.load(tmp_path)
    for adapter in ("default", "ema", None):
        with policy.adapter(adapter), back.adapter(adapter):
            ours, theirs = drawn(policy), drawn(back)
        assert torch.equal(ours["tokens"], theirs["tokens"])
        torch.testing.assert_close(ours["log_prob"], theirs["log_prob"], atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (21, 13), (5, 30)])
def test_larger_and_smaller_images_are_upscaled_by_tiles(policy, shape):
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    sr = upscale(policy, image)
    assert tuple(sr.shape) == (3, 4 * shape[0], 4 * shape[1]) and torch.isfinite(sr).all()
    mean = upscale(policy, image, mean=True)
    assert float((mean - sr).abs().mean()) < 0.2  # tokens change the mean, they don't replace it


def test_rounding_is_the_whole_of_what_a_codec_loses():
    """Codes survive a second encoding where numbers are read back whole: 0 .. levels - 1, by their strides."""
    codec = ResidualCodec([2, 3, 4], depth=2, width=8)
    codes = torch.randint(24, (2, 4 * 2), generator=torch.Generator().manual_seed(0))
    known = torch.rand(2, 3, 16, 16)
    numbers = []
    codec._image = lambda numbers_, known_, size: numbers.append(numbers_) or known_
    codec.decode(codes, known, 2)
    codec._numbers = lambda image, known_, size: numbers[0]
    assert torch.equal(codec.encode(known, known, 2), codes)
    assert all(float(numbers[0][:, i].max()) <= level - 1 for i, level in enumerate([2, 3, 4] * 2))


def test_every_sentence_of_the_statistics_is_known():
    known = {sentence for row in SENTENCES for sentence in row}
    source = Photographs("train", "mixture", 4, 64, crops=10, augment=True)
    said = {
        sentence.strip() + "."
        for i in range(len(source))
        for text in Statistics().texts(source[i]).values()
        for sentence in text.rstrip(".").split(".")
    }
    assert said <= known and len(said) > 55


def test_flat_images_are_described_too():
    for value in (0.0, 0.5, 1.0):
        sample = Sample("a/0", torch.zeros(3, 16, 16), torch.full((3, 64, 64), value), None, {"blur1": None})
        assert describe(sample.degradation) == Statistics().texts(sample)["degradation"]


def test_the_weights_that_ship_write_and_paint():
    """On test photographs: the truth's own tokens are far from bicubic, the likeliest documents whole and no worse."""
    shipped = policies.make("compact_vlcot")
    source = Photographs("test", "mixture", 4, 64, crops=8)
    task = SRTask(source, descriptions="statistics")
    context = task.context(range(len(source)))
    with torch.no_grad():
        cond = shipped.encode({"lr": context.lr})
        told = shipped.documents(context.hr, context.texts, cond)
        truth = shipped.images(told, shipped.grammar.walk(told), cond)[0][2]
        drawn_here = shipped.sample(cond, shipped.sampling(), torch.arange(len(source)))

    def score(name, images):
        return float(task.score(context, images, reward=make_reward(name)).total.mean())

    enlarged = bicubic(context.lr, 4)
    assert score("psnr_y", truth) > score("psnr_y", enlarged) + 1.5
    assert score("structure_texture", drawn_here["sr"]) > score("structure_texture", enlarged)
    assert drawn_here["complete"].all()
    texts = shipped.text(drawn_here["tokens"])
    assert all(format_reward(text) == 1.0 for text in texts)
    right = [degradation_reward(section(t, "degradation"), r) for t, r in zip(texts, context.degradation, strict=True)]
    assert sum(right) / len(right) > 0.6
