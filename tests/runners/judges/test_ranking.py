"""Ranking GRPO: an LR's answers stay together, what they earn, and what is told beside the reward."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srgym.runners.judges.ranking import RankingReward, pair_figures, ranking_rows, ranking_trainer
from srgym.runners.judges.tiny import write_tiny
from srgym.runners.judges.train import train
from srgym.runners.judges.trainer import Ranking, TrainSettings

trl = pytest.importorskip("trl")


def answer(score):
    return [{"role": "assistant", "content": json.dumps({"consistency": score, "naturalness": score})}]


def test_rows_are_those_of_one_lr_next_to_each_other_and_new_in_every_pass():
    labels = [[1.0] * 5, [1.0] * 3, [1.0] * 2, [1.0] * 4]
    rows = ranking_rows(labels, Ranking(images=3, answers=2), 4, 0)
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    assert all(len({lr for lr, _ in group}) == 1 and len({at for _, at in group}) == 3 for group in groups)
    passes = [[group[0][0] for group in groups[i : i + 3]] for i in range(0, 12, 3)]
    assert all(sorted(one) == [0, 1, 3] for one in passes)  # the LR with two images is left out
    assert len({tuple(one) for one in passes}) > 1
    assert len({tuple(group) for group in groups if group[0][0] == 0}) > 1
    assert rows == ranking_rows(labels, Ranking(images=3, answers=2), 4, 0)
    with pytest.raises(ValueError, match="ranking.images=6: expected LRs with as many labelled images, the most are 5"):
        ranking_rows(labels, Ranking(images=6, answers=2), 1, 0)
    with pytest.raises(ValueError, match="ranking.contexts=4: expected at least 4 LRs of 3 images for a step, got 3"):
        ranking_rows(labels, Ranking(images=3, answers=2, contexts=4), 1, 0)


def test_the_right_order_earns_more_and_what_the_reward_hides_is_told():
    told = {}
    reward = RankingReward(Ranking(images=2, answers=2))
    answers = [answer(4.0), answer(4.1), answer(2.0), [{"role": "assistant", "content": "no idea"}]]
    right = reward(answers, [7] * 4, [0.9, 0.9, 0.1, 0.1], log_metric=lambda name, value: told.update({name: value}))
    wrong = reward(answers, [7] * 4, [0.1, 0.1, 0.9, 0.9])
    assert right[:3] == pytest.approx([2.0, 2.0, 2.0], abs=1e-3)
    assert wrong[:3] == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    assert right[3] == wrong[3] == 0
    assert told == {"pair_accuracy": 1.0, "ties": 0.0, "unreadable": 0.25}


def test_rows_that_were_shuffled_are_noticed():
    reward, answers = RankingReward(Ranking(images=2, answers=2)), [answer(3.0)] * 8
    labels = [0.1, 0.1, 0.9, 0.9] * 2
    assert len(reward(answers, [1] * 4 + [2] * 4, labels)) == 8
    with pytest.raises(RuntimeError, match=r"the rows of one LR are apart: .* got those of \[1, 2\]"):
        reward(answers, [1, 1, 2, 2, 1, 1, 2, 2], labels)
    with pytest.raises(RuntimeError, match="the rows of one LR are apart"):
        reward(answers, [1] * 4 + [2] * 4, [0.1, 0.9, 0.1, 0.9] * 2)
    with pytest.raises(RuntimeError, match="expected a multiple of 2 images x 2 answers at once, got 6"):
        reward(answers[:6], [1] * 6, labels[:6])


def test_ties_are_wrong_and_pairs_that_nobody_decides_are_not_asked():
    scores = torch.tensor([[3.0, 3.0], [2.0, 4.0], [1.0, math.nan]])
    better = torch.tensor([[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    # (0, 1): a tie; (0, 2): right; (1, 2): not decided.
    assert pair_figures(scores, better) == pytest.approx({"pair_accuracy": 0.5, "ties": 0.5, "unreadable": 1 / 6})


def settings(model, **changes):
    own = Ranking(images=2, answers=2, contexts=2, tokens=24)
    usual = {"recipe": "refreward", "steps": 2, "microbatch": 4, "lr": 1e-3, "max_pixels": 64 * 64, "ranking": own}
    return TrainSettings(model=str(model), **{**usual, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), width=64, layers=2)


def test_a_step_of_the_trainer_holds_whole_lrs_and_shuffled_ones_fail(tiny, make_material, tmp_path):
    trainer = ranking_trainer(settings(tiny), tiny, make_material(4, 3).preferences(), tmp_path)
    reward = trainer.reward_funcs[0]

    def asked():
        for batch in trainer.get_train_dataloader():
            columns = {key: [row[key] for row in batch] for key in ("group", "label")}
            yield reward([answer(3.0)] * len(batch), **columns)

    assert [len(rewards) for rewards in asked()] == 4 * [8]  # two steps, each in two parts of the same rows
    trainer.shuffle_dataset = True
    with pytest.raises(RuntimeError, match="the rows of one LR are apart"):
        list(asked())


def test_what_cannot_be_ranked_is_refused(tiny, make_material, tmp_path):
    with pytest.raises(ValueError, match="expected at least 2 images of an LR and 2 answers to each.* got 1 and 2"):
        Ranking(images=1, answers=2)
    with pytest.raises(ValueError, match="microbatch=3: expected a divisor of the 8 answers of a step"):
        ranking_trainer(settings(tiny, microbatch=3), tiny, make_material(4, 3).preferences(), tmp_path)


def test_a_run_warms_up_ranks_and_logs_pairs_ties_and_unreadable_answers(tiny, make_material, tmp_path):
    own = Ranking(images=2, answers=2, contexts=2, tokens=24, warm_up=2, warm_up_lr=1e-3)
    run = tmp_path / "run"
    record = train(settings(tiny, ranking=own, batch=4), make_material(4, 3), run, [])
    rows = [json.loads(line) for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    # After two steps nothing can be read yet, which is said; of unread answers there is no order.
    assert [row["unreadable"] for row in rows if "unreadable" in row] == [1.0, 1.0]
    assert (run / "training" / "warm_up_log.jsonl").is_file()
    assert record["recipe"] == "refreward"
    assert (run / "model.safetensors").is_file()


@pytest.mark.campaign
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shuffled", [False, True])
def test_each_of_two_processes_is_given_whole_lrs(shuffled, tiny, tmp_path):
    script, source = Path(__file__).with_name("ranked.py"), Path(__file__).parents[3] / "src"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [str(tiny), str(tmp_path), *(["shuffled"] if shuffled else [])]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    if shuffled:
        assert any("the rows of one LR are apart" in one["said"] for one in told), done.stderr[-2000:]
        return
    assert [one["said"] for one in told] == ["", ""], done.stderr[-2000:]
    steps = [[given[step] for given in (told[0]["given"], told[1]["given"])] for step in range(3)]
    assert all(len(given) == 4 and len(set(given)) == 1 for step in steps for given in step)
    # Together they have seen all LRs, none at the same time.
    assert sorted(given[0] for step in steps for given in step) == list(range(6))
