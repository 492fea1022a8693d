"""Run by torchrun on two processes: says which LRs each process's reward function was given, and whether it took them.

ranked.py MODEL FOLDER [shuffled]
"""

import os
import sys
from pathlib import Path

import torch

from srgym.files import write_json
from srgym.rewards.compass.mllm import shown
from srgym.runners.judges import ranking
from srgym.runners.judges.ranking import RankingReward, ranking_trainer
from srgym.runners.judges.trainer import Ranking, TrainSettings


class Six:
    """Six LRs of three grey images each."""

    labels = [[0.1, 0.5, 0.9]] * 6

    def images(self, group: int, place: int) -> tuple[bytes, ...]:
        sr = torch.full((1, 3, 32, 32), (3 * group + place) / 20)
        return shown(sr[..., ::4, ::4], sr)[0]


GIVEN: list[list[int]] = []


class Told(RankingReward):
    """Keeps what it was given."""

    def __call__(self, completions, group, label, **rest):
        GIVEN.append(list(group))
        return super().__call__(completions, group, label, **rest)


def main(model: str, folder: str, shuffled: bool) -> None:
    torch.set_num_threads(1)
    ranking.RankingReward = Told  # type: ignore[misc]
    own = Ranking(images=2, answers=2, contexts=1, tokens=2)
    settings = TrainSettings(model, "refreward", steps=3, microbatch=4, max_pixels=1024, ranking=own)
    trainer = ranking_trainer(settings, Path(model), Six(), Path(folder) / "trainer")
    trainer.shuffle_dataset = shuffled
    said = ""
    try:
        trainer.train()
    except RuntimeError as error:
        said = str(error)
    write_json(Path(folder) / f"{os.environ['RANK']}.json", {"given": GIVEN, "said": said})
    os._exit(0)  # the other process may be waiting for this one


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "shuffled" in sys.argv[3:])
