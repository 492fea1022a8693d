"""`srgym judge train | evaluate | distil` as they are typed."""

import json

import pandas as pd
import pytest
import torch

pytest.importorskip("trl")

from srgym.files import to_png
from srgym.runners.commands.cli import main
from srgym.runners.judges.judge_set import JudgeSet, NewCandidate, NewInput

METHODS = ("one", "two", "three")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A labelled set: two inputs to learn from, two to be measured on, three candidates each, of 32 pixels."""
    folder = tmp_path_factory.mktemp("judged") / "set"
    held = JudgeSet.create(folder, {}, dict.fromkeys(METHODS, "1"))
    g, rows = torch.Generator().manual_seed(0), []
    for split, count in (("train", 2), ("test", 2)):
        inputs, candidates = [], []
        for i in range(count):
            name, lr = f"{split}{i}/0", to_png(torch.rand(3, 8, 8, generator=g))
            hr = to_png(torch.rand(3, 32, 32, generator=g)) if i % 2 == 0 else None
            inputs.append(NewInput(name, split, "synthetic" if hr else "real", lr, hr))
            for j, method in enumerate(METHODS):
                coarse = torch.rand(1, 3, 4, 4, generator=g)
                sr = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")[0]
                candidates.append(NewCandidate(name, method, "1", 0, to_png(sr)))
                outcomes = [0.5 if k == j else float(j > k) for k in range(3)]
                rows.append({
                    "group": name, "method": method, "sample": 0, "split": split, "kept": True, "anchor": 2.0 + j,
                    "quality": 1.5 + j, "q_lr": 2.0, "fidelity": 0.5 + 0.1 * j if hr else None, "description": "",
                    "outcomes": outcomes, "flag": "", "verdict": float("nan"),
                })  # fmt: skip
        held.add_inputs(split, inputs)
        held.add_candidates(split, candidates)
    pd.DataFrame(rows).to_parquet(folder / "labels.parquet")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration of a few seconds."""
    path = tmp_path_factory.mktemp("config") / "seconds.yaml"
    path.write_text(
        "train: {model: tiny, steps: 2, batch: 2, microbatch: 2, lr: 0.002, max_pixels: 1024}\n"
        "evaluate: {engine: {engine: transformers, device: cpu}}\n"
        "distil: {samples: 3, sampler_steps: 1, steps: 1, groups_per_step: 1,"
        " engine: {engine: transformers, device: cpu}}\n"
    )
    return f"config={path}"


def test_from_a_set_to_a_measured_and_distilled_judge(made, config, tmp_path, capsys):
    run, plain, student = (tmp_path / name for name in ("run", "plain", "student"))
    assert main(["judge", "train", str(made), f"out={run}", config]) == 0
    assert main(["judge", "train", str(made), f"out={plain}", "labels=anchor", config]) == 0
    measured = ["judge", "evaluate", str(run), f"on={made}", "table=3", f"uncalibrated={plain}", "against=[random]"]
    assert main([*measured, config]) == 0
    told = capsys.readouterr().out
    assert "mean of the method on the other scenes" in told
    result = json.loads((run / "evaluation" / "set" / "evaluation.json").read_text())
    assert set(result["ablation"]) == {"gamma 5", "gamma 7", "gamma 9", "without fidelity", "without calibration"}
    assert set(result["difference"]) >= {"random", "without calibration (plain)"}
    assert "accuracy in %" in (run / "README.md").read_text()
    assert main(["judge", "distil", str(run), str(made), f"out={student}", config]) == 0
    page = (run / "report.html").read_text()
    for stage in ("The set and its labels", "Training", "Measured on set", "Ablation", "Distilled"):
        assert f">{stage}</h" in page
    out = tmp_path / "reward"
    assert main(["judge", "evaluate", "reward=random", f"on={made}", f"out={out}"]) == 0
    assert (out / "report.html").is_file()
    # A judge that has no F and Q can't teach them, one of calibrated labels isn't the ablation's.
    capsys.readouterr()
    assert main(["judge", "evaluate", str(run), f"on={made}", f"uncalibrated={run}", config]) == 2
    assert "expected a judge trained with labels=anchor" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["train", "SET", "out=OUT", "CONFIG", "recipee=compass"], "unknown setting 'recipee'; did you mean 'recipe'?"),
    (["train", "SET", "out=OUT"], "expected model=..., got none"),
    (["train", "SET", "CONFIG"], "srgym judge train expects out=RUN"),
    (["train", "out=OUT", "CONFIG"], "srgym judge train expects SET, got nothing"),
    (["train", "SET", "out=OUT", "CONFIG", "split=training"], "expected a split of train, validation, test"),
    (["train", "--dry-run", "gpus=none", "config=compass_8b"], "expected a whole number of GPUs, got gpus=none"),
    (["train", "--dry-run", "config=mini"], "--dry-run plans a training that takes GPUs"),
    (["evaluate", "OUT", "on=SET"], "expected a model's folder with a config.json"),
    (["evaluate", "reward=random", "on=SET"], "expects out=FOLDER"),
    (["evaluate", "OUT"], "srgym judge evaluate expects on=SET"),
    (["evaluate", "reward=randon", "on=SET", "out=OUT"], "did you mean 'random'?"),
    (["distil", "OUT", "SET"], "srgym judge distil expects out=DIR"),
    (["distil", "OUT", "SET", "out=OUT", "samples=2"], "samples: expected at least 3, got 2"),
])  # fmt: skip
def test_what_is_typed_wrong_is_refused_with_what_would_be_right(words, message, made, config, tmp_path, capsys):
    places = {"SET": str(made), "CONFIG": config, "OUT": str(tmp_path / "out")}

    def typed(word: str) -> str:
        key, equals, value = word.partition("=")
        return key + equals + places.get(value, value) if equals else places.get(word, word)

    assert main(["judge", *map(typed, words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_of_a_verb_tells_what_its_settings_mean(capsys):
    assert main(["judge", "train", "--help"]) == 0
    told = capsys.readouterr().out
    for said in ("max_pixels: of an image", "ranking.KEY=VALUE: Ranking GRPO", "lora.KEY=VALUE"):
        assert said in told
    assert main(["judge", "--help"]) == 0
    assert "srgym judge status   SET" in capsys.readouterr().out
