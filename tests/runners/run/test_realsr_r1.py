"""RealSR-R1 from its cold start to its report, on a tiny policy; and the 7B experiment on the real classes, tiny."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from writers import LAYOUT, QUESTION, lumina

from srgym import policies
from srgym.envs.photographs import Photographs
from srgym.runners import make_runner
from srgym.runners.commands.cli import main

TINY = [
    "policy.weights=null", "policy.side=32", "policy.levels=[2,3]", "policy.codec_width=8", "policy.width=32",
    "policy.layers=1", "policy.heads=2", "env.size=32", "env.crops=8", "lora.rank=2", "logger=csv",
]  # fmt: skip
SHORT = [
    "runner.iterations=2", "runner.contexts=2", "runner.eval_contexts=2", "runner.eval_every=1", "agent.group_size=3",
    "stages.cold_start.runner.iterations=3", "stages.cold_start.runner.contexts=4", "runner.checkpoint_every=1",
    "stages.cold_start.runner.checkpoint_every=1", "stages.cold_start.runner.eval_every=0", "report.limit=4",
    "report.pictures=1", "report.metrics=[psnr_y]", "seed=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("realsr_r1") / "run"
    assert main(["train", "experiment=realsr_r1", *TINY, *SHORT, f"out={out}"]) == 0
    return out


def test_every_component_is_measured_in_training_and_in_evaluation(run: Path):
    for stage in ("grpo", "shuffled"):
        log = pd.read_csv(run / "stages" / stage / "metrics.csv")
        for part in ("format", "degradation", "understanding", "generation"):
            assert log[f"reward/{part}"].dropna().between(0, 1).all() and len(log[f"reward/{part}"].dropna()) == 2
            assert log[f"eval/{part}"].notna().any()
    rows = pd.read_parquet(run / "evaluation" / "results.parquet")
    parts = {f"realsr_r1.{part}" for part in ("format", "degradation", "understanding", "generation")}
    written = rows[rows["method"].isin(["cold_start", "grpo", "shuffled"])]
    assert parts <= set(written["metric"])
    assert written[written["metric"].isin(parts)]["valid"].all()
    # What doesn't write has no words to judge.
    bicubic = rows[(rows["method"] == "bicubic") & (rows["metric"] == "realsr_r1.format")]
    assert not bicubic["valid"].any()


def test_the_report_shows_what_was_written(run: Path):
    report = (run / "report.md").read_text()
    for heading in ("# RealSR-R1: realsr_r1", "## The claim", "## By how it is sampled", "## What was written"):
        assert heading in report
    assert "**realsr_r1.generation**, grpo over cold_start" in report
    assert "over the random-reward control shuffled" in report
    assert re.search(r"\| grpo, T = 0.7 \|", report) and "nats a word" in report
    assert "1 step" not in report  # a document isn't drawn in steps
    assert "First blur" in report
    assert json.loads((run / "evaluation" / "results.json").read_text())["methods"]["grpo"]["temperature"] == 0.0


def test_a_killed_run_goes_on_to_the_same_weights(run: Path, tmp_path: Path):
    words = ["experiment=realsr_r1", *TINY, *SHORT, "report=null", f"out={tmp_path / 'run'}"]
    stopped = make_runner(*words, "stages.grpo.runner.iterations=1")
    with pytest.raises(RuntimeError, match="enough"):
        stopped._on_progress = _Enough(3)
        stopped.learn()
    make_runner(*words).learn()
    again, whole = (policies.load(folder / "stages" / "grpo" / "policy") for folder in (tmp_path / "run", run))
    for (name, ours), (_, theirs) in zip(again.state_dict().items(), whole.state_dict().items(), strict=True):
        assert ours.equal(theirs), name


class _Enough:
    """Fails at the n-th iteration, as a machine does."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, share: float) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("enough")


def test_its_policy_upscales_and_is_evaluated_as_any(run: Path, tmp_path: Path, capsys):
    from PIL import Image

    Image.new("RGB", (20, 11), (90, 120, 30)).save(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), f"policy={run}", f"out={tmp_path / 'b.png'}"]) == 0
    with Image.open(tmp_path / "b.png") as large:
        assert large.size == (80, 44)
    words = ["evaluate", f"policy={run}", "env.size=32", "env.crops=2", "env.preset=mixture", "pictures=1", "limit=2"]
    assert main([*words, f"out={tmp_path / 'evaluation'}"]) == 0
    assert main(["evaluate", f"policy={run}", "env.size=64", f"out={tmp_path / 'other'}", "limit=1"]) == 2
    assert "takes LR images of 8 x 8, got 16 x 16: set env.size=32" in capsys.readouterr().err


def test_the_7b_experiment_runs_on_the_real_classes(tmp_path: Path):
    lumina(tmp_path)
    source = Photographs("train", "mixture", 4, 128, crops=2)
    named = [source[i].id for i in range(len(source))]
    said = [{"id": name, "captions": ["A.", "B.", "C."], "tags": ["a"]} for name in named]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    layout = "{" + ",".join(f"{key}: {json.dumps(value)}" for key, value in LAYOUT.items()) + "}"
    model = [
        f"policy.path={tmp_path / 'model'}", f"policy.vq={tmp_path / 'vq.pt'}", f"policy.question='{QUESTION}'",
        f"policy.layout={layout}", "policy.side=128", "policy.answer=900", "policy.dtype=bfloat16",
        "env=photographs", "env.preset=mixture", "env.size=128", "env.crops=2", "heldout=null",
        f"env.descriptions={tmp_path / 'said.jsonl'}",
    ]  # fmt: skip
    small = [
        "runner.parallel=ddp", "runner.iterations=1", "runner.contexts=1", "runner.eval_every=0", "lora.rank=2",
        "stages.cold_start.runner.iterations=1", "stages.cold_start.runner.contexts=1", "logger=csv", "seed=3",
        "reward=realsr_r1_full_reference", "agent.group_size=2",
    ]  # fmt: skip
    words = ["experiment=realsr_r1_7b", *model, *small, f"out={tmp_path / 'run'}"]
    assert main(["train", *words]) == 0
    back = policies.load(tmp_path / "run")
    assert back.has_adapters and any(float(p.abs().max()) > 0 for n, p in back.core.named_parameters() if "lora_B" in n)


def test_its_dry_run_says_what_7b_need(capsys, tmp_path: Path):
    from PIL import Image

    for i in range(12):
        Image.new("RGB", (520, 520), (20 * i, 10, 10)).save(tmp_path / f"{i}.png")
    assert main(["train", "experiment=realsr_r1_7b", f"env.path={tmp_path}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"parameters, network\s+6\.78 G", said) and "memory at the worst" in said
    assert "TB of weights an iteration" in said


def test_contexts_of_another_size_are_refused_before_anything_runs(tmp_path: Path, capsys):
    assert main(["train", "experiment=realsr_r1", *TINY, "env.size=64", f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "policy 'compact_vlcot' takes LR images of 8 x 8, and the source 'photographs' gives 16 x 16" in said
    assert "set env.size=32" in said
    assert main(["train", "experiment=realsr_r1", *TINY, "env.size=64", "--dry-run"]) == 2


def test_a_stage_s_agent_by_its_short_name(capsys):
    assert main(["train", "experiment=oars", "stages.non_reference.agent=nft", "--print"]) == 0
    assert main(["train", "experiment=realsr_r1", *TINY, "stages.grpo.agent=nft", "--dry-run"]) == 2
    assert "DiffusionNFT trains flow policies" in capsys.readouterr().err
