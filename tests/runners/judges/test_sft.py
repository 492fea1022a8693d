"""SFT of a judge: what it is shown is what it will be asked, only answers are learnt, and they are learnt exactly."""

import json
import os

import pytest
import torch

pytest.importorskip("trl")

from srgym.rewards import make
from srgym.rewards.compass.mllm import MLLMScorer
from srgym.rewards.serving.local import TransformersEngine
from srgym.rewards.serving.prompts import COMPARE, compass
from srgym.rewards.serving.server import Server
from srgym.runners.judges.exported import EXPORTED, read_judge, write_scores
from srgym.runners.judges.sft import compass_answer, from_png, sft_trainer
from srgym.runners.judges.tiny import write_tiny
from srgym.runners.judges.train import train
from srgym.runners.judges.trainer import JsonLines, Lora, TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), width=64, layers=2)


def settings(model, **changes):
    usual = {"batch": 4, "microbatch": 4, "steps": 2, "lr": 4e-3, "max_pixels": 64 * 64, "checkpoint_every": 1000}
    return TrainSettings(model=str(model), **{**usual, **changes})


def images_of(material):
    lr = torch.stack([from_png(material.images.lr(i)) for i, g in enumerate(material.groups) for _ in g.methods])
    sr = [from_png(material.images.sr(i, j)) for i, g in enumerate(material.groups) for j in range(len(g.methods))]
    return lr, torch.stack(sr)


def test_prompts_and_pixels_in_training_are_those_in_use_to_the_bit(tiny, make_material, tmp_path):
    # Images larger than `max_pixels`, so that the saved processor must make them smaller, as the training did.
    material = make_material(2, 2, side=96)
    trainer = sft_trainer(settings(tiny), tiny, material.examples("compass"), tmp_path)
    trainer.processing_class.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / "saved" / name).write_bytes((tiny / name).read_bytes())
    engine = TransformersEngine(tmp_path / "saved", device="cpu")
    asked = []
    scorer = MLLMScorer(
        type("Listening", (), {"ask": lambda self, questions, read: asked.extend(questions) or [None] * 4})()
    )
    scorer(*images_of(material))
    for i, question in enumerate(asked):
        trained = trainer.data_collator([dict(trainer.train_dataset[i])])
        used = engine._inputs(question)
        length = used["input_ids"].shape[1]
        assert torch.equal(trained["input_ids"][0, :length], used["input_ids"][0])
        assert torch.equal(trained["pixel_values"], used["pixel_values"])
        assert torch.equal(trained["image_grid_thw"], used["image_grid_thw"])
        assert used["image_grid_thw"].tolist() == 2 * [[1, 4, 4]]  # 96 pixels a side became 64


def test_the_answer_alone_is_learnt_and_no_fidelity_of_real_inputs(tiny, make_material, tmp_path):
    material = make_material(2, 2, real=True)
    trainer = sft_trainer(settings(tiny), tiny, material.examples("compass"), tmp_path)
    batch = trainer.data_collator([dict(trainer.train_dataset[i]) for i in range(4)])
    decode = trainer.processing_class.tokenizer.decode
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        group = material.groups[row // 2]
        learnt = decode(labels[labels != -100])
        said = json.loads(learnt.partition("<|im_end|>")[0])
        expected = {"q_lr": group.q_lr, "q_sr": group.quality[row % 2], "description": f"picture {row % 2}"}
        if group.kind == "synthetic":
            expected = {"fidelity": group.fidelity[row % 2], **expected}
        assert said == expected
        assert f"<type: {group.kind}>" in decode(ids)


def test_labels_are_written_with_two_decimals_and_refused_outside_of_their_range():
    assert compass_answer({"fidelity": 1.0, "q_lr": 2.0, "q_sr": 3.456}, 'so "sharp"') == (
        '{"fidelity":1.00,"q_lr":2.00,"q_sr":3.46,"description":"so \\"sharp\\""}'
    )
    assert compass_answer({"q_lr": 2.0, "q_sr": 3.0}, "") == '{"q_lr":2.00,"q_sr":3.00,"description":""}'
    with pytest.raises(ValueError, match=r"expected 'q_sr' in \[1, 5\] as a label, got 5.2"):
        compass_answer({"q_lr": 2.0, "q_sr": 5.2}, "")


def test_weights_are_trained_in_float32_whatever_the_file_has(tiny, make_material, tmp_path):
    from transformers import AutoModelForImageTextToText

    half = tmp_path / "half"
    write_tiny(half, width=64, layers=2)
    AutoModelForImageTextToText.from_pretrained(half).to(torch.bfloat16).save_pretrained(half)
    assert AutoModelForImageTextToText.from_pretrained(half).dtype == torch.bfloat16
    trainer = sft_trainer(settings(half), half, make_material(2, 2).examples("compass"), tmp_path / "t")
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("changes", "message"), [
    ({"dtype": "bfloat16"}, "tuning=full with dtype=bfloat16: .* moves 16% of weights"),
    ({"batch": 6, "microbatch": 4}, "batch=6: expected a multiple of microbatch=4"),
    ({"batch": 8, "microbatch": 4}, "batch=8 is more than the 4 rows"),
    ({"max_pixels": 100}, "max_pixels: expected at least the 1024 pixels"),
    ({"recipe": "compas"}, "recipe: expected 'compass', 'compare' or 'refreward', got 'compas'"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_a_sentence(tiny, make_material, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sft_trainer(settings(tiny, **changes), tiny, make_material(2, 2).examples("compass"), tmp_path)


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def test_a_run_that_was_killed_goes_on_where_its_last_whole_checkpoint_was(tiny, make_material, tmp_path, monkeypatch):
    material, own = make_material(2, 2), settings(tiny, steps=4, checkpoint_every=2)
    train(own, material, tmp_path / "whole", [])
    log = JsonLines.on_log

    def killed(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            # What a process leaves that dies while it writes a checkpoint, and a line.
            (tmp_path / "cut" / "training" / "checkpoints" / "checkpoint-3").mkdir()
            with self.path.open("a") as file:
                file.write('{"step": 3, "lo')
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(JsonLines, "on_log", killed)
        train(own, material, tmp_path / "cut", [])
    assert not (tmp_path / "cut" / "config.json").exists()
    train(own, material, tmp_path / "cut", [])
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "training" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 4]  # the last of the steps, and the summary


def test_a_lora_is_merged_into_the_weights_of_its_start(tiny, make_material, tmp_path):
    from safetensors.torch import load_file

    run = tmp_path / "run"
    train(
        settings(tiny, tuning="lora", dtype="bfloat16", lr=1e-2, lora=Lora(rank=4, alpha=8)),
        make_material(2, 2),
        run,
        [],
    )
    start, merged = load_file(tiny / "model.safetensors"), load_file(run / "model.safetensors")
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in start.items()}
    moved = {name for name in start if not torch.equal(start[name], merged[name])}
    assert moved
    assert all("language_model" in name and "_proj" in name for name in moved)
    assert not list(run.rglob("adapter*"))


def test_a_pairwise_judge_is_shown_both_orders_and_learns_one_digit(tiny, make_material, tmp_path):
    material = make_material(1, 3)
    examples = material.examples("compare")
    assert len(examples) == 6
    group = material.groups[0]
    order = [(a, b) for a in range(3) for b in range(3) if a != b]
    for (a, b), example in zip(order, (examples[i] for i in range(6)), strict=True):
        assert example.text == COMPARE
        assert [from_png(image).tolist() for image in example.images[1:]] == [
            from_png(material.images.sr(0, place)).tolist() for place in (a, b)
        ]
        assert example.answer == ("1" if group.quality[a] > group.quality[b] else "2")
    trainer = sft_trainer(settings(tiny, recipe="compare"), tiny, examples, tmp_path)
    labels = trainer.data_collator([dict(trainer.train_dataset[0])])["labels"][0]
    assert trainer.processing_class.tokenizer.decode(labels[labels != -100]).startswith(
        examples[0].answer + "<|im_end|>"
    )
    # Ties are answered by 0; what isn't compared isn't asked.
    group.better[0, 1] = group.better[1, 0] = 0.5
    group.better[0, 2] = group.better[2, 0] = float("nan")
    again = material.examples("compare")
    assert [again[i].answer for i in range(len(again))][:2] == ["0", "0"]
    assert len(again) == 4


def exact(run, material):
    """How many answers are those learnt, in every score, of the exported model asked as a reward asks."""
    scorer = MLLMScorer(TransformersEngine(run, device="cpu", dtype="float32"))
    f, q_lr, q_sr, valid = scorer(*images_of(material))
    labels = [(*_, g.q_lr, q) for g in material.groups for _, q in zip(zip(g.fidelity), g.quality, strict=True)]
    near = (torch.stack([f, q_lr, q_sr], 1) - torch.tensor(labels)).abs() < 0.005
    return int((near.all(1) & valid).sum())


def test_answers_are_learnt_to_the_last_digit_and_the_run_is_taken_as_it_is(tiny, make_material, tmp_path):
    material = make_material(2, 2)
    run = tmp_path / "run"
    record = train(settings(tiny, steps=60), material, run, ["srgym", "judge", "train"])
    assert exact(run, material) == 4
    # Nothing in it is unpickled, and the checkpoints are gone.
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.suffix for path in files} <= EXPORTED | {".jsonl"}
    steps = [json.loads(line)["step"] for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    assert 60 in steps
    # It answers a reward by its folder.
    lr, sr = images_of(material)
    engine = {"engine": "transformers", "path": str(run), "device": "cpu"}
    scored = make("compass", scorer={"name": "mllm", "engine": engine})(sr[:1], lr=lr[:1])
    assert scored.components["q_sr"].tolist() == pytest.approx([material.groups[0].quality[0]])
    # The card says of what data and by which command, and is told what is measured.
    assert record["set"] == {**material.about, "groups": 2, "rows": 4}
    write_scores(run, "a benchmark", {"All": 0.8})
    card = (run / "README.md").read_text()
    for said in ("`made here`", "    srgym judge train", "On `a benchmark`:", "| All | 0.8 |", compass("real")):
        assert said in card
    # Asked again, it is there already.
    assert train(settings(tiny, steps=60), material, run, [])["sha256"] == record["sha256"]
    with pytest.raises(ValueError, match=r"holds a run of other settings \(steps was 60\): name another folder"):
        train(settings(tiny, steps=61), material, run, [])
    changed = type(material)(material.groups, material.images, {**material.about, "sha256": "1"})
    with pytest.raises(ValueError, match="holds a judge of another set, or of this one before its labels changed"):
        train(settings(tiny, steps=60), changed, run, [])
    # A judge that learnt to answer something else isn't asked.
    (run / "judge.json").write_text((run / "judge.json").read_text().replace("Give three scores", "Give 3 scores"))
    with pytest.raises(ValueError, match="was trained on other questions than this srgym asks"):
        read_judge(run)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_sixteen_answers_are_exact_and_not_merely_parsed(make_material, tmp_path):
    model, material = write_tiny(tmp_path / "tiny"), make_material(4, 4)
    for steps, found in ((20, range(16)), (70, (16,))):
        run = tmp_path / f"run{steps}"
        train(settings(model, batch=16, microbatch=16, steps=steps, lr=2e-3), material, run, [])
        assert exact(run, material) in found


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_gives_the_scores_that_this_process_gives(make_material, tmp_path):
    python = os.environ.get("SRGYM_VLLM_PYTHON")
    if not python:
        pytest.skip("SRGYM_VLLM_PYTHON doesn't name the interpreter of an environment with vLLM")
    material, run = make_material(2, 2), tmp_path / "run"
    train(settings(write_tiny(tmp_path / "tiny", width=64, layers=2), steps=60), material, run, [])
    pictures = images_of(material)
    small = ["--max-num-seqs", "16", "--max-num-batched-tokens", "4096"]
    with Server(run, token="here", cpu=True, name="compass", max_model_len=4096, python=python, extra=small) as server:
        served = MLLMScorer({"urls": [server.url], "token": "here"})(*pictures)
    local = MLLMScorer(TransformersEngine(run, device="cpu", dtype="float32"))(*pictures)
    for theirs, ours in zip(served, local, strict=True):
        assert torch.equal(theirs, ours)
    assert served[2].tolist() == pytest.approx([q for group in material.groups for q in group.quality])
