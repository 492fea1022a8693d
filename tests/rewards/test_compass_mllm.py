"""COMPASS's language-model scorers: what they ask, and that a real model class answers it."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srgym.rewards import make
from srgym.rewards.compass.mllm import MLLMScorer, SoftScorer, enlarge
from srgym.rewards.serving.engines import make_engine
from srgym.rewards.serving.guide import PatternGuide
from srgym.rewards.serving.local import TransformersEngine
from srgym.rewards.serving.parsing import score_pattern, score_reply
from srgym.rewards.serving.prompts import COMPASS_FIELDS, compass
from srgym.rewards.serving.question import Question, Reply, encode_images


def png(image: torch.Tensor) -> bytes:
    """An image as a judge is shown it."""
    return encode_images(image[None])[0]


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    """Two LR images, and two SR images of each."""
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(2, 3, 16, 16, generator=generator).repeat_interleave(2, 0)
    sr = enlarge(lr, torch.empty(1, 1, 64, 64)) * torch.tensor([0.95, 0.4, 0.9, 0.6])[:, None, None, None]
    return lr, sr


@pytest.fixture
def engine(tiny_qwen3vl: Path) -> TransformersEngine:
    return TransformersEngine(tiny_qwen3vl, device="cpu", dtype="float32")


def test_a_pair_is_shown_as_two_images_of_one_size_and_its_scores_are_read(
    scripted: Any, pairs: tuple[Tensor, Tensor]
) -> None:
    from PIL import Image

    said = {"fidelity": 0.83, "q_lr": 2.1, "q_sr": 3.75}
    engine = scripted(lambda _: Reply(json.dumps(said)))
    lr, sr = pairs
    f, q_lr, q_sr, valid = MLLMScorer(engine)(lr, sr)
    assert f.tolist() == pytest.approx([0.83] * 4)
    assert q_lr.tolist() == pytest.approx([2.1] * 4)
    assert q_sr.tolist() == pytest.approx([3.75] * 4)
    assert valid.all()
    for i, question in enumerate(engine.asked):
        assert [Image.open(io.BytesIO(file)).size for file in question.images] == [(64, 64)] * 2
        assert question.images == (png(enlarge(lr, sr)[i]), png(sr[i]))
        assert question.stop == ('"description"',)
    assert len({question.seed for question in engine.asked}) == 4


def test_the_question_says_where_the_input_comes_from_and_asks_for_fidelity_where_it_is_known(
    scripted: Any, pairs: Any
) -> None:
    synthetic, real = compass("synthetic"), compass("real")
    assert synthetic.startswith("<type: synthetic>\n")
    assert real.startswith("<type: real>\n")
    assert all(f"- {name}, from" in synthetic for name in COMPASS_FIELDS)
    assert "fidelity" not in real
    assert "two scores" in real
    with pytest.raises(ValueError, match="expected an input of kind synthetic or real, got 'made'"):
        compass("made")
    # The reward needs F, whatever the input.
    engine = scripted(lambda _: Reply('{"fidelity":0.5,"q_lr":2,"q_sr":3}'))
    MLLMScorer(engine)(*pairs)
    assert {question.text for question in engine.asked} == {synthetic}


def test_a_row_without_a_score_is_invalid_and_the_others_keep_theirs(scripted: Any, pairs: Any) -> None:
    lr, sr = pairs
    third = png(sr[2])

    def answer(question: Question) -> Reply:
        broken = '{"fidelity":0.5,"q_lr":2.00,"q_sr":7.00}'
        return Reply(broken if question.images[1] == third else broken.replace("7", "4"))

    f, _, q_sr, valid = MLLMScorer(scripted(answer))(lr, sr)
    assert valid.tolist() == [True, True, False, True]
    assert q_sr[valid].tolist() == [4.0] * 3
    assert f[2].isnan()
    scored = make("compass", scorer=MLLMScorer(scripted(answer)))(sr, lr=lr)
    assert scored.valid.tolist() == [True, True, False, True]
    assert scored.total[2].isnan()
    # R = F Q_LR + F^(Q_LR / 7) (Q_SR - Q_LR) by hand.
    assert scored.total[0].item() == pytest.approx(0.5 * 2 + 0.5 ** (2 / 7) * 2)


def test_the_soft_scorer_asks_about_every_image_once(scripted: Any, pairs: Any) -> None:
    rating = {2: "4", 1: "3"}
    engine = scripted(lambda q: Reply("", logprobs={d: 0.0 if d == rating[len(q.images)] else -1e9 for d in q.choices}))
    f, q_lr, q_sr, valid = SoftScorer(engine)(*pairs)
    # 4 pairs, 2 LR images, 4 SR images.
    assert sorted(len(question.images) for question in engine.asked) == [1] * 6 + [2] * 4
    assert f.tolist() == [0.75] * 4
    assert q_lr.tolist() == q_sr.tolist() == [3.0] * 4
    assert valid.all()


def test_soft_scores_are_the_models_own_expectation(engine: TransformersEngine, pairs: tuple[Tensor, Tensor]) -> None:
    from PIL import Image

    from srgym.rewards.serving.prompts import FIDELITY

    lr, sr = pairs
    f = SoftScorer(engine)(lr, sr)[0]
    # The same from the model's own interface: prompt, forward, softmax over the five digits.
    shown = [Image.open(io.BytesIO(file)) for file in (png(enlarge(lr, sr)[1]), png(sr[1]))]
    content = [{"type": "image", "image": image} for image in shown] + [{"type": "text", "text": FIDELITY}]
    inputs = engine.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert (inputs["input_ids"] == engine.model.config.image_token_id).sum() == 2 * (64 // 32) ** 2
    with torch.no_grad():
        logits = engine.model(**inputs).logits[0, -1]
    digits = [engine.processor.tokenizer.convert_tokens_to_ids(d) for d in "12345"]
    expected = (logits[digits].softmax(0) * torch.arange(1, 6)).sum()
    assert f[1].item() == pytest.approx((expected.item() - 1) / 4, abs=1e-5)
    assert f.std() > 1e-4  # the images do count


@pytest.mark.parametrize("kind", [MLLMScorer, SoftScorer])
def test_scores_depend_on_no_neighbour(kind: Any, engine: TransformersEngine, pairs: tuple[Tensor, Tensor]) -> None:
    lr, sr = pairs
    scorer = kind(engine)
    whole = torch.stack(scorer(lr, sr)[:3])
    assert scorer(lr, sr)[3].all()
    assert ((whole[1:] >= 1) & (whole[1:] <= 5)).all()
    assert ((whole[0] >= 0) & (whole[0] <= 1)).all()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(torch.stack(scorer(lr[order], sr[order])[:3]), whole[:, order], atol=1e-5, rtol=0)
    single = torch.cat([torch.stack(scorer(lr[i : i + 1], sr[i : i + 1])[:3]) for i in range(4)], 1)
    torch.testing.assert_close(single, whole, atol=1e-5, rtol=0)


def test_a_model_that_talks_nonsense_gives_no_score(engine: TransformersEngine, pairs: tuple[Tensor, Tensor]) -> None:
    # Unconstrained, random weights never write the JSON asked for.
    lr, sr = pairs
    engine.retries = 1
    f, _, _, valid = MLLMScorer(engine, describe=True)(lr[:1], sr[:1])
    assert not valid.any()
    assert f.isnan().all()


def test_compass_runs_on_both_scorers_by_name(tiny_qwen3vl: Path, pairs: tuple[Tensor, Tensor]) -> None:
    lr, sr = pairs
    where = {"engine": "transformers", "path": str(tiny_qwen3vl), "device": "cpu"}
    for name in ("mllm", "soft"):
        reward = make("compass", scorer={"name": name, "engine": where})
        assert not reward.differentiable
        output = reward(sr, lr=lr, group=torch.tensor([0, 0, 1, 1]))
        assert output.valid.all()
        q_lr = output.components["q_lr"]
        assert q_lr[0] == q_lr[1]


def test_decoding_is_kept_on_a_pattern_and_stops_where_it_is_told(engine: TransformersEngine) -> None:
    image = png(torch.zeros(3, 32, 32))
    pattern = score_pattern(COMPASS_FIELDS)
    whole, cut = engine.answer(
        [
            Question("?", (image,), pattern=pattern, max_tokens=64),
            Question("?", (image,), pattern=pattern, max_tokens=64, stop=('"q_sr"',)),
        ]
    )
    assert re.fullmatch(pattern, whole.text)
    assert not whole.stopped
    assert cut.stopped
    assert whole.text.startswith(cut.text)
    assert cut.text.endswith(",")
    fields = {name: COMPASS_FIELDS[name] for name in ("fidelity", "q_lr")}
    assert score_reply(cut, fields) == {name: score_reply(whole, COMPASS_FIELDS)[name] for name in fields}


def test_sampling_follows_the_seed_and_leaves_the_callers_generator_alone(engine: TransformersEngine) -> None:
    def ask(seed: int) -> str:
        return engine.answer([Question("?", (), seed=seed, max_tokens=12, temperature=1.0)])[0].text

    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_guide_allows_only_tokens_that_can_still_match(engine: TransformersEngine) -> None:
    tokenizer = engine.processor.tokenizer
    guide = PatternGuide(tokenizer, r'\{"a":([1-4]\.[0-9]|5\.0)\}')

    def after(text: str) -> set[str]:
        return {tokenizer.decode([i]) for i in guide.allowed(tokenizer.encode(text, add_special_tokens=False))}

    assert after('{"a":') == set("12345")
    assert after('{"a":5.') == {"0"}
    assert after('{"a":5.0') == {"}"}
    assert after('{"a":5.0}') == {"<|im_end|>"}


def test_engines_are_made_by_name_and_refuse_what_they_cannot_do(tmp_path: Path, engine: Any) -> None:
    assert make_engine(engine, model="x") is engine
    assert make_engine("http://127.0.0.1:9", model="compass").model == "compass"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="unknown engine 'tgi': expected one of served"):
        make_engine({"engine": "tgi"}, model="x")
    with pytest.raises(ValueError, match="engine 'served': .*'retires'"):
        make_engine({"urls": "http://127.0.0.1:9", "retires": 1}, model="x")
    with pytest.raises(FileNotFoundError, match="expected a model's folder"):
        make_engine({"engine": "transformers", "path": str(tmp_path)}, model="x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="trust_remote_code"):
        make_engine({"engine": "vllm", "path": str(tmp_path), "trust_remote_code": True}, model="x")
    with pytest.raises(ValueError, match="expected '12' to be one token"):
        engine.answer([Question("?", choices=("1", "12"))])
